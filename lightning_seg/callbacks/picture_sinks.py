"""Where the pictures of a validation go: files, and the loggers that take pictures.

A logger class that is not listed in `SINKS` gets no pictures; the files are written in any case.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger
from numpy.typing import NDArray
from PIL import Image

from lightning_seg.callbacks.drawing import Drawing, Example
from lightning_seg.files import write_whole
from lightning_seg.views import VOID

MOST_CLASSES = 50
"""Largest number of classes in a confusion matrix of W&B, which shows at most 10,000 cells."""


def write_files(drawing: Drawing, folder: Path) -> int:
    """Write every sheet as `<name>_<step>.png`; return the number of bytes.

    The colours have 6 bits a channel, which nobody sees and which makes the files a third smaller.

    Raises:
        OSError: The folder cannot be written.
    """
    written = 0
    for name, sheet in drawing.sheets.items():
        picture = Image.fromarray(sheet >> 2 << 2 | sheet >> 6)
        path = folder / f"{name}_{drawing.step:07d}.png"
        with write_whole(path) as part:
            picture.save(part, format="PNG")
        written += path.stat().st_size
    return written


def to_wandb(logger: Logger, drawing: Drawing) -> int:
    """Log sheets, images with masks, tables and charts to W&B; return the number of bytes.

    The masks can be switched on and off by class. All keys begin with `pictures/`.
    """
    import wandb

    content: dict[str, Any] = {}
    size = 0
    for name, sheet in drawing.sheets.items():
        image = wandb.Image(Image.fromarray(sheet), file_type="jpg")
        content[f"pictures/{name}"] = image
        size += _jpeg_size(sheet)
    labels = {**dict(enumerate(drawing.class_names)), VOID: "void"}

    # W&B shows a list of images well only where they have one size
    shapes = [example.image.shape for example in drawing.examples]
    height, width = (max((shape[at] for shape in shapes), default=0) for at in (0, 1))

    def overlaid(example: Example, whole: bool = False) -> Any:
        masks: dict[str, Any] = {
            name: {
                "mask_data": mask if whole else _padded(mask, height, width, VOID),
                "class_labels": labels,
            }
            for name, mask in example.masks.items()
        }
        image = example.image if whole else _padded(example.image, height, width, 0)
        picture = Image.fromarray(image)
        return wandb.Image(picture, caption=example.id, masks=masks or None, file_type="jpg")

    if examples := [each for each in drawing.examples if each.masks]:
        content["pictures/masks"] = [overlaid(each) for each in examples]
        size += sum(_jpeg_size(each.image) for each in examples)
    if drawing.hardest:
        rows = [[each.id, each.miou, overlaid(each, whole=True)] for each in drawing.hardest]
        columns: list[str | int] = ["image id", "mIoU of the image", "picture"]
        content["pictures/hardest_images"] = wandb.Table(columns=columns, data=rows)
        size += sum(_jpeg_size(each.image) for each in drawing.hardest)
    if drawing.confusion is not None:
        content |= _charts(drawing.confusion.numpy(), drawing.class_names)
    if content:
        logger.log_metrics(content, step=drawing.logged_step)
    return size


def _padded(picture: NDArray[np.uint8], height: int, width: int, value: int) -> NDArray[np.uint8]:
    """Return an (H, W) or (H, W, 3) picture with rows and columns of a value added at the end."""
    added = [(0, height - picture.shape[0]), (0, width - picture.shape[1])]
    return np.pad(picture, added + [(0, 0)] * (picture.ndim - 2), constant_values=value)


def _charts(confusion: NDArray[np.int64], names: list[str]) -> dict[str, Any]:
    """Return the confusion matrix and the IoU of every class as charts of W&B."""
    import wandb

    hits, truth, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    union = truth + predicted - hits
    shown = np.argsort(-truth, kind="stable")[:MOST_CLASSES]
    rows = [
        [names[i], names[j], int(confusion[i, j])] for i in sorted(shown) for j in sorted(shown)
    ]
    more = f", the {MOST_CLASSES} most frequent of {len(names)} classes"
    title = f"Pixels of each class and their predictions{more if len(names) > len(shown) else ''}"
    columns: list[str | int] = ["Actual", "Predicted", "nPredictions"]
    matrix = wandb.plot_table(
        "wandb/confusion_matrix/v1",
        wandb.Table(columns=columns, data=rows),
        {str(column): column for column in columns},
        {"title": title},
    )
    bars = [[name, hits[i] / union[i]] for i, name in enumerate(names) if union[i] > 0]
    table = wandb.Table(columns=["class", "IoU"], data=[[name, float(iou)] for name, iou in bars])
    return {
        "pictures/confusion_matrix": matrix,
        "pictures/iou_of_classes": wandb.plot.bar(table, "class", "IoU", "IoU of every class"),
    }


def to_tensorboard(logger: Logger, drawing: Drawing) -> int:
    """Log the sheets to TensorBoard, which has no masks to switch; return the number of bytes."""
    writer: Any = logger.experiment  # type: ignore[attr-defined]
    for name, sheet in drawing.sheets.items():
        writer.add_image(f"pictures/{name}", sheet, drawing.logged_step, dataformats="HWC")
    return 2 * sum(_jpeg_size(sheet) for sheet in drawing.sheets.values())  # it writes PNG


SINKS: Mapping[type[Logger], Callable[[Logger, Drawing], int]] = {
    WandbLogger: to_wandb,
    TensorBoardLogger: to_tensorboard,
}
"""The function that logs pictures, by the class of the logger; it returns the bytes it took."""


def send(logger: Logger, drawing: Drawing) -> int:
    """Log pictures where the logger takes pictures; return the number of bytes, 0 elsewhere."""
    return sum(sink(logger, drawing) for kind, sink in SINKS.items() if isinstance(logger, kind))


def _jpeg_size(picture: NDArray[np.uint8]) -> int:
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG")
    return buffer.tell()
