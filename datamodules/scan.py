"""Reading a whole dataset once: what it holds, and every file that would stop a run."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.errors import DataError, UnpairedError, some
from datamodules.images import ImageDataModule, Split
from datamodules.loading.loaders import QuietLoader, cores, set_up_worker
from datamodules.reading.inspection import Finding, Inspection
from datamodules.reading.mask_decoder import VOID
from datamodules.reading.sources import Example, FileSource, Source, spread

Progress = Callable[[str, int, int], None]
"""Gets the name of a split, how many of its examples were read, and how many there are."""

_REMARKS = {
    "narrow": "images that use under 1/8 of the range from black to white",
    "plain": "images of a single colour",
    "void": "images without a labelled pixel",
    "turned": "images that are turned as their EXIF tag says, which their masks must fit",
}


class Defect(NamedTuple):
    """Something that stops a run or spoils its result."""

    split: str
    """Name of the split."""
    id: str | None
    """Id of the example; None where the defect is not that of a single example."""
    message: str
    """One sentence, with the path of the file."""


@dataclass
class SplitReport:
    """What one split holds.

    Attributes:
        source: The examples.
        sizes: Number of readable images per (height, width).
        labeled: Number of examples with a sound mask.
        pixels: (256,) pixels per class id over all sound masks; 255 is void.
        images_with: (256,) sound masks that hold each class id.
        broken: Indices of the examples with a defect.
        remarks: Names of the images that are odd but usable, by kind.
        deep: Number of images of more than 8 bits a channel.
        range: Smallest and largest value of these images.
        moments: (2, C) sums over all pixels of each channel, white being 1, and of its square.
    """

    source: Source
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    labeled: int = 0
    pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))
    images_with: NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))
    broken: set[int] = field(default_factory=set)
    remarks: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    deep: int = 0
    range: tuple[float, float] = (math.inf, -math.inf)
    moments: NDArray[np.float64] | None = None

    def mean_and_std(self) -> tuple[list[float], list[float]] | None:
        """Return mean and standard deviation of each channel; None where no image can be read."""
        if self.moments is None:
            return None
        count = sum(height * width * many for (height, width), many in self.sizes.items())
        mean, square = self.moments / count
        std = np.sqrt(np.maximum(square - mean**2, 0))
        return mean.tolist(), std.tolist()

    def shares(self) -> NDArray[np.float64]:
        """Return (256,) shares in [0, 1] of the pixels, 255 for void; zeros without pixels."""
        shares: NDArray[np.float64] = self.pixels / max(1, self.pixels.sum())
        return shares

    def typical_sizes(self) -> tuple[tuple[int, int], ...]:
        """Return the smallest, the median and the largest (height, width), ordered by area.

        The result is empty where no image can be read.
        """
        ordered = sorted(self.sizes.elements(), key=lambda size: (size[0] * size[1], size))
        return (ordered[0], ordered[len(ordered) // 2], ordered[-1]) if ordered else ()

    def examples(self, at_most: int) -> list[Example]:
        """Read examples without defects, at even distances in the split."""
        sound = [index for index in range(len(self.source)) if index not in self.broken]
        return [self.source[index] for index in spread(sound, at_most)]


@dataclass
class Report:
    """What a dataset holds and what is wrong with it.

    Attributes:
        class_names: One name per class, in class order.
        splits: The splits that were found, by name.
        defects: Everything that must be mended.
        notes: Facts that are worth knowing and may be intended.
    """

    class_names: list[str]
    splits: dict[str, SplitReport] = field(default_factory=dict)
    defects: list[Defect] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as numbers, strings, lists and dicts, which JSON can hold."""
        return {
            "class_names": self.class_names,
            "splits": {name: self._split_as_dict(split) for name, split in self.splits.items()},
            "defects": [defect._asdict() for defect in self.defects],
            "notes": self.notes,
        }

    def _split_as_dict(self, split: SplitReport) -> dict[str, Any]:
        classes, shares = len(self.class_names), split.shares()
        sizes = zip(("smallest", "median", "largest"), split.typical_sizes(), strict=False)
        return {
            "images": len(split.source),
            "labeled": split.labeled,
            "different_sizes": len(split.sizes),
            "height_width": {name: list(size) for name, size in sizes},
            "pixels": split.pixels[:classes].tolist(),
            "pixel_shares": shares[:classes].tolist(),
            "images_with": split.images_with[:classes].tolist(),
            "void_pixels": int(split.pixels[VOID]),
            "void_share": float(shares[VOID]),
            "mean_and_std": split.mean_and_std(),
        }


