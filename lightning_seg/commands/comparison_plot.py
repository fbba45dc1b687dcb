"""The plot of a comparison: differences with their intervals."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_seg.commands.comparison import BETTER, WORSE, Comparison, Row, percent

MOST_ROWS = 48
"""Number of rows in a plot; of more classes, those that differ most are drawn."""

_COLORS = {BETTER: "#0a7d43", WORSE: "#b3261e"}


def comparison_plot(found: Sequence[Comparison], path: Path) -> None:
    """Draw the differences of every side from the baseline, one panel a side.

    Args:
        found: The comparisons.
        path: The PNG file to write.
    """
    # Imported here, because it takes long. Unlike pyplot, Figure has no global state.
    from matplotlib.figure import Figure

    panels = [[*each.means, *each.classes][:MOST_ROWS] for each in found]
    height = 0.26 * max(map(len, panels)) + 1.5
    figure = Figure(figsize=(7.5 * len(found), height), dpi=110, layout="constrained")
    for axes, each, rows in zip(
        figure.subplots(1, len(found), squeeze=False)[0], found, panels, strict=True
    ):
        _draw(axes, each, rows)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # names in a script that the font lacks
        figure.savefig(path, format="png")


def _draw(axes: Any, found: Comparison, rows: Sequence[Row]) -> None:
    axes.axvline(0, color="0.3", linewidth=0.9)
    for place, row in enumerate(rows):
        color = _COLORS.get(row.verdict, "0.45")
        for interval, offset, width in ((row.images, 0.0, 2.2), (row.seeds, 0.24, 1.0)):
            ends = [100 * end for end in interval]
            axes.plot(ends, [place + offset] * 2, color=color, lw=width, solid_capstyle="butt")
        mark = "o" if row.shown else "D"
        face = color if row.shown else "white"
        axes.plot(100 * row.difference, place, mark, color=color, markerfacecolor=face, ms=5)
    means = sum(not row.is_class for row in rows)
    if means < len(rows):
        axes.axhline(means - 0.5, color="0.85", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [_label(row.name) for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(f"difference in points, {percent(found.confidence)} intervals", fontsize=9)
    over = "thick: over images, thin: over runs" if found.runs > 1 else "over images"
    axes.set_title(
        f"{_label(found.other)} against {_label(found.baseline)} ({over})", fontsize=10, loc="left"
    )
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    _limit(axes, rows)


def _limit(axes: Any, rows: Sequence[Row]) -> None:
    """Cut t intervals of two runs off, which can be much wider than the rest of the plot."""
    ends = [100 * end for row in rows for end in row.images if end == end]
    if ends:
        reach = 1.6 * max(abs(end) for end in ends) or 1
        low, high = axes.get_xlim()
        axes.set_xlim(max(low, -reach), min(high, reach))


def _label(name: str) -> str:
    """Return a short name as matplotlib prints it unchanged: `$` would begin a formula."""
    name = " ".join(name.split())
    short = name if len(name) <= 40 else f"{name[:39]}…"
    return short.replace("$", r"\$")
