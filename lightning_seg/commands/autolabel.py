"""The verb `autolabel`: the Trainer's method, its table, its line, and a piece for the student."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_seg.callbacks import AutoLabels

CARRIED = (
    *("batch_size", "val_batch_size", "augmentation", "sampling", "num_workers", "seed", "cache"),
    *("on_bad_sample", "image_range", "max_pixels"),
    *("channels", "image_mean", "image_std", "picture_channels"),
)
"""Options of a data module that say how images are read and shown to a network."""

RESET = {
    **dict.fromkeys(("predict", "labeled", "unlabeled", "unlabeled_shards")),
    **dict.fromkeys(("unlabeled_augmentation", "strong_augmentation", "patches")),
    **{"unlabeled_batch_size": 0, "labeled_real_batch_size": 0},
    **{"stratified": False, "unlabeled_masks": False},
}
"""Options that divide the images of a data set, and their values where all have labels."""


class LabelingTrainer(Trainer):
    """Lightning's Trainer with the verb `autolabel`."""

    def autolabel(self, *args: Any, **options: Any) -> None:
        """Predict with a callback `AutoLabels` that was prepared; the arguments are `predict`'s."""
        self.predict(*args, **options)


def student_piece(folder: Path, data: Any, options: Namespace) -> dict[str, Any]:
    """Return the piece of configuration that trains on the folder that is written.

    Args:
        folder: The folder.
        data: The data module of the network that labels.
        options: The arguments of that data module, of which those about images are kept.
    """
    kept = {name: _plain(options[name]) for name in CARRIED if name in options}
    shown = {"crop_size": list(data.crop_size), "scale": list(data.scale or data.default_scale)}
    own = {"root": str(folder.absolute()), "class_names": list(data.class_names), "void": [255]}
    arguments = {**own, **shown, **kept, **RESET}
    return {"data": {"class_path": "datamodules.FolderDataModule", "init_args": arguments}}


def _plain(value: Any) -> Any:
    """Return a value of a configuration as YAML holds it."""
    if isinstance(value, Namespace):
        return value.as_dict()
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


@rank_zero_only
def show(found: dict[str, Any]) -> None:
    """Print the table of thresholds, labels and their precision.

    Args:
        found: The attribute `report` of `AutoLabels`.
    """
    known = "precision" in found["all"]
    title = "labels of images without labels"
    title += "; val: what the same thresholds keep of validation images" * known
    table = Table(title=title)
    columns = ["class", "threshold", "predicted %", "kept %"]
    columns += ["val kept %", "val right %", "val right %, all"] * known
    for name in columns:
        table.add_column(name, justify="left" if name == "class" else "right")
    total = found["all"]["predicted"]
    for row in (*found["classes"], {**found["all"], "name": "all", "threshold": None}):
        if row["name"] == "all":
            table.add_section()
        threshold = row["threshold"]
        cells: list[str | Text] = [
            Text(row["name"]),
            "" if threshold is None else f"{threshold:.4f}",
        ]
        cells += [_percent(row["predicted"], total), _percent(row["kept"], row["predicted"])]
        if known:
            cells += [_percent(row[name], 1) for name in ("coverage", "precision", "accuracy")]
        table.add_row(*cells)
    Console().print(table)


def _percent(part: float | None, whole: float) -> str:
    return "" if part is None or not whole else f"{100 * part / whole:.2f}"


def written(labels: AutoLabels, folder: str) -> str:
    """Return what was written, in one sentence.

    Args:
        labels: The callback that has written it.
        folder: The folder, as it is shown.
    """
    images, links = labels.report["images"], labels.report["files"]
    parts = [f"masks of {images['autolabelled']} images without labels"]
    if labels.with_labeled:
        parts.append(f"{images['labelled_train']} labelled training images")
        parts.append(f"{images['labelled_val']} validation images")
    left = {"all_void": "would be all void", "have_labels": "have labels already"}
    out = [f"{images[name]} images that {why}" for name, why in left.items() if images[name]]
    ways = [f"{number} {_PLURALS[way]}" for way, number in links.items()]
    line = f"written: {', '.join(parts)}, in {folder}"
    line += f" (images are {', '.join(ways)})" * bool(ways)
    return line + f", without {' and '.join(out)}" * bool(out)


_PLURALS = {
    "hard link": "hard links",
    "symbolic link": "symbolic links",
    "copy": "copies",
    "new file": "new files",
}


def student_words(pairs: Sequence[Sequence[str]], piece: str) -> list[str]:
    """Return the words of a `fit` on the new labels, with the network and method of this run.

    Args:
        pairs: Each option of this run with the words that follow it.
        piece: The piece of configuration of the new data.
    """
    files = [pair for pair in pairs if pair[0].partition("=")[0] in ("-c", "--config")]
    rest = [pair for pair in pairs if pair not in files and not pair[0].startswith(_OF_THIS_RUN)]
    return [word for pair in (*files, ["-c", piece], *rest) for word in pair]


_OF_THIS_RUN = (
    *("--data", "--autolabel", "--ckpt_path", "--inference", "--weights_only"),
    "--trainer.default_root_dir",
)
