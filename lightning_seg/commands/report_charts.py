"""Charts of a report: where lines, ticks and marks stand in an SVG, and what a chart says in words.

The template `report_page/report.html.jinja` draws them, in the colours of the page.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 14, 34
MOST_POINTS, MOST_LINES = 300, 5

Points = list[tuple[float, float]]
Bins = list[dict[str, float]]


@dataclass
class Chart:
    """Lines in a coordinate system.

    Attributes:
        title: The heading.
        alt: The key numbers in words.
        x_label: What the horizontal axis shows.
        x_ticks: Places in the SVG and labels.
        y_ticks: The same of the vertical axis.
        lines: Names and points of SVG polylines.
        bars: Rectangles: x, y, width and height.
        diagonal: Whether a line shows where both axes are equal.
    """

    title: str
    alt: str
    x_label: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    lines: list[tuple[str, str]]
    bars: list[tuple[float, float, float, float]]
    diagonal: str = ""


def read_curves(path: Path) -> dict[str, Points]:
    """Return (step, value) of every column of a `metrics.csv`.

    Rows and values that are not numbers, such as a last line that was cut off, are left out.
    """
    curves: dict[str, Points] = {}
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            for row in csv.DictReader(file):
                if (step := _number(row.get("step"))) is None:
                    continue
                for name, text in row.items():
                    used = name and name not in ("step", "epoch") and not name.startswith("test/")
                    value = _number(text) if used else None
                    if name and value is not None:
                        curves.setdefault(name, []).append((step, value))
    except (OSError, csv.Error):
        pass  # what was read before is shown
    return curves


def _number(text: Any) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def training_charts(curves: dict[str, Points], baseline: dict[str, Points]) -> list[Chart]:
    """Return the charts of loss, scores and learning rate, of which there are values.

    Args:
        curves: The curves of the run by name.
        baseline: The curves of the baseline, of which the mIoU is drawn.
    """
    loss = _first(curves, ("train/loss", "val/loss"), "loss")
    scores = _first(curves, ("val/miou", "val/boundary_iou", "val/trimap_iou_3"), "val/miou")
    if scores and "val/miou" in baseline:
        scores = {**scores, "val/miou of the baseline": baseline["val/miou"]}
    rates = {name: curves[name] for name in sorted(curves) if name.startswith("lr-")}
    groups = {"Loss": loss, "Scores of the validation images": scores, "Learning rate": rates}
    return [_line_chart(title, lines) for title, lines in groups.items() if lines]


def _first(curves: dict[str, Points], names: Iterable[str], part: str) -> dict[str, Points]:
    """Return the curves of some names, then others whose name holds a part."""
    chosen = [name for name in names if name in curves]
    chosen += [name for name in sorted(curves) if part in name and name not in chosen]
    return {name: curves[name] for name in chosen[:MOST_LINES]}


def _line_chart(title: str, lines: dict[str, Points]) -> Chart:
    lines = dict(list(lines.items())[:MOST_LINES])
    every = [point for points in lines.values() for point in points]
    x_range, y_range = (_range(axis) for axis in zip(*every, strict=True))
    drawn = []
    for name, points in lines.items():
        places = [f"{_across(x, x_range):.1f},{_down(y, y_range):.1f}" for x, y in _thinned(points)]
        drawn.append((name, " ".join(places)))
    said = [
        f"{name} goes from {points[0][1]:.3g} at step {points[0][0]:.0f} to {points[-1][1]:.3g} at "
        f"step {points[-1][0]:.0f}; its lowest value is {min(y for _, y in points):.3g} and its "
        f"highest is {max(y for _, y in points):.3g}."
        for name, points in lines.items()
    ]
    return Chart(
        title,
        f"{title}. {' '.join(said)}",
        "step",
        [(_across(value, x_range), label) for value, label in _ticks(*x_range)],
        [(_down(value, y_range), label) for value, label in _ticks(*y_range)],
        drawn,
        [],
    )


def reliability_chart(bins: Bins, error: float | None) -> Chart | None:
    """Return the chart of accuracy by confidence; None where no bin has pixels.

    Args:
        bins: `low`, `high`, `count`, `confidence` and `accuracy` of each range of confidences.
        error: The expected calibration error, in [0, 1].
    """
    filled = [each for each in bins if each.get("count") and each.get("accuracy") is not None]
    if not filled:
        return None
    unit = (0.0, 1.0)
    total, most = sum(each["count"] for each in filled), max(each["count"] for each in filled)
    places, bars, said = [], [], []
    for each in filled:
        places.append(
            f"{_across(each['confidence'], unit):.1f},{_down(each['accuracy'], unit):.1f}"
        )
        left, right = (_across(each[end], unit) for end in ("low", "high"))
        height = 0.25 * (HEIGHT - TOP - BOTTOM) * each["count"] / most
        bars.append((left + 1, HEIGHT - BOTTOM - height, max(1, right - left - 2), height))
        said.append(
            f"confidence {each['confidence']:.2f}: accuracy {each['accuracy']:.2f}, "
            f"{each['count'] / total:.1%} of the pixels"
        )
    known = f" The expected calibration error is {error:.3f}." if error is not None else ""
    ticks = [(each / 5, f"{each / 5:.1f}") for each in range(6)]
    return Chart(
        "Accuracy by confidence",
        f"Reliability diagram.{known} {'; '.join(said)}.",
        "confidence",
        [(_across(value, unit), label) for value, label in ticks],
        [(_down(value, unit), label) for value, label in ticks],
        [("accuracy", " ".join(places))],
        bars,
        f"{LEFT},{HEIGHT - BOTTOM} {WIDTH - RIGHT},{TOP}",
    )


def _across(value: float, limits: tuple[float, float]) -> float:
    low, high = limits
    return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)


def _down(value: float, limits: tuple[float, float]) -> float:
    low, high = limits
    return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = (high - low) * 0.04 or abs(high) * 0.1 or 1
    return low - margin * (low != 0), high + margin


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    from matplotlib.ticker import MaxNLocator  # imported here, because it takes long

    values = [each for each in MaxNLocator(5).tick_values(low, high) if low <= each <= high]
    return [(float(each), f"{each:.6g}") for each in values]


def _thinned(points: Points) -> Points:
    """Return means of successive points, where there are too many of them."""
    step = -(-len(points) // MOST_POINTS)
    groups = [points[start : start + step] for start in range(0, len(points), step)]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]
