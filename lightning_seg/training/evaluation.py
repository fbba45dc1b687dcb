"""What an evaluation measures: the loss, the confusion matrix, boundaries and calibration."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from lightning_seg.losses.upsampled_labels import most_probable
from lightning_seg.metrics import (
    BoundaryFScore,
    BoundaryIoU,
    CalibrationError,
    SegmentationMetrics,
    TrimapIoU,
    WeightedMean,
)
from lightning_seg.metrics.boundary_iou import boundary_iou_counts
from lightning_seg.metrics.class_maps import class_maps, iou_counts
from lightning_seg.metrics.trimap_iou import trimap_counts
from lightning_seg.scores import EVERYWHERE

Extent = Literal["miou", "boundary", "all"]
DILATION = 0.02
"""The share of an image's diagonal that a boundary is wide in Boundary IoU, as in its paper."""
BANDS = (1, 3, 5, 10, 20)
"""The distances of trimaps in pixels."""


class Evaluation(nn.Module):
    """The scores of one pass over the images of a split.

    Args:
        num_classes: Number of classes C, without void.
        ignore_index: Mask value of void pixels.

    Attributes:
        extent: What is measured. `miou` is the mean loss and the scores of the confusion matrix;
            `boundary` adds Boundary IoU and the trimap of 3 pixels; `all` adds the other trimaps,
            the boundary F-score and the calibration error.
    """

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.extent: Extent = "all"
        self.loss = WeightedMean()
        self.calibration = CalibrationError(ignore_index=ignore_index)
        self.classes = nn.ModuleDict(
            {
                "miou": SegmentationMetrics(num_classes, ignore_index),
                "boundary_iou": BoundaryIoU(num_classes, ignore_index, DILATION),
                "trimap_3": TrimapIoU(num_classes, ignore_index, (3,)),
                "trimaps": TrimapIoU(num_classes, ignore_index, BANDS),
                "boundary_f": BoundaryFScore(num_classes, ignore_index),
            }
        )

    def update(self, logits: Tensor, target: Tensor, losses: Tensor) -> Tensor:
        """Add a batch.

        Args:
            logits: (B, C, h, w) logits, no larger than the labels.
            target: (B, H, W) class ids.
            losses: (B,) the loss of each image.

        Returns:
            (B, H, W) predicted class ids.
        """
        size = (target.shape[1], target.shape[2])
        labels, confidence = most_probable(logits, size, confidence=self.extent == "all")
        # weighted by labelled pixels, because the copies that even out the processes have none
        pixels = (target != self.ignore_index).sum((1, 2))
        mean = (losses * pixels).sum() / pixels.sum().clamp(min=1)
        self.loss.update(mean, pixels.sum())
        maps = class_maps(labels, target, logits.shape[1], self.ignore_index)
        for name in self._measured():
            self.classes[name].update(maps)  # type: ignore[operator]
        if confidence is not None:
            self.calibration.update(confidence, labels, target)
        return labels

    def compute(self) -> dict[str, Tensor]:
        """Return the scores of all batches of all processes by name, and forget the batches.

        Returns:
            Scalars, the mean scores; `iou`, `boundary_iou/iou` and others, (C,), of the classes;
            `confusion`, (C, C); and of calibration the `ece` and the bins `calibration/<name>`.
        """
        scores = {"loss": self.loss.compute()}
        self.loss.reset()
        for name in self._measured():
            metric = self.classes[name]
            for key, value in metric.compute().items():  # type: ignore[operator]
                scores[key if value.ndim == 0 or name == "miou" else f"{name}/{key}"] = value
            metric.reset()  # type: ignore[operator]
        if self.extent == "all":
            for key, value in self.calibration.compute().items():
                scores[key if value.ndim == 0 else f"calibration/{key}"] = value
            self.calibration.reset()
        return scores

    def _measured(self) -> list[str]:
        return {
            "miou": ["miou"],
            "boundary": ["miou", "boundary_iou", "trimap_3"],
            "all": ["miou", "boundary_iou", "trimaps", "boundary_f"],
        }[self.extent]


def regions() -> list[str]:
    """Return the names of the regions that `image_counts` counts."""
    return [EVERYWHERE, "boundary_iou", *(f"trimap_iou_{band}" for band in BANDS)]


def image_counts(preds: Tensor, target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Return the pixels of every image, region and class that are right, predicted and true.

    Args:
        preds: (B, H, W) integer class ids.
        target: (B, H, W) integer class ids, or `ignore_index`.
        num_classes: Number of classes C.
        ignore_index: The class id, in targets, of void pixels.

    Returns:
        (B, R, C, 3) int64, with the R regions of `regions`.
    """
    maps = class_maps(preds, target, num_classes, ignore_index)
    everywhere = iou_counts(maps, num_classes, maps.valid, maps.valid, per_image=True)
    boundary = boundary_iou_counts(maps, num_classes, DILATION, per_image=True)
    bands = trimap_counts(maps, num_classes, BANDS, per_image=True)
    return torch.cat([everywhere[:, None], boundary[:, None], bands], dim=1)
