"""The scores of a run in files: what `test` and `validate` write, and `report` and `compare` read.

A folder of scores holds

    metrics.json   the scores of all images together, and what was evaluated how
    metrics.csv    the scores of every class
    images.csv     the scores of every image
    counts.npz     the pixel counts of every image, from which all IoU scores follow
    pictures/      small pictures of some images: the image, its truth and its prediction
"""

from __future__ import annotations

import csv
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from lightning_seg.errors import SetupError
from lightning_seg.files import write_whole

SUMMARY, CLASSES, IMAGES, COUNTS, PICTURES = (
    "metrics.json",
    "metrics.csv",
    "images.csv",
    "counts.npz",
    "pictures",
)
EVERYWHERE = "iou"
"""The region of all labelled pixels; its mean over classes is the mIoU."""


@dataclass
class Scores:
    """The pixel counts of an evaluation, per image, and what was evaluated how.

    Attributes:
        ids: N ids of images, each once.
        regions: R names of regions. `iou` is all labelled pixels, `trimap_iou_<r>` the pixels
            within r pixels of a boundary of the labels, and `boundary_iou` compares the
            boundaries of each class alone.
        counts: (N, R, C, 3) int64 pixels of each image, region and class: in the intersection of
            prediction and truth, in the prediction, and in the truth.
        summary: Everything else, by name; plain values that JSON can hold. `classes` is the list of
            the C class names. The others are written by `ScoreFiles`.
    """

    ids: list[str]
    regions: list[str]
    counts: NDArray[np.int64]
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def classes(self) -> list[str]:
        """The names of the C classes."""
        names = self.summary.get("classes")
        return list(names or (f"class_{index}" for index in range(self.counts.shape[2])))

    def iou(self, region: str = EVERYWHERE) -> NDArray[np.float64]:
        """Return the (C,) IoU of every class in a region over all images, NaN where absent."""
        return iou_of(self.counts[:, self.regions.index(region)].sum(0))

    def write(self, folder: Path) -> None:
        """Write the files; each appears whole or not at all.

        Args:
            folder: The folder of scores, which is made where it is missing.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with write_whole(folder / COUNTS) as part, part.open("wb") as file:
            np.savez_compressed(
                file,
                ids=np.array(self.ids, "U"),
                regions=np.array(self.regions),
                counts=self.counts.astype(np.int32),
            )
        _write_rows(folder / CLASSES, self._class_rows())
        _write_rows(folder / IMAGES, self._image_rows())
        with write_whole(folder / SUMMARY) as part:
            # a line for each entry: a matrix with a line for each number could not be read
            lines = (
                f" {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}"
                for name, value in _plain(self.summary).items()
            )
            part.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")

    def _class_rows(self) -> Iterable[Sequence[Any]]:
        yield ["class", "pixels", "predicted", *self.regions]
        everywhere = self.counts[:, self.regions.index(EVERYWHERE)].sum(0)
        found = [self.iou(region) for region in self.regions]
        for index, name in enumerate(self.classes):
            _, predicted, truth = everywhere[index]
            yield [name, truth, predicted, *(_number(values[index]) for values in found)]
        yield ["mean", "", "", *(_number(mean_of_present(values)) for values in found)]

    def _image_rows(self) -> Iterable[Sequence[Any]]:
        yield ["id", "pixels", "pixel_accuracy", *self.regions]
        everywhere = self.counts[:, self.regions.index(EVERYWHERE)]
        for name, all_pixels, counts in zip(self.ids, everywhere, self.counts, strict=True):
            hits, _, truth = all_pixels.sum(0)
            accuracy = hits / truth if truth else np.nan
            means = [_number(mean_of_present(iou_of(region))) for region in counts]
            yield [name, truth, _number(accuracy), *means]


def iou_of(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the IoU of counts (..., 3) of intersection, prediction and truth; NaN for 0 / 0."""
    hits, predicted, truth = np.moveaxis(counts.astype(np.float64), -1, 0)
    with np.errstate(invalid="ignore"):
        return np.asarray(hits / (predicted + truth - hits))


def read_scores(folder: Path) -> Scores:
    """Read a folder of scores.

    Args:
        folder: The folder that `test` or `validate` wrote.

    Raises:
        SetupError: A file is missing or damaged.
    """
    try:
        with np.load(folder / COUNTS, allow_pickle=False) as arrays:
            ids, regions, counts = (arrays[name] for name in ("ids", "regions", "counts"))
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        if not isinstance(summary, dict):
            raise TypeError(
                f"{SUMMARY} holds a {type(summary).__name__}, expected names and values"
            )
    except FileNotFoundError as error:
        raise SetupError(f"{folder} holds no scores: {error.filename} is missing") from error
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error) as error:
        raise SetupError(f"the scores in {folder} cannot be read: {error}") from error
    found = Scores(ids.tolist(), regions.tolist(), counts.astype(np.int64), summary)
    expected = (len(found.ids), len(found.regions), len(found.classes), 3)
    if counts.shape != expected:
        raise SetupError(f"the counts in {folder} are {counts.shape}, and {expected} is expected")
    return found


def _write_rows(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    with write_whole(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def mean_of_present(values: NDArray[np.float64]) -> float:
    """Return the mean of the values that are not NaN; NaN where there are none."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else float("nan")


def _number(value: float) -> str:
    """Return a score as text with six digits, and nothing for NaN."""
    return "" if np.isnan(value) else f"{value:.6f}"


def _plain(value: Any) -> Any:
    """Return a value with NaN as None, because JSON has no NaN."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
