"""Every number of a segmentation table from one confusion matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class SegmentationMetrics(Metric):
    """Accumulates an int64 confusion matrix; derives IoU and accuracies from it.

    An update neither waits for the device nor copies to the host, and is exact and deterministic
    (integer counts). Processes add their matrices up, so batches may be of any size and number.

    Args:
        num_classes: Number of classes C.
        ignore_index: Target id of pixels that do not count.
        kwargs: Passed to `torchmetrics.Metric`.

    Example:
        Truth 0 0 1 1 void, prediction 0 1 1 1 0: IoU is 1/2 for class 0 and 2/3 for class 1.

        >>> metrics = SegmentationMetrics(num_classes=2)
        >>> metrics.update(torch.tensor([[0, 1, 1, 1, 0]]), torch.tensor([[0, 0, 1, 1, 255]]))
        >>> {name: value.tolist() for name, value in metrics.compute().items()}["iou"]
        [0.5, 0.6666666865348816]
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    counts: Tensor

    def __init__(self, num_classes: int, ignore_index: int = 255, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, not {num_classes}")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        # C*C pairs (truth, prediction), then void pixels, then what is no class
        bins = num_classes**2 + 2
        self.add_state("counts", torch.zeros(bins, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count a batch.

        Args:
            preds: (B, H, W) integer class ids in [0, C), e.g. `logits.argmax(1)`.
            target: (B, H, W) integer class ids in [0, C), or `ignore_index`.

        Raises:
            ValueError: The shapes differ.
        """
        if preds.shape != target.shape:
            raise ValueError(
                f"preds {tuple(preds.shape)} and target {tuple(target.shape)} differ; "
                "both must be class ids of one shape (take logits.argmax(1))"
            )
        classes = self.num_classes
        target = target.long()
        known = (target >= 0) & (target < classes) & (preds >= 0) & (preds < classes)
        pair = torch.where(known, target * classes + preds, classes**2 + 1)
        pair = torch.where(target == self.ignore_index, classes**2, pair)
        # bincount would make the device wait to learn the largest value
        ones = torch.ones((), dtype=torch.int64, device=pair.device).expand(pair.numel())
        self.counts.scatter_add_(0, pair.flatten(), ones)

    @property
    def confusion(self) -> Tensor:
        """(C, C) int64 pixel counts of this process, truth down, prediction across."""
        return self.counts[: self.num_classes**2].view(self.num_classes, self.num_classes)

    def compute(self) -> dict[str, Tensor]:
        """Return the scores, each in [0, 1], float32.

        Returns:
            `miou`, `pixel_accuracy`, `mean_accuracy`, `fwiou`: scalars; `iou`, `accuracy`: (C,).
            A class absent from target and prediction has an IoU of NaN and is left out of the
            mean, likewise a class absent from the target in the accuracies. `fwiou` weighs the
            IoUs by the classes' shares of the pixels.

        Raises:
            ValueError: A target was neither a class nor `ignore_index`, or a prediction no class.
        """
        strange = int(self.counts[-1])
        if strange:
            raise ValueError(
                f"{strange} pixels have a target that is neither in 0..{self.num_classes - 1} nor "
                f"{self.ignore_index} (void), or a prediction outside 0..{self.num_classes - 1}: "
                "does num_classes fit the masks and the network?"
            )
        matrix = self.confusion.cpu().double()  # Apple's devices have no float64
        hits, truth, predicted = matrix.diag(), matrix.sum(1), matrix.sum(0)
        # 0 / 0 is NaN: exactly the classes to leave out
        iou = hits / (truth + predicted - hits)
        accuracy = hits / truth
        scores = {
            "miou": iou.nanmean(),
            "pixel_accuracy": hits.sum() / truth.sum(),
            "mean_accuracy": accuracy.nanmean(),
            "fwiou": (truth / truth.sum() * iou.nan_to_num()).sum(),
            "iou": iou,
            "accuracy": accuracy,
        }
        return {name: value.float().to(self.counts.device) for name, value in scores.items()}