def scan(
    data: ImageDataModule, workers: int | None = None, progress: Progress | None = None
) -> Report:
    """Read every example of train, val and test once, and unlabelled images of the training.

    Args:
        data: Data module, with or without `setup`. A test split that is the validation split is
            left out.
        workers: Number of reading processes; 0 reads in this process, None takes one per core.
        progress: Called after every example.

    Returns:
        Counts of every split, and all defects at once.

    Raises:
        DataError: No split was found at all.
    """
    sources, defects = _find(data)
    report = Report(data.class_names, defects=defects)
    seen: dict[bytes, list[tuple[str, str]]] = defaultdict(list)
    for name, source in sources.items():
        split = report.splits[name] = SplitReport(source)
        ids = source.ids
        for index, finding in enumerate(_findings(source, data, workers)):
            report.defects += [Defect(name, ids[index], text) for text in finding.defects]
            if finding.digest is not None:
                seen[finding.digest].append((name, finding.name))
            _add(split, index, finding)
            if progress is not None:
                progress(name, index + 1, len(source))
        report.defects += _refusals(data, name, source, report.defects)
    _judge_copies(report, list(seen.values()), data.trains_on_val)
    report.notes += _notes(report, data)
    return report


def _refusals(
    data: ImageDataModule, split: str, source: Source, known: list[Defect]
) -> list[Defect]:
    """Return what training would refuse about a split as a whole, and what is not yet known."""
    try:
        data.probe(source)
        if split == "val":
            data.require_one_size(source)
    except DataError as error:
        if str(error) not in [defect.message for defect in known if defect.split == split]:
            return [Defect(split, None, str(error))]
    except Exception:  # of a source of one's own, which is a defect already
        return []
    return []


def _find(data: ImageDataModule) -> tuple[dict[str, Source], list[Defect]]:
    """Return the examples of every split that was found, and the defects of all splits."""
    sources: dict[str, Source] = {}
    defects: list[Defect] = []
    splits: tuple[Split, ...] = ("train", "val", "test")
    for split in splits:
        try:
            data.require_classes()
            source, lone = _paired(data, split)
        except DataError as error:
            # a test split that is the validation split fails with the same message
            if str(error) not in [defect.message for defect in defects]:
                defects.append(Defect(split, None, str(error)))
            continue
        if split == "test" and _same_files(source, sources.get("val")):
            continue
        sources[split] = data.configured(source)
        defects += [Defect(split, None, text) for text in lone]
        if len(source) == 0:
            message = f"split {split!r} of {type(data).__name__} has no images"
            defects.append(Defect(split, None, message))
    if not sources:
        raise DataError("\n".join(defect.message for defect in defects))
    if "train" in sources:
        _add_unlabeled(data, sources, defects)
    return sources, defects


def _add_unlabeled(
    data: ImageDataModule, sources: dict[str, Source], defects: list[Defect]
) -> None:
    """Add the images that only training without labels reads, or the defect that hides them."""
    try:
        if (unlabeled := data.extra_source(sources["train"])) is not None:
            sources["unlabeled"] = data.configured(unlabeled)
    except DataError as error:
        defects.append(Defect("unlabeled", None, str(error)))


def _paired(data: ImageDataModule, split: Split) -> tuple[Source, list[str]]:
    """Return the pairs of a split, and one sentence for each file without a partner."""
    try:
        return data.source(split), []
    except UnpairedError as error:
        data.skip_unpaired, before = True, data.skip_unpaired
        try:
            return data.source(split), error.defects
        finally:
            data.skip_unpaired = before


def _same_files(source: Source, other: Source | None) -> bool:
    if not isinstance(source, FileSource) or not isinstance(other, FileSource):
        return False
    return len(source) > 0 and set(source.images.values()) == set(other.images.values())


