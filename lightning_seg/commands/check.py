"""The verb `check`: its options, and how the report of a dataset is shown.

`cli.py` passes the data module's class and the function that reads a dataset: this file does not
know how data are read.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]
from jsonargparse.typing import NonNegativeInt
from lightning import LightningDataModule
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from lightning_seg.callbacks import ON_EVERY_RUN
from lightning_seg.commands.messages import in_flags
from lightning_seg.commands.parser import ReadableParser
from lightning_seg.commands.verbs import VERBS, VerbParser
from lightning_seg.errors import SetupError
from lightning_seg.files import write_whole
from lightning_seg.pictures import color_table, contact_sheet, share_chart
from lightning_seg.views import rgb_array, rgb_of

if TYPE_CHECKING:
    from datamodules.scan import Report, SplitReport

REPORT, CHART, SHEET = "report.json", "class_shares.png", "contact_sheet.jpg"

# a run's own configuration is accepted, and these parts of it are not used
_OTHER_PARTS = (
    "model",
    "trainer",
    "seed_everything",
    *ON_EVERY_RUN,
    "ckpt_path",
    "weights_only",
    "verbose",
    "return_predictions",
)


def check(
    words: Sequence[str], data_class: type[LightningDataModule], scan: Callable[..., Report]
) -> int:
    """Read a dataset, print the report and write its files.

    Args:
        words: The command line after `check`.
        data_class: The base class of the data modules that `--data` may name.
        scan: Makes the report of a data module, given the number of worker processes and a
            function that is called with split, images read and images in all.

    Returns:
        The exit code: 0 where nothing is wrong with the data, 1 where something is.

    Raises:
        SystemExit: With 2, an option is wrong.
        SetupError: The output folder cannot be written to.
        DataError: No split was found.
    """
    parser = check_parser(data_class)
    options = parser.parse_args(words)
    data = parser.instantiate_classes(options).data
    output = _emptied(Path(options.output).expanduser())
    with _progress() as progress:
        tasks: dict[str, Any] = {}

        def advance(split: str, done: int, total: int) -> None:
            if split not in tasks:
                tasks[split] = progress.add_task(split, total=total)
            progress.update(tasks[split], completed=done)

        report = scan(data, options.workers, advance)
    colors = color_table(data.num_classes, data.palette)
    _show(report, colors)
    written = [REPORT, *_draw(report, colors, output, data.picture_channels)]
    content = {"data": options.data.as_dict(), **report.as_dict()}
    with write_whole(output / REPORT) as part:
        text = json.dumps(content, indent=1, ensure_ascii=False, default=str)
        part.write_text(f"{text}\n", encoding="utf-8")
    count = sum(len(split.source) for split in report.splits.values())
    defects = f"{len(report.defects) or 'no'} defect{'s' * (len(report.defects) != 1)}"
    images = f"{count} image{'s' * (count != 1)}"
    print(f"{defects} in {images}; {', '.join(written)} are in {output}")
    return 1 if report.defects else 0


def check_parser(data_class: type[LightningDataModule]) -> ReadableParser:
    """Return the parser of `check`'s options."""
    parser = ReadableParser(
        prog=f"{Path(sys.argv[0]).name} check",
        description=VERBS["check"],
    )
    parser.add_argument(
        "-c",
        "--config",
        action=ActionConfigFile,
        help="A configuration, as for fit. Only its part `data` is used.",
    )
    parser.add_argument("--output", default="runs/check", help="The folder for the report.")
    parser.add_argument(
        "--workers",
        type=NonNegativeInt | None,
        default=None,
        help="Number of processes that read; 0 reads in this one, null takes one per core.",
    )
    parser.add_subclass_arguments(data_class, "data", fail_untyped=False, required=True)
    parser.set_defaults({"data": "SyntheticScenesDataModule"})
    for part in _OTHER_PARTS:
        parser.add_argument(f"--{part}", type=Any, help=argparse.SUPPRESS)
    return parser


