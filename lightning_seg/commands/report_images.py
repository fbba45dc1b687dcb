"""The images of a report: which are shown, and how they get into the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lightning_seg.pictures import color_table, overlay
from lightning_seg.scores import EVERYWHERE, Scores, iou_of

EACH = 4
"""Number of images in each group."""

BUDGET = 6_000_000
"""Largest number of characters of all pictures together."""


@dataclass
class Shown:
    """One image of a report.

    Attributes:
        id: The id of the image.
        caption: Its scores in words.
        pictures: Names of views and their JPEG as `data:` addresses.
    """

    id: str
    caption: str
    pictures: dict[str, str] = field(default_factory=dict)


def image_groups(
    scores: Scores, folder: Path, baseline: tuple[Scores, Path] | None
) -> tuple[dict[str, list[Shown]], list[int]]:
    """Return the shown images by heading, and the class ids that occur in them.

    Args:
        scores: The scores of the run.
        folder: The folder of the scores, below which the pictures are.
        baseline: The scores of the baseline and their folder.
    """
    listed = listed_pictures(scores, folder)
    values = _image_scores(scores)
    ranked = sorted((each for each in listed if each in values), key=values.__getitem__)
    before = _image_scores(baseline[0]) if baseline else {}
    changed = sorted(
        (each for each in ranked if each in before and values[each] != before[each]),
        key=lambda name: -abs(values[name] - before[name]),
    )
    half = min(EACH, -(-len(ranked) // 2))  # few images: none is among the best and the worst
    chosen = {
        "Worst images": ranked[:half],
        "Best images": ranked[half:][-half:][::-1],
        "Most changed against the baseline": changed[:EACH],
    }
    names = {name for group in chosen.values() for name in group}
    earlier = listed_pictures(baseline[0], baseline[1]) if baseline else {}
    table = _table(scores)
    for side in (512, 384, 256, 160):
        pictures, seen = {}, np.zeros(256, bool)
        for name in names:
            extra = earlier.get(name, {}).get("prediction")
            pictures[name] = _views(listed[name], extra, table, side, seen)
        if sum(len(each) for views in pictures.values() for each in views.values()) <= BUDGET:
            break
    groups = {
        heading: [
            Shown(name, _caption(values[name], before.get(name)), pictures[name])
            for name in group
            if pictures[name]
        ]
        for heading, group in chosen.items()
    }
    shown = np.flatnonzero(seen[: len(scores.classes)]).tolist()
    return {heading: group for heading, group in groups.items() if group}, shown


def listed_pictures(scores: Scores, folder: Path) -> dict[str, dict[str, Path]]:
    """Return the files of the pictures by the id of the image; those that exist."""
    found = {}
    for each in _entries(scores.summary.get("pictures")):
        paths = {
            kind: folder / str(each[kind])
            for kind in ("image", "truth", "prediction")
            if isinstance(each.get(kind), str)
        }
        if len(paths) == 3 and all(path.is_file() for path in paths.values()):
            found[str(each.get("id"))] = paths
    return found


def _entries(value: Any) -> list[Mapping[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _image_scores(scores: Scores) -> dict[str, float]:
    """Return the mean IoU over the classes of each image that has labels, by id."""
    iou = iou_of(scores.counts[:, scores.regions.index(EVERYWHERE)])
    return {
        name: float(np.nanmean(each))
        for name, each in zip(scores.ids, iou, strict=True)
        if not np.isnan(each).all()
    }


def _caption(value: float, before: float | None) -> str:
    text = f"mean IoU of its classes {100 * value:.1f} %"
    if before is None:
        return text
    return f"{text}, baseline {100 * before:.1f} %, difference {100 * (value - before):+.1f} points"


def _table(scores: Scores) -> NDArray[np.uint8]:
    classes = len(scores.classes)
    palette = scores.summary.get("palette")
    try:
        return color_table(classes, palette)
    except (TypeError, ValueError, OverflowError):  # a palette of another form
        return color_table(classes)


def palette_of(scores: Scores) -> list[str]:
    """Return the colour of every class as CSS writes it."""
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in _table(scores)[: len(scores.classes)].tolist()]


def _views(
    paths: Mapping[str, Path],
    baseline: Path | None,
    table: NDArray[np.uint8],
    side: int,
    seen: NDArray[np.bool_],
) -> dict[str, str]:
    """Return the views of one image; none where a file is damaged."""
    files = {"truth": paths["truth"], "prediction": paths["prediction"]}
    if baseline is not None:
        files["baseline"] = baseline
    try:
        with Image.open(paths["image"]) as opened:
            image = opened.convert("RGB")
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        views = {"image": _address(image)}
        for name, path in files.items():
            with Image.open(path) as opened:
                labels = np.asarray(opened.resize(image.size, Image.Resampling.NEAREST))
            if labels.ndim != 2:
                return {}
            seen[np.unique(labels)] = True
            mixed = overlay(np.asarray(image), labels.astype(np.uint8), table, 0.65)
            views[name] = _address(Image.fromarray(mixed))
    except (OSError, SyntaxError, ValueError):
        return {}
    return views


def _address(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def legend(scores: Scores, shown: Sequence[int]) -> list[tuple[str, str]]:
    """Return colour and name of the classes in the shown images."""
    colors, names = palette_of(scores), scores.classes
    return [(colors[index], names[index]) for index in shown]
