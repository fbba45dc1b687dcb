"""Measure how the work of losses and scores grows with the image, the classes and the batch.

    python benchmarks/growth.py [--rounds 3] [--keep]

Logits are at an eighth of the image's side, labels are squares of 16 pixels of random classes. Each
row is the processor's time of one forward and backward pass, or of one batch of an evaluation. The
last column is the exponent e of the last doubling: time grows like size ** e. The number of pixels
grows with the square of the side, so that an exponent of 2 is linear in the pixels.
"""

from __future__ import annotations

import csv
import math
import statistics
import time
from collections.abc import Callable

import in_turn
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_seg.losses import (
    class_probabilities,
    cross_entropy,
    loss_max_pooling,
    probability_gradient_loss,
    pseudo_labels,
)
from lightning_seg.training.evaluation import Evaluation

FIELDS = ("table", "name", "size", "ms", "threads", "rounds", "date", "commit", "machine")
AXES: dict[str, list[tuple[int, int, int]]] = {
    # (batch, classes, side)
    "side of the image in pixels, 2 images, 21 classes": [
        (2, 21, 2**each) for each in range(6, 11)
    ],
    "classes, 2 images of 256x256": [(2, each, 256) for each in (2, 5, 10, 21, 42, 84, 171)],
    "images in a batch of 128x128, 21 classes": [(2**each, 21, 128) for each in range(6)],
}
PLACE = (2, 1, 0)  # what an axis changes: the side, the classes, the batch


def batch(images: int, classes: int, side: int) -> tuple[Tensor, Tensor]:
    """Return logits (B, C, side / 8, side / 8) with gradient and labels (B, side, side)."""
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(images, classes, side // 8, side // 8, generator=draw)
    coarse = torch.randint(classes, (images, 1, side // 16, side // 16), generator=draw)
    labels = F.interpolate(coarse.float(), scale_factor=16, mode="nearest")[:, 0].long()
    labels[:, :3] = 255
    return logits.requires_grad_(), labels


def backward(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], None]:
    """Return a function that computes a loss and its gradient."""
    return lambda logits, labels: loss(logits, labels).backward()


def evaluate(logits: Tensor, labels: Tensor) -> None:
    """Compute all scores of a batch."""
    scores = Evaluation(logits.shape[1], 255)
    scores.update(logits.detach(), labels, torch.zeros(len(logits)))


def select(logits: Tensor, labels: Tensor) -> None:
    """Compute pseudo-labels from the scores of a discriminator."""
    confidence = torch.zeros(len(logits), 1, *(side // 4 for side in logits.shape[2:]))
    pseudo_labels(logits.detach(), confidence, valid=labels != 255)


PARTS: dict[str, Callable[[Tensor, Tensor], None]] = {
    "cross-entropy": backward(cross_entropy),
    "loss max-pooling": backward(loss_max_pooling),
    "probability gradients": backward(probability_gradient_loss),
    "probability gradients, false edges": backward(
        lambda x, y: probability_gradient_loss(x, y, false_edges=1.0)
    ),
    "probabilities of an opponent": backward(
        lambda x, y: class_probabilities(x, (y.shape[1], y.shape[2])).square().sum()
    ),
    "pseudo-labels": select,
    "all scores of an evaluation": evaluate,
}


def measured(rounds: int, threads: int) -> list[dict[str, str]]:
    """Return one row per part and size."""
    found = []
    for place, (axis, sizes) in zip(PLACE, AXES.items(), strict=True):
        data = [batch(*size) for size in sizes]
        for name, part in PARTS.items():
            for size, (logits, labels) in zip(sizes, data, strict=True):
                times = []
                for _ in range(rounds + 1):
                    begin = time.process_time()
                    part(logits, labels)
                    times.append(time.process_time() - begin)
                row = {"table": axis, "name": name, "size": str(size[place])}
                row["ms"] = f"{1000 * statistics.median(times[1:]):.2f}"
                found.append({**row, "threads": str(threads), "rounds": str(rounds)})
    return [{**row, **in_turn.place()} for row in found]


def exponent(sizes: list[float], times: list[float]) -> float:
    """Return e of time = size ** e between the last two sizes."""
    return math.log(times[-1] / times[-2]) / math.log(sizes[-1] / sizes[-2])


def table(rows: list[dict[str, str]], axis: str) -> tuple[list[str], list[list[str]]]:
    """Return the head and the lines of the table of one axis."""
    part = [row for row in rows if row["table"] == axis]
    sizes = list(dict.fromkeys(row["size"] for row in part))
    lines = []
    for name in dict.fromkeys(row["name"] for row in part):
        times = [row["ms"] for row in part if row["name"] == name]
        last = exponent([float(size) for size in sizes], [float(each) for each in times])
        lines.append([name, *(f"{float(each):.1f}" for each in times), f"{last:.1f}"])
    return ["ms", *sizes, "exponent"], lines


def main() -> None:
    options = in_turn.parser(__doc__, rounds=3).parse_args()
    torch.set_num_threads(options.threads)
    rows = measured(options.rounds, options.threads)
    for axis in AXES:
        head, lines = table(rows, axis)
        shown = Table(*head, title=axis)
        for line in lines:
            shown.add_row(*line)
        Console().print(shown)
    if options.keep:
        path = in_turn.RESULTS / "performance_growth.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
