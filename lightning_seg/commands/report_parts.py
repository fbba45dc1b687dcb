"""The tables of a report, from scores: headline, classes, bands and confusions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_seg.commands.comparison import BETTER, Comparison, Row, points, region_name, span
from lightning_seg.commands.report_images import palette_of
from lightning_seg.scores import EVERYWHERE, Scores, mean_of_present

MOST_IN_MATRIX = 30
"""Number of classes above which the confusion matrix is a list of its largest entries."""

MOST_CONFUSIONS = 12

_NAMES = {
    "miou": "mIoU",
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean accuracy of the classes",
    "fwiou": "frequency-weighted IoU",
    "boundary_f": "boundary F-score",
    "ece": "expected calibration error",
    "loss": "loss",
}
_PLAIN = ("loss", "ece")
"""Scores that are no percentages."""


@dataclass
class Line:
    """One line of a table: a score of the run, and of the baseline where there is one.

    Attributes:
        name: What the line shows.
        value: The score as text.
        share: The score in [0, 1] for a bar; None where there is none.
        baseline: The score of the baseline as text; empty without one.
        baseline_share: The score of the baseline in [0, 1].
        difference: The difference in points with its sign.
        interval: The interval of the difference over images.
        seeds: The interval of the difference over pairs of runs.
        verdict: `better`, `worse` or empty.
        color: The colour of a class, as CSS writes it.
    """

    name: str
    value: str
    share: float | None = None
    baseline: str = ""
    baseline_share: float | None = None
    difference: str = ""
    interval: str = ""
    seeds: str = ""
    verdict: str = ""
    color: str = ""


def headline(scores: Scores, baseline: Scores | None, comparison: Comparison | None) -> list[Line]:
    """Return the mIoU and the other scores of all images together."""
    if comparison is not None:
        lines = [_compared(comparison.rows[0])]
    else:
        lines = [_alone("mIoU", mean_of_present(scores.iou()))]
    before = _numbers(baseline.summary.get("scores")) if baseline else {}
    for name, value in _numbers(scores.summary.get("scores")).items():
        if name == "miou" or name in scores.regions or name.startswith("trimap_"):
            continue
        shown = _text(name, value)
        line = Line(_NAMES.get(name, name), shown)
        if name in before:
            line.baseline = _text(name, before[name])
            change = value - before[name]
            line.difference = f"{change:+.3f}" if name in _PLAIN else points(change)
        lines.append(line)
    return lines


def bands(scores: Scores, comparison: Comparison | None) -> list[Line]:
    """Return the mean IoUs of all pixels and of the regions at boundaries."""
    if len(scores.regions) < 2:
        return []
    if comparison is not None:
        return [_compared(row) for row in comparison.means]
    regions = sorted(scores.regions, key=lambda name: name != EVERYWHERE)
    return [_alone(region_name(each), mean_of_present(scores.iou(each))) for each in regions]


def class_lines(scores: Scores, comparison: Comparison | None) -> list[Line]:
    """Return the IoU of every class.

    Classes that differ from the baseline come first, then the highest IoU, and absent ones last.
    """
    if comparison is not None:
        lines = [_compared(row) for row in comparison.rows if row.is_class]
    else:
        lines = [_alone(*each) for each in zip(scores.classes, scores.iou().tolist(), strict=True)]
    for line, color in zip(lines, palette_of(scores), strict=True):
        line.color = color
    return sorted(
        lines, key=lambda line: (not line.verdict, 1.0 if line.share is None else -line.share)
    )


def _alone(name: str, value: float) -> Line:
    return Line(name, _percentage(value), _share(value))


def _compared(row: Row) -> Line:
    return Line(
        row.name,
        _percentage(row.other),
        _share(row.other),
        _percentage(row.baseline),
        _share(row.baseline),
        points(row.difference),
        span(row.images),
        span(row.seeds),
        row.verdict if row.shown else "",
    )


def confusion_matrix(scores: Scores) -> NDArray[np.float64] | None:
    """Return (C, C) shares of the pixels of each label by prediction; None where unknown.

    The rows of absent classes are NaN.
    """
    classes = len(scores.classes)
    try:
        counts = np.array(scores.summary.get("confusion"), np.float64)
    except (TypeError, ValueError):
        return None
    if counts.shape != (classes, classes):
        return None
    with np.errstate(invalid="ignore"):
        return np.asarray(counts / counts.sum(1, keepdims=True))


def confusions(matrix: NDArray[np.float64], names: list[str]) -> list[tuple[str, str, float]]:
    """Return the most frequent errors: label, prediction, and the share of the label's pixels."""
    wrong = np.nan_to_num(matrix * (1 - np.eye(len(names))))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSIONS].tolist()
    places = [divmod(each, len(names)) for each in order]
    return [
        (names[row], names[column], wrong[row, column])
        for row, column in places
        if wrong[row, column] > 0
    ]


def in_short(lines: list[Line], kind: str) -> str:
    """Return the highest and lowest of some lines in a sentence, as the text of a chart."""
    known = [line for line in lines if line.share is not None]
    if not known:
        return f"None of the {kind} has a value."
    high, low = max(known, key=_height), min(known, key=_height)
    text = f"The highest of {len(known)} {kind} is {high.name} with {high.value}"
    text += f", the lowest is {low.name} with {low.value}."
    if any(line.baseline for line in known):
        up = sum(line.verdict == BETTER for line in known)
        down = sum(bool(line.verdict) for line in known) - up
        if up or down:
            text += f" Against the baseline {up} are better and {down} are worse"
            rest = "; of the others no difference can be shown."
            text += rest if up + down < len(known) else "."
        else:
            text += " Against the baseline, no difference can be shown in any of them."
    return text


def _height(line: Line) -> float:
    return line.share or 0.0


def _numbers(value: Any) -> dict[str, float]:
    """Return the finite numbers of a mapping."""
    if not isinstance(value, dict):
        return {}
    return {
        str(name): float(each)
        for name, each in value.items()
        if isinstance(each, (int, float)) and math.isfinite(each)
    }


def _text(name: str, value: float) -> str:
    return f"{value:.3f}" if name in _PLAIN else _percentage(value)


def _share(value: float) -> float | None:
    return None if math.isnan(value) else value


def _percentage(value: float) -> str:
    return "absent" if math.isnan(value) else f"{100 * value:.1f} %"
