"""What the trainings of the evidence say: differences from cross-entropy over seeds.

    python benchmarks/evidence_table.py

writes the tables of `docs/results.md` and the plot `docs/results.png` from
`benchmarks/results/evidence.csv`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.stats import t as student

ROOT = Path(__file__).resolve().parents[1]
GRID = ROOT / "benchmarks" / "evidence" / "grid.yaml"
PAGE = ROOT / "docs" / "results.md"
BEGIN, END = "<!-- made by benchmarks/evidence_table.py -->\n", "<!-- end -->\n"
SCORES = {
    "miou": "mIoU",
    "rare_third": "rarest third",
    "boundary_iou": "boundary IoU",
    "trimap_iou_1": "trimap 1 px",
    "trimap_iou_3": "trimap 3 px",
}
"""The scores of the tables, by their names in the CSV."""
BASELINE = "ce"


@dataclass
class Cell:
    """A score of a row of the grid, in points.

    Attributes:
        mean: The mean difference from cross-entropy over seeds; of cross-entropy, the mean score.
        half: Half the width of the 95 % t interval of the mean; NaN for a single seed.
        seeds: Number of seeds that both have.
    """

    mean: float
    half: float
    seeds: int

    @property
    def shown(self) -> bool:
        """Whether the interval excludes 0."""
        return abs(self.mean) > self.half


def cell(rows: Sequence[dict[str, Any]], row: str, score: str) -> Cell | None:
    """Return a score of a row, None where no seed is there.

    Args:
        rows: The rows of the CSV of one setting.
        row: The name of the row in the grid.
        score: The name of the score.
    """
    by_seed = {
        name: {each["seed"]: 100 * float(each[score]) for each in rows if each["row"] == name}
        for name in (BASELINE, row)
    }
    seeds = sorted(by_seed[row].keys() & by_seed[BASELINE].keys())
    if not seeds:
        return None
    values = np.array([by_seed[row][seed] for seed in seeds])
    if row != BASELINE:
        values = values - [by_seed[BASELINE][seed] for seed in seeds]
    half = np.nan
    if len(seeds) > 1:
        scale = student.ppf(0.975, len(seeds) - 1) / np.sqrt(len(seeds))
        half = scale * values.std(ddof=1)
    return Cell(float(values.mean()), float(half), len(seeds))


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a CSV, none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def tables(rows: Sequence[dict[str, Any]], grid: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of a table in Markdown for every setting that has trainings."""
    for name, setting in grid["settings"].items():
        here = [each for each in rows if each["setting"] == name]
        cells = {
            row: {score: cell(here, row, score) for score in SCORES} for row in setting["rows"]
        }
        cells = {row: found for row, found in cells.items() if found["miou"] is not None}
        if not cells:
            continue
        seconds = np.mean([float(each["cpu_seconds"]) for each in here])
        yield f"\n### {setting['title']}\n"
        yield f"A training took {seconds:.0f} CPU seconds on average.\n"
        yield f"| row | seeds | {' | '.join(SCORES.values())} |"
        yield f"|---|---|{'---|' * len(SCORES)}"
        for row, found in cells.items():
            texts = [_text(each, row) for each in found.values()]
            seeds = found["miou"].seeds  # type: ignore[union-attr]
            yield f"| {grid['rows'][row]['title']} | {seeds} | {' | '.join(texts)} |"


def plot(rows: Sequence[dict[str, Any]], grid: dict[str, Any], path: Path) -> None:
    """Draw the differences from cross-entropy in mIoU and Boundary IoU with their intervals.

    Args:
        rows: The rows of the CSV.
        grid: The grid.
        path: The PNG file to write.
    """
    from matplotlib.figure import Figure

    lines: list[tuple[str, dict[str, Cell | None] | None]] = []
    for name, setting in grid["settings"].items():
        here = [each for each in rows if each["setting"] == name]
        found = [
            (grid["rows"][row]["title"], {score: cell(here, row, score) for score in SCORES})
            for row in setting["rows"]
            if row != BASELINE and cell(here, row, "miou") is not None
        ]
        if found:
            lines += [(setting["title"], None), *found]
    figure = Figure(figsize=(11, 0.27 * len(lines) + 1), dpi=100, layout="constrained")
    shown = ("miou", "boundary_iou")
    panels = figure.subplots(1, len(shown), sharey=True)
    for axes, score in zip(panels, shown, strict=True):
        for place, (_, cells) in enumerate(lines):
            each = cells[score] if cells else None
            if each is not None:
                half = 0 if np.isnan(each.half) else each.half
                color = "tab:blue" if each.shown else "0.5"
                axes.errorbar(each.mean, place, xerr=half, fmt="o", color=color, ms=4, capsize=2)
        axes.axvline(0, color="0.3", lw=0.8)
        axes.set(xlabel=f"points of {SCORES[score]} over cross-entropy", ylim=(len(lines), -1))
        axes.grid(axis="x", color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(lines)), [title for title, _ in lines], fontsize=8)
    for label, (_, cells) in zip(panels[0].get_yticklabels(), lines, strict=True):
        label.set_fontweight("normal" if cells else "bold")
    figure.savefig(path)


def _text(each: Cell | None, row: str) -> str:
    if each is None:
        return ""
    if row == BASELINE:
        return f"{each.mean:.1f}"
    interval = "" if np.isnan(each.half) else f" ± {each.half:.1f}"
    text = f"{each.mean:+.1f}{interval}"
    return f"**{text}**" if each.shown else text


def written(page: str) -> str:
    """Return the page with the tables of the CSV as it is now."""
    grid = yaml.safe_load(GRID.read_text(encoding="utf-8"))
    rows = read(ROOT / "benchmarks" / "results" / "evidence.csv")
    head, _, rest = page.partition(BEGIN)
    return f"{head}{BEGIN}" + "\n".join(tables(rows, grid)) + f"\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    everything = read(ROOT / "benchmarks" / "results" / "evidence.csv")
    plot(everything, yaml.safe_load(GRID.read_text(encoding="utf-8")), PAGE.with_suffix(".png"))
