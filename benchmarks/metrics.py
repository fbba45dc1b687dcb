"""Measure what the scores of a batch cost beside the obvious confusion matrix.

    python benchmarks/metrics.py [--rounds 5] [--threads 1] [--keep]

Labels are squares of 16 pixels of random classes, on 4 images of 513x513 pixels with 21 classes.
One pixel in ten of the predictions differs. The obvious confusion matrix is a `bincount` of int64
pairs. `JaccardIndex` is that of torchmetrics. The times are the processor's time per batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import in_turn
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex

from lightning_seg.metrics import (
    BoundaryFScore,
    BoundaryIoU,
    CalibrationError,
    SegmentationMetrics,
    TrimapIoU,
)
from lightning_seg.training.evaluation import Evaluation

IMAGES, CLASSES, SIDE = 4, 21, 513


def maps() -> tuple[Tensor, Tensor]:
    """Return predictions and labels, (B, H, W) int64."""
    draw = torch.Generator().manual_seed(0)
    coarse = torch.randint(CLASSES, (IMAGES, 1, SIDE // 16 + 1, SIDE // 16 + 1), generator=draw)
    labels = F.interpolate(coarse.float(), scale_factor=16)[:, 0, :SIDE, :SIDE].long()
    other = torch.randint(CLASSES, labels.shape, generator=draw)
    predicted = labels.where(torch.rand(labels.shape, generator=draw) > 0.1, other)
    labels[:, :3] = 255
    return predicted, labels


def obvious(predicted: Tensor, labels: Tensor) -> None:
    """Count the pairs of label and prediction."""
    valid = labels != 255
    pairs = labels[valid] * CLASSES + predicted[valid]
    torch.bincount(pairs, minlength=CLASSES**2).view(CLASSES, CLASSES)


def score(logits: Tensor, labels: Tensor, scores: Evaluation) -> None:
    """Add a batch to all scores."""
    scores.update(logits, labels, torch.zeros(len(labels)))


def main() -> None:
    options = in_turn.parser(__doc__, rounds=5).parse_args()
    torch.set_num_threads(options.threads)
    predicted, labels = maps()
    confidence = torch.rand(labels.shape)
    logits = F.one_hot(predicted[:, ::8, ::8], CLASSES).movedim(-1, 1).float()
    every = Evaluation(CLASSES, 255)
    updates: dict[str, Callable[[], None]] = {
        "obvious confusion matrix": partial(obvious, predicted, labels),
        "torchmetrics JaccardIndex": partial(
            MulticlassJaccardIndex(CLASSES, ignore_index=255, validate_args=False).update,
            predicted,
            labels,
        ),
        "SegmentationMetrics": partial(SegmentationMetrics(CLASSES).update, predicted, labels),
        "BoundaryIoU": partial(BoundaryIoU(CLASSES).update, predicted, labels),
        "TrimapIoU, 3 pixels": partial(TrimapIoU(CLASSES, bands=(3,)).update, predicted, labels),
        "BoundaryFScore": partial(BoundaryFScore(CLASSES).update, predicted, labels),
        "CalibrationError": partial(CalibrationError().update, confidence, predicted, labels),
        "all scores, from logits at stride 8": partial(score, logits, labels, every),
    }
    times = in_turn.in_turn(updates, options.rounds)
    title = f"Scores of {IMAGES} images of {SIDE}x{SIDE}, {CLASSES} classes"
    found = in_turn.rows(title, times, "obvious confusion matrix", options.threads)
    in_turn.finish("metrics", found, options.keep)


if __name__ == "__main__":
    main()
