"""Measure losses of logits smaller than the labels against upsampling them first.

    python benchmarks/smaller_logits.py [--rounds 3] [--threads 1]

Each row is one shape. The logits are random, the labels are 8 x 8 areas of random classes, and a
tenth of the pixels is void. All forms run in one process, in turn in every round, forward and
backward. The table shows the median time and the peak memory beyond logits and labels of
`F.interpolate` followed by `F.cross_entropy`, and the ratios of the losses of this package to both.
The same rows are written to `benchmarks/results/smaller_logits.csv`.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from losses import peak
from torch import Tensor

from lightning_seg.losses import cross_entropy, loss_max_pooling, probability_gradient_loss

SHAPES = ((4, 21, 321, 16), (2, 21, 257, 8), (4, 2, 513, 4), (2, 19, 512, 4), (2, 150, 512, 8))
RESULT = Path(__file__).parent / "results" / "smaller_logits.csv"
Loss = Callable[[Tensor, Tensor], Tensor]


def upsampled_first(logits: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy of logits that were upsampled before."""
    whole = F.interpolate(logits, size=target.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(whole, target, ignore_index=255)


LOSSES: dict[str, Loss] = {
    "upsampled first": upsampled_first,
    "cross-entropy": cross_entropy,
    "loss max-pooling": loss_max_pooling,
    "CPG": probability_gradient_loss,
}


def step(loss: Loss, logits: Tensor, target: Tensor) -> None:
    """Do one forward and backward pass."""
    loss(logits.detach().requires_grad_(), target).backward()


def main() -> None:
    """Measure all shapes, print the table and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = []
    for images, classes, side, stride in SHAPES:
        small = -(-side // stride)
        logits = 3 * torch.randn(images, classes, small, small)
        areas = torch.randint(classes, (images, 1, 8, 8)).float()
        target = F.interpolate(areas, size=(side, side)).long()[:, 0]
        void = F.interpolate(torch.rand(images, 1, 10, 10), size=(side, side))[:, 0] < 0.1
        target[void] = 255
        times: dict[str, list[float]] = {name: [] for name in LOSSES}
        for _ in range(given.rounds):
            for name, loss in LOSSES.items():
                start = time.perf_counter()
                step(loss, logits, target)
                times[name].append(time.perf_counter() - start)
        memory = {
            name: peak(loss, logits.clone().requires_grad_(), target)
            for name, loss in LOSSES.items()
        }
        first = "upsampled first"
        row = {"B x C x side, stride": f"{images} x {classes} x {side}, {stride}"}
        row[first] = f"{1e3 * statistics.median(times[first]):.0f} ms, {memory[first]:.0f} MiB"
        for name in list(LOSSES)[1:]:
            pairs = zip(times[name], times[first], strict=True)
            ratio = statistics.median(own / other for own, other in pairs)
            row[name] = f"{ratio:.2f}x, {memory[name]:.0f} MiB"
        rows.append(row)
        print("| " + " | ".join(row.values()) + " |", flush=True)
    with RESULT.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