def _findings(source: Source, data: ImageDataModule, workers: int | None) -> Iterator[Finding]:
    """Inspect all examples in order, in several processes."""
    loader = QuietLoader(
        Inspection(source, data.num_classes, data.reading),
        batch_size=8,
        num_workers=cores() if workers is None else workers,
        collate_fn=list,
        worker_init_fn=set_up_worker,
    )
    for batch in loader:
        yield from batch


def _add(split: SplitReport, index: int, finding: Finding) -> None:
    """Add the findings about an example to the counts of its split."""
    if finding.size is not None:
        split.sizes[finding.size] += 1
        area = finding.size[0] * finding.size[1]
        if finding.moments is not None:
            sums = area * finding.moments
            split.moments = sums if split.moments is None else split.moments + sums
    if finding.deep is not None:
        split.deep += 1
        low, high = finding.deep
        split.range = (min(low, split.range[0]), max(high, split.range[1]))
    if finding.counts is not None:
        split.labeled += 1
        split.pixels += finding.counts
        split.images_with += finding.counts > 0
    if finding.defects:
        split.broken.add(index)
    for remark in finding.remarks:
        split.remarks[remark].append(finding.name)


def _judge_copies(report: Report, groups: list[list[tuple[str, str]]], trains_on_val: bool) -> None:
    """Report images that come more than once.

    A copy in two splits is a defect where one of them is trained on and the other evaluated.

    Args:
        report: Gets the defects and notes.
        groups: (split, name) of all images with the same pixels.
        trains_on_val: True where training on validation images is intended.
    """
    scored = {"val", "test"} if trains_on_val else {"train", "val", "test"}
    within: Counter[str] = Counter()
    for group in groups:
        splits = dict.fromkeys(split for split, _ in group)
        evaluated = splits.keys() & {"val", "test"}
        if len(splits.keys() & scored) > 1 or ("unlabeled" in splits and evaluated):
            copies = ", ".join(f"{name} ({split})" for split, name in group)
            message = f"the same image in two splits: {copies}"
            report.defects.append(Defect(group[-1][0], None, message))
        elif len(splits) > 1:
            within[" and ".join(splits)] += 1
        elif len(group) > 1:
            within[group[0][0]] += 1
    report.notes += [
        f"{split}: images that come more than once: {count}" for split, count in within.items()
    ]


def _notes(report: Report, data: ImageDataModule) -> list[str]:
    """Return one sentence for everything that is worth knowing and may be intended."""
    notes = [
        f"{name}: {_REMARKS[kind]} ({len(names)}): {some(names)}"
        for name, split in report.splits.items()
        for kind, names in sorted(split.remarks.items())
    ]
    notes += [_depth(name, split, data) for name, split in report.splits.items() if split.deep]
    train = report.splits.get("train")
    if train is not None and data.channels != 3 and (found := train.mean_and_std()) is not None:
        mean, std = ("[" + ",".join(f"{each:.4f}" for each in values) + "]" for values in found)
        text = "train: mean and standard deviation of the channels, to normalise images by"
        notes.append(str(DataError(text, option=(f"image_mean {mean}", f"image_std {std}"))))
    if train is not None and train.labeled:
        counts = train.pixels[: data.num_classes]
        if absent := [data.class_names[index] for index in np.flatnonzero(counts == 0)]:
            notes.append(f"train: never holds {some(absent, 10)}")
    if data.shards is not None:
        notes.append("unlabeled: the images in tar shards were not read")
    return notes


def _depth(name: str, split: SplitReport, data: ImageDataModule) -> str:
    """Return one sentence about the values of images of more than 8 bits a channel."""
    low, high = split.range
    stated = data.reading.image_range
    how = (
        "which are read by the range that each file states, or that of its type"
        if stated is None
        else f"of which {stated[0]:g}..{stated[1]:g} become black to white"
    )
    beyond = stated is not None and not stated[0] <= low <= high <= stated[1]
    return (
        f"{name}: images of more than 8 bits a channel ({split.deep}) hold {low:g}..{high:g}, "
        f"{how}{'; values beyond are clipped' if beyond else ''} (option: image_range=)"
    )
