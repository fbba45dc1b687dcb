"""All scores of a segmentation, derived from one confusion matrix."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_seg.errors import require_range


class SegmentationMetrics(Metric):
    """Intersection over union and accuracies from an int64 confusion matrix.

    The counts are integers, so results are exact and deterministic. An update neither synchronises
    with the device nor copies to the host. Processes add their matrices up, and may see batches of
    different sizes and numbers.

    Args:
        num_classes: Number of classes C, at least 1.
        ignore_index: The class id, in targets, of pixels to leave out.
        kwargs: Keyword arguments of `torchmetrics.Metric`.

    Raises:
        SetupError: `num_classes` is below 1.

    Examples:
        2x2 pixels with the labels 0, 0, 1 and void, and the predictions 0, 1, 1 and 0. Either
        class is right at one pixel of the two that have it as label or prediction.

        >>> metrics = SegmentationMetrics(num_classes=2)
        >>> metrics.update(torch.tensor([[[0, 1], [1, 0]]]), torch.tensor([[[0, 0], [1, 255]]]))
        >>> scores = metrics.compute()
        >>> scores["iou"].tolist(), scores["miou"].item()
        ([0.5, 0.5], 0.5)
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    counts: Tensor

    def __init__(self, num_classes: int, ignore_index: int = 255, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require_range(1, math.inf, num_classes=num_classes)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        # C^2 pairs (label, prediction), then void pixels, then pixels with a value out of range
        bins = num_classes**2 + 2
        self.add_state("counts", torch.zeros(bins, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch to the counts.

        Args:
            preds: (B, H, W) integer class ids in [0, C), such as `logits.argmax(1)`.
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
        in_range = (target >= 0) & (target < classes) & (preds >= 0) & (preds < classes)
        # (B, H, W) indices into the counts
        pair = torch.where(in_range, target * classes + preds, classes**2 + 1)
        pair = torch.where(target == self.ignore_index, classes**2, pair)
        # `bincount` would synchronise with the device to learn the largest value.
        ones = torch.ones((), dtype=torch.int64, device=pair.device).expand(pair.numel())
        self.counts.scatter_add_(0, pair.flatten(), ones)

    @property
    def confusion(self) -> Tensor:
        """Pixel counts of this process at [label, prediction], (C, C) int64."""
        return self.counts[: self.num_classes**2].view(self.num_classes, self.num_classes)

    def compute(self) -> dict[str, Tensor]:
        """Return the scores of all batches of all processes.

        Returns:
            Float32 scores in [0, 1] by name. `miou`, `pixel_accuracy`, `mean_accuracy` and `fwiou`
            are scalars, `iou` and `accuracy` are (C,). `accuracy` of a class is the share of its
            pixels that are predicted as such. A class that is in neither targets nor predictions
            has an IoU of NaN and is left out of `miou`; a class that is not in the targets has an
            accuracy of NaN and is left out of `mean_accuracy`. `fwiou` is the mean of the IoUs
            weighted by the shares of the classes in the targets.

        Raises:
            ValueError: A target was neither in [0, C) nor `ignore_index`, or a prediction was not
                in [0, C).
        """
        out_of_range = int(self.counts[-1])
        if out_of_range:
            raise ValueError(
                f"{out_of_range} pixels have a target that is neither in 0..{self.num_classes - 1} "
                f"nor {self.ignore_index} (void), or a prediction outside "
                f"0..{self.num_classes - 1}: "
                "does num_classes fit the masks and the network?"
            )
        matrix = self.confusion.cpu().double()  # on the CPU, because MPS devices lack float64
        hits, truth, predicted = matrix.diag(), matrix.sum(1), matrix.sum(0)  # (C,) each
        # 0 / 0 is NaN for exactly the classes to leave out.
        iou = hits / (truth + predicted - hits)
        accuracy = hits / truth
        # (C,) -> scalars
        scores = {
            "miou": iou.nanmean(),
            "pixel_accuracy": hits.sum() / truth.sum(),
            "mean_accuracy": accuracy.nanmean(),
            "fwiou": (truth / truth.sum() * iou.nan_to_num()).sum(),
            "iou": iou,
            "accuracy": accuracy,
        }
        return {name: value.float().to(self.counts.device) for name, value in scores.items()}