def _emptied(output: Path) -> Path:
    """Make the folder, and remove the files of an earlier check from it."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name in (REPORT, CHART, SHEET):
            (output / name).unlink(missing_ok=True)
    except OSError as error:
        raise SetupError(f"{output} cannot be written to: {error}", option="output") from error
    return output


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _shown(image: NDArray[Any], channels: Sequence[int] | None) -> NDArray[np.uint8]:
    """Return the (H, W, 3) picture of an image (H, W, C) of any number of channels."""
    return rgb_array(rgb_of(torch.from_numpy(np.array(image)).permute(2, 0, 1), channels))


def _draw(report: Report, colors: Any, output: Path, channels: Sequence[int] | None) -> list[str]:
    """Write the chart and the contact sheet where there is something to draw; return names.

    Args:
        report: What the dataset holds.
        colors: The colours of the classes.
        output: The folder of the files.
        channels: The channels that pictures show; None chooses some.
    """
    written = []
    classes = len(report.class_names)
    labeled = {name: split for name, split in report.splits.items() if split.labeled}
    if labeled:
        shares = {name: split.shares()[:classes] for name, split in labeled.items()}
        share_chart(output / CHART, report.class_names, shares, colors)
        written.append(CHART)
    each = 24 // max(1, len(report.splits))
    groups = {
        f"{name}, {len(split.source)} images": [
            (one.id, _shown(one.image, channels), one.mask) for one in split.examples(each)
        ]
        for name, split in report.splits.items()
    }
    if groups := {heading: pictures for heading, pictures in groups.items() if pictures}:
        sheet = contact_sheet(groups, report.class_names, colors)
        sheet.save(output / SHEET, quality=90, subsampling=0)
        written.append(SHEET)
    return written


def _show(report: Report, colors: Any) -> None:
    """Print the tables, the notes and the defects."""
    console = Console()
    console.print(_split_table(report))
    labeled = {name: split for name, split in report.splits.items() if split.labeled}
    if labeled:
        console.print(_class_table(report.class_names, labeled, colors))
    for note in report.notes:
        shown = in_flags(note, "data", VerbParser.keys())
        console.print(f"note: {shown}", markup=False, highlight=False, soft_wrap=True)
    for defect in report.defects[:100]:
        message = in_flags(defect.message, "data", VerbParser.keys())
        text = f"{defect.split}: {message}"
        console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
    if (left := len(report.defects) - 100) > 0:
        print(f"and {left} more defects: see {REPORT}")


def _split_table(report: Report) -> Table:
    table = Table(title="images, and their width x height")
    for name in ("split", "images", "with labels", "sizes", "smallest", "median", "largest"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for name, split in report.splits.items():
        sizes = [f"{width}x{height}" for height, width in split.typical_sizes()]
        numbers = (len(split.source), split.labeled, len(split.sizes))
        table.add_row(name, *map(str, numbers), *sizes)
    return table


def _class_table(names: list[str], splits: dict[str, SplitReport], colors: Any) -> Table:
    table = Table(title="classes: % of the pixels, and images that hold them")
    table.add_column("class")
    for name in splits:
        table.add_column(f"{name} %", justify="right")
        table.add_column("images", justify="right")
    shares = {name: split.shares() for name, split in splits.items()}

    def add(index: int, label: Text) -> None:
        cells = []
        for name, split in splits.items():
            cells += [_percent(shares[name][index]), str(split.images_with[index])]
        table.add_row(label, *cells)

    for index, name in enumerate(names):
        red, green, blue = colors[index]
        add(index, Text.assemble(("■ ", f"rgb({red},{green},{blue})"), name))
    table.add_section()
    add(255, Text("  void"))
    return table


def _percent(share: float) -> str:
    if share == 0:
        return "absent"
    return f"{100 * share:.2f}" if share >= 0.0001 else f"{100 * share:.1g}"
