"""The verb `compare`: whether runs differ, paired by image and by seed.

    lightning-seg compare runs/cross_entropy runs/lmp
    lightning-seg compare "baseline=runs/ce_*" lmp=runs/lmp_0,runs/lmp_1,runs/lmp_2
    lightning-seg compare --masks DIR predictions_a predictions_b

`docs/command.md` says what is computed.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import Namespace
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_seg.commands.comparison import Comparison, Row, compare_sides, percent, points, span
from lightning_seg.commands.comparison_plot import comparison_plot
from lightning_seg.commands.mask_folders import class_names, scores_of_masks
from lightning_seg.commands.sides import Side, folders_of, read_side, shortened
from lightning_seg.errors import SetupError, require_range
from lightning_seg.files import write_whole

TABLE, PLOT = "compare.csv", "compare.png"
MOST_CLASSES = 30
"""Number of classes above which a table leaves out those without a difference."""


def compare(options: Namespace) -> int:
    """Compare runs or folders of predictions, print tables and write files.

    Args:
        options: The options of the verb, parsed.

    Returns:
        The exit code, 0.

    Raises:
        SetupError: The sides cannot be read or compared, or the output folder not written to.
    """
    # closer to 1, no number of samples can show anything
    require_range(0.5, 0.999, confidence=options.confidence)
    if len(options.sides) < 2:
        raise SetupError("compare needs at least two sides, the baseline first")
    sides = _mask_sides(options) if options.masks else _run_sides(options.sides)
    baseline, *others = sides
    settings = (options.confidence, len(others), options.samples, options.seed)
    found = [compare_sides(baseline, other, *settings) for other in others]
    output = Path(options.output).expanduser()
    try:
        write_table(found, output / TABLE)
        with write_whole(output / PLOT) as part:
            comparison_plot(found, part)
    except OSError as error:
        raise SetupError(f"{output} cannot be written to: {error}", option="output") from error
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width
        console.width = max(console.width, 110)
    for comparison in found:
        _show(comparison, console)
    if len(found) > 1:
        _say(f"The {len(found)} comparisons share the probability of a false alarm.", console)
    print(f"written: {output / TABLE}, {output / PLOT}")
    return 0


def write_table(found: Sequence[Comparison], path: Path) -> None:
    """Write every row of some comparisons as CSV; scores are shares, empty for absent classes."""
    interval_names = ("images", "bootstrap", "seeds")
    ends = [f"{name}_{end}" for name in interval_names for end in ("low", "high")]
    head = ["baseline", "side", "kind", "score", "baseline_score", "side_score", "difference"]
    with write_whole(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow([*head, *ends, "p", "verdict", "images", "runs"])
        for each in found:
            for row in each.rows:
                kind = "class" if row.is_class else "mean"
                values = [row.baseline, row.other, row.difference]
                values += [*row.images, *row.bootstrap, *row.seeds, row.p]
                shown = ["" if math.isnan(value) else f"{value:.6f}" for value in values]
                counts = [len(each.pairing.ids), each.runs]
                table.writerow(
                    [each.baseline, each.other, kind, row.name, *shown, row.verdict, *counts]
                )


def _run_sides(words: Sequence[str]) -> list[Side]:
    return [read_side(name, folders) for name, folders in folders_of(words).items()]


def _mask_sides(options: Any) -> list[Side]:
    truths = Path(options.masks).expanduser()
    sides = folders_of(options.sides)
    folders = [truths, *(folder for each in sides.values() for folder in each)]
    names = class_names(options.classes, folders, options.ignore_index)
    return [
        Side(
            name, [scores_of_masks(each, truths, names, options.ignore_index) for each in own], own
        )
        for name, own in sides.items()
    ]


def _show(found: Comparison, console: Console) -> None:
    """Print the tables and sentences of one comparison."""
    console.print(_table(found, found.means, "score"))
    classes = found.classes
    if len(classes) > MOST_CLASSES:
        classes = [row for row in classes if row.shown] or classes[:10]
    if len(found.rows) > 2:
        console.print(_table(found, classes, "IoU of class"))
    if left := len(found.classes) - len(classes):
        _say(f"{left} more classes, in which no difference can be shown, are in {TABLE}.", console)
    _say(
        "mIoU is tested alone. The intervals of all other rows hold simultaneously, so that the "
        "whole comparison of two equal sides raises a false alarm in at most "
        f"{percent(1 - found.confidence)} of the cases.",
        console,
    )
    for sentence in found.sentences():
        _say(sentence, console)


def _table(found: Comparison, rows: Sequence[Row], heading: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))  # fits 80 columns
    table.add_column(heading, overflow="fold", min_width=17, max_width=44)
    for name in (found.baseline, found.other):
        table.add_column(shortened(name, 24), justify="right", overflow="fold", max_width=10)
    table.add_column("points", justify="right", no_wrap=True)
    table.add_column(f"{percent(found.confidence)} over images", justify="right", no_wrap=True)
    if found.runs > 1:
        table.add_column("over runs", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    styles = {"better": "green", "worse": "red"}
    for row in rows:
        values = [_score(row.baseline), _score(row.other), points(row.difference)]
        values += [span(row.images)] + [span(row.seeds)] * (found.runs > 1)
        verdict = Text(row.verdict if row.shown else "not shown", styles.get(row.verdict, ""))
        table.add_row(Text(shortened(row.name, 80)), *map(Text, values), verdict)
    return table


def _say(text: str, console: Console) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _score(value: float) -> str:
    return "absent" if np.isnan(value) else f"{100 * value:.2f}"
