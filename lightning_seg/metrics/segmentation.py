"""All scores of a segmentation, derived from one confusion matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_seg.metrics.class_maps import ClassMaps, CountingMetric, count


class SegmentationMetrics(CountingMetric):
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

    def __init__(self, num_classes: int, ignore_index: int = 255, **kwargs: Any) -> None:
        super().__init__(num_classes, ignore_index, (num_classes, num_classes), **kwargs)

    def counts_of(self, maps: ClassMaps) -> Tensor:
        """Return the (C, C) pixel counts of a batch at [label, prediction]."""
        pairs = self.num_classes**2
        wide = torch.int16 if pairs < 2**15 else torch.int32
        # (B, H, W) indices into the counts, and one more for invalid pixels, whose classes are 0
        preds, target, void = (each.to(wide) for each in (maps.preds, maps.target, ~maps.valid))
        pair = target * self.num_classes + preds + void * pairs
        return count(pair, pairs + 1)[:pairs].view_as(self.counts)

    @property
    def confusion(self) -> Tensor:
        """Pixel counts of this process at [label, prediction], (C, C) int64."""
        return self.counts

    def compute(self) -> dict[str, Tensor]:
        """Return the scores of all batches of all processes.

        Returns:
            Float32 scores in [0, 1] by name. `miou`, `pixel_accuracy`, `mean_accuracy` and `fwiou`
            are scalars, `iou` and `accuracy` are (C,). `accuracy` of a class is the share of its
            pixels that are predicted as such. A class that is in neither targets nor predictions
            has an IoU of NaN and is left out of `miou`; a class that is not in the targets has an
            accuracy of NaN and is left out of `mean_accuracy`. `fwiou` is the mean of the IoUs
            weighted by the shares of the classes in the targets. `confusion` is the (C, C) int64
            confusion matrix with the pixel counts at [label, prediction].

        Raises:
            ValueError: A target was neither in [0, C) nor `ignore_index`, or a prediction was not
                in [0, C).
        """
        matrix = self.exact_counts()
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
        return {**self.results(scores), "confusion": self.counts.clone()}
