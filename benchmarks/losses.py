"""Measure time and memory of the losses against cross-entropy, forward and backward.

    python benchmarks/losses.py [--rounds 9] [--device cpu] [--threads 2] [--only CPG]

All losses run in one process, alternating in every round. The label maps are crops of CamVid where
the data set is beside the repository, and synthetic scenes elsewhere. The table shows the median
time, the median over rounds of the ratio to `F.cross_entropy`, and the peak memory of one forward
and backward pass beyond logits and target.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from datamodules import CamVidDataModule, SyntheticScenesDataModule
from datamodules.augmenting.steps import Augmentation
from lightning_seg.losses import (
    CrossEntropy,
    WeightedSum,
    cross_entropy,
    fit_pixel_loss,
    loss_max_pooling,
    probability_gradient_loss,
)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "camvid"
SHAPES = ((4, 21, 321), (2, 19, 512), (8, 19, 512))
Loss = Callable[[Tensor, Tensor], Tensor]


def ohem(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean of the largest 30 % of the pixel losses of every image."""
    losses = F.cross_entropy(logits, target, ignore_index=255, reduction="none").flatten(1)
    return losses.topk(int(0.3 * losses.shape[1]), sorted=False).values.mean()


def losses(classes: int) -> dict[str, Loss]:
    """Return the losses to compare by name, the reference first."""
    others = {
        kind: fit_pixel_loss(getattr(smp.losses, f"{kind}Loss")("multiclass"), classes)
        for kind in ("Dice", "Jaccard", "Tversky", "Focal", "Lovasz")
    }
    both = WeightedSum({"cross_entropy": CrossEntropy(), "dice": others["Dice"]})
    partial = functools.partial
    return {
        "F.cross_entropy": lambda x, y: F.cross_entropy(x, y, ignore_index=255),
        "cross-entropy": cross_entropy,
        "loss max-pooling, p 1.7": loss_max_pooling,
        "loss max-pooling, p 1.3": partial(loss_max_pooling, p=1.3),
        "loss max-pooling, p 1": partial(loss_max_pooling, p=1.0),
        "OHEM, top 30 %": ohem,
        **{f"{kind} (smp)": loss for kind, loss in others.items()},
        "cross-entropy + Dice": both,
        "CPG, size 3": partial(probability_gradient_loss, kernel_size=3),
        "CPG, size 5": partial(probability_gradient_loss, kernel_size=5),
        "CPG, size 7": partial(probability_gradient_loss, kernel_size=7),
        "CPG + false edges, size 3": partial(probability_gradient_loss, false_edges=1.0),
        "CPG + false edges, size 5": partial(
            probability_gradient_loss, kernel_size=5, false_edges=1.0
        ),
        "CPG + false edges, size 7": partial(
            probability_gradient_loss, kernel_size=7, false_edges=1.0
        ),
        "CPG, size 3, dense": partial(probability_gradient_loss, kernel_size=3, form="dense"),
    }


def label_maps(count: int, side: int) -> Tensor:
    """Return (count, side, side) class ids, scaled and cropped as in training."""
    data = CamVidDataModule(str(SHARED)) if SHARED.is_dir() else SyntheticScenesDataModule()
    source = data.source("train")
    crop = Augmentation("standard", (side, side), (1.5, 2.5))
    masks = []
    for number in range(count):
        example = source[number * (len(source) // count)]
        masks.append(crop(example, crop.draw(number)).mask)
    return torch.from_numpy(np.stack(masks).astype(np.int64))


def once(loss: Loss, logits: Tensor, target: Tensor) -> float:
    """Return the seconds of a forward and a backward pass."""
    logits.grad = None
    wait(logits.device)
    begin = time.perf_counter()
    loss(logits, target).backward()
    wait(logits.device)
    return time.perf_counter() - begin


def wait(device: torch.device) -> None:
    """Wait until a GPU has finished; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak(loss: Loss, logits: Tensor, target: Tensor) -> float:
    """Return the peak memory in MiB of a forward and backward pass beyond its input."""
    logits.grad = None
    if logits.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss(logits, target).backward()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss(logits, target).backward()
    held = most = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most / 2**20


def main() -> None:
    """Measure all shapes and print a table for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="a part of the names of losses to compare")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for batch, classes, side in SHAPES:
        torch.manual_seed(0)
        logits = 2 * torch.randn(batch, classes, side, side, device=options.device)
        logits.requires_grad_()
        target = label_maps(batch, side).to(options.device)
        compared = {
            name: loss
            for name, loss in losses(classes).items()
            if options.only in name or name == "F.cross_entropy"
        }
        for loss in compared.values():
            once(loss, logits, target)
        rounds = [
            {name: once(loss, logits, target) for name, loss in compared.items()}
            for _ in range(options.rounds)
        ]
        table = Table(title=f"B{batch} C{classes} {side}x{side}, {options.device}")
        for name in ("loss", "ms", "times cross-entropy", "peak MiB"):
            table.add_column(name, justify="left" if name == "loss" else "right")
        for name, loss in compared.items():
            time_ms = 1000 * statistics.median(row[name] for row in rounds)
            ratio = statistics.median(row[name] / row["F.cross_entropy"] for row in rounds)
            memory = peak(loss, logits, target)
            table.add_row(name, f"{time_ms:.1f}", f"{ratio:.2f}", f"{memory:.0f}")
        Console().print(table)


if __name__ == "__main__":
    main()
