"""The sides of a comparison: which runs a word names, and which of their scores go together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightning_seg.errors import SetupError
from lightning_seg.scores import COUNTS, EVERYWHERE, SUMMARY, Scores, read_scores

VERBS_WITH_SCORES = ("test", "validate")
"""The verbs that write scores, and their folders in that of a run; the first is preferred."""


@dataclass
class Side:
    """One side of a comparison.

    Attributes:
        name: The name in tables.
        runs: The scores of its runs, which are trainings with several seeds.
        folders: The folder of each run's scores.
    """

    name: str
    runs: list[Scores]
    folders: list[Path]


@dataclass
class Pairing:
    """What two sides have in common.

    Attributes:
        classes: The names of the classes.
        regions: The regions of both; the first is all labelled pixels.
        ids: The images of all runs.
        baseline: (N, R, C, 3) counts of each run of the baseline.
        other: The counts of the paired runs of the other side.
        notes: Sentences on what was left out and how runs were paired.
    """

    classes: list[str]
    regions: list[str]
    ids: list[str]
    baseline: list[NDArray[np.int64]]
    other: list[NDArray[np.int64]]
    notes: list[str] = field(default_factory=list)


def folders_of(words: Sequence[str]) -> dict[str, list[Path]]:
    """Return the folders of each side by the side's name.

    Args:
        words: One word a side: `[NAME=]FOLDER[,FOLDER...]`, of which folders may be patterns. The
            name of a side is by default the last part of the folder that no other side has.

    Raises:
        SetupError: A folder or a pattern does not exist, a folder stands twice in a side, or two
            sides have one name.
    """
    sides: list[tuple[str, list[Path]]] = []
    for word in words:
        name, equals, rest = word.partition("=")
        if not equals or Path(word).exists():
            name, rest = "", word
        parts = [rest] if Path(rest).exists() else rest.split(",")
        folders = [path for part in parts for path in _matches(part.strip())]
        if twice := [str(path) for path in set(folders) if folders.count(path) > 1]:
            raise SetupError(f"{twice[0]} stands twice in the side {word}")
        sides.append((name, folders))
    names = [name or _short(folders[0], sides) for name, folders in sides]
    if twice := [name for name in set(names) if names.count(name) > 1]:
        raise SetupError(f"two sides have the name {twice[0]}; NAME=FOLDER gives a side a name")
    return dict(zip(names, (folders for _, folders in sides), strict=True))


def _matches(part: str) -> list[Path]:
    """Return the folders that a path or a pattern names."""
    path = Path(part).expanduser()
    if path.is_dir():
        return [path]
    pattern = path.relative_to(path.anchor)
    found = sorted(each for each in Path(path.anchor).glob(str(pattern)) if each.is_dir())
    if not found:
        raise SetupError(f"there is no folder {part!r}")
    return found


def _short(folder: Path, sides: Sequence[tuple[str, list[Path]]]) -> str:
    """Return the last parts of a folder that tell it apart from the first folders of the others."""
    others = [each[0] for name, each in sides if not name and each[0] != folder]
    parts = folder.parts
    for count in range(1, len(parts)):
        if all(parts[-count:] != other.parts[-count:] for other in others):
            return Path(*parts[-count:]).as_posix() or str(folder)
    return str(folder)


def scores_folder(run: Path) -> Path:
    """Return the folder of scores of a run: itself, its `test/` or its `validate/`.

    Raises:
        SetupError: There is none.
    """
    for folder in (run, *(run / verb for verb in VERBS_WITH_SCORES)):
        if any((folder / name).is_file() for name in (COUNTS, SUMMARY)):
            return folder
    raise SetupError(
        f"{run} holds no scores: neither it nor {run / 'test'} has a {COUNTS}, which the verbs "
        "test and validate write"
    )


def read_side(name: str, folders: Sequence[Path]) -> Side:
    """Read the scores of a side's runs.

    Raises:
        SetupError: A folder holds no scores, or damaged ones.
    """
    places = [scores_folder(folder) for folder in folders]
    return Side(name, [read_scores(place) for place in places], places)


def pair(baseline: Side, other: Side) -> Pairing:
    """Find the common images, regions and runs of two sides.

    Raises:
        SetupError: The sides have no common image or region, other classes, other labels for one
            image, or runs that cannot be paired.
    """
    every = [*baseline.runs, *other.runs]
    classes = _common_classes(baseline, other)
    regions = [each for each in every[0].regions if all(each in run.regions for run in every)]
    if EVERYWHERE not in regions:
        raise SetupError(f"a run has no counts of the region {EVERYWHERE}")
    regions.sort(key=lambda name: name != EVERYWHERE)
    places = [{name: index for index, name in enumerate(run.ids)} for run in every]
    ids = [name for name in every[0].ids if all(name in each for each in places)]
    if not ids:
        raise SetupError(
            f"{baseline.name} and {other.name} have no image in common: "
            f"{_first_id(every[0])} and {_first_id(other.runs[0])}"
        )
    counts = [
        run.counts[[place[name] for name in ids]][:, [run.regions.index(each) for each in regions]]
        for run, place in zip(every, places, strict=True)
    ]
    _require_same_labels(ids, classes, counts, [*baseline.folders, *other.folders])
    if not counts[0][:, 0, :, 2].any():
        raise SetupError(f"no image of both {baseline.name} and {other.name} has a labelled pixel")
    notes = []
    if (most := max(map(len, places))) > len(ids):
        notes.append(f"Of up to {most} images in a run, the {len(ids)} of all runs are compared.")
    notes += _verb_notes([baseline, other])
    pairs, note = _paired_runs(baseline, other)
    first, second = counts[: len(baseline.runs)], counts[len(baseline.runs) :]
    return Pairing(
        classes,
        regions,
        ids,
        [first[one] for one, _ in pairs],
        [second[two] for _, two in pairs],
        notes + note,
    )


def _common_classes(baseline: Side, other: Side) -> list[str]:
    expected = baseline.runs[0].classes
    folders = [*baseline.folders, *other.folders]
    for folder, run in zip(folders, [*baseline.runs, *other.runs], strict=True):
        if len(run.classes) != len(expected):
            found = f"{len(run.classes)} classes, and {folders[0]} has {len(expected)}"
        elif run.classes != expected:
            index = next(i for i, name in enumerate(expected) if run.classes[i] != name)
            names = [shortened(each[index]) for each in (run.classes, expected)]
            found = f"{names[0]} as class {index}, and {folders[0]} has {names[1]}"
        else:
            continue
        raise SetupError(f"runs with other classes cannot be compared: {folder} has {found}")
    return expected


def _require_same_labels(
    ids: Sequence[str],
    classes: Sequence[str],
    counts: Sequence[NDArray[np.int64]],
    folders: Sequence[Path],
) -> None:
    expected = counts[0][..., 2]  # (N, R, C) true pixels
    for folder, found in zip(folders, counts, strict=True):
        if not (different := np.argwhere(found[..., 2] != expected)).size:
            continue
        image, region, index = different[0]
        here, there = (each[image, region, index] for each in (found[..., 2], expected))
        raise SetupError(
            f"the labels of {ids[image]} differ: {here} pixels of {shortened(classes[index])} in "
            f"{folder} and {there} in {folders[0]}. Both runs must be tested on the same masks at "
            "the same size"
        )


def _verb_notes(sides: Sequence[Side]) -> list[str]:
    verbs = [run.summary.get("verb") for side in sides for run in side.runs]
    if "validate" not in verbs:
        return []
    if set(verbs) == {"validate"}:
        return ["The scores are those of validation images, on which checkpoints were chosen."]
    names = [
        side.name for side in sides if "validate" in {r.summary.get("verb") for r in side.runs}
    ]
    return [f"The scores of {' and '.join(names)} were written by validate, not by test."]


def _paired_runs(baseline: Side, other: Side) -> tuple[list[tuple[int, int]], list[str]]:
    """Return pairs of places of runs, by seed or else by order, and how they were found."""
    sides = (baseline, other)
    counts = [len(side.runs) for side in sides]
    if counts == [1, 1]:
        return [(0, 0)], []
    first, second = ([run.summary.get("seed") for run in side.runs] for side in sides)
    known = None not in first + second
    if known and len(set(first)) == counts[0] and len(set(second)) == counts[1]:
        common = [seed for seed in first if seed in second]
        pairs = [(first.index(seed), second.index(seed)) for seed in common]
        if len(pairs) > 1 or (pairs and min(counts) == 1):
            named = f"seed{'s' * (len(pairs) > 1)} {', '.join(map(str, common))}"
            note = f"Runs are paired by their {named}"
            left = f"; {sum(counts) - 2 * len(pairs)} other runs are left out"
            return pairs, [note + left * (sum(counts) > 2 * len(pairs)) + "."]
    if counts[0] != counts[1]:
        raise SetupError(
            f"{counts[0]} runs of {baseline.name} and {counts[1]} of {other.name} cannot be "
            "paired: they have no common seeds, so their numbers must be equal"
        )
    why = "their seeds differ" if known else "a seed is not known"
    return [(i, i) for i in range(counts[0])], [f"Runs are paired in their order, because {why}."]


def _first_id(run: Scores) -> str:
    return shortened(run.ids[0]) if run.ids else "no image"


def shortened(text: str, length: int = 60) -> str:
    """Return a text in one line of at most so many characters, with … for what is left out."""
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 1]}…"
