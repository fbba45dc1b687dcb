"""Boundary IoU: the IoU of the boundaries of every class."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_seg.metrics.boundaries import (
    boundary_distance,
    near_other_class,
    require_dilation,
    with_border,
)
from lightning_seg.metrics.class_maps import ClassMaps, CountingMetric, iou_counts, iou_of


class BoundaryIoU(CountingMetric):
    """Boundary IoU of every class: how well predicted boundaries lie on true ones.

    The boundary G_d of the pixels G of a class are those of them within d pixels of another class
    or of the outside of the image. With P_d of the prediction, summed over all images,

        Boundary IoU = |G_d and P_d| / |G_d or P_d|

    B. Cheng, R. Girshick, P. Dollar, A. C. Berg, A. Kirillov: Boundary IoU: Improving
    Object-Centric Image Segmentation Evaluation (CVPR 2021, arXiv 2103.16562). Distances are those
    of the authors' code: d erosions with a 3x3 element. Void pixels of the target make no boundary
    in either map and do not count.

    Args:
        num_classes: Number of classes C, at least 1.
        ignore_index: The class id, in targets, of void pixels.
        dilation: The distance d: a number of pixels where an integer of at least 1, or a share of
            the image's diagonal where a float in (0, 1), rounded to at least 1 pixel.
        kwargs: Keyword arguments of `torchmetrics.Metric`.

    Raises:
        SetupError: A setting is out of range.

    Examples:
        A square of 3x3 pixels in an image of 5x5, and a prediction that is one pixel to the right.
        With d = 1 the boundary of the square is all but its centre. 4 of its 8 pixels are in the
        boundary of the prediction: 4 / (8 + 8 - 4). The boundary of the background is all of its
        16 pixels, of which 13 are predicted as background: 13 / (16 + 16 - 13).

        >>> import torch
        >>> target, preds = torch.zeros(2, 1, 5, 5, dtype=torch.int64)
        >>> target[:, 1:4, 1:4] = 1
        >>> preds[:, 1:4, 2:5] = 1
        >>> metric = BoundaryIoU(num_classes=2, dilation=1)
        >>> metric.update(preds, target)
        >>> [round(value, 4) for value in metric.compute()["iou"].tolist()]
        [0.6842, 0.3333]
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = 255,
        dilation: int | float = 0.02,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, ignore_index, (num_classes, 3), **kwargs)
        require_dilation(dilation=dilation)
        self.dilation = dilation

    def counts_of(self, maps: ClassMaps) -> Tensor:
        """Return the (C, 3) shared, predicted and true boundary pixels of a batch."""
        return boundary_iou_counts(maps, self.num_classes, self.dilation)

    def compute(self) -> dict[str, Tensor]:
        """Return the scores of all batches of all processes.

        Returns:
            `boundary_iou`, the mean over the classes that have an IoU, and `iou`, (C,), in [0, 1].
            The IoU of a class without a boundary in targets and predictions is NaN.

        Raises:
            ValueError: A value was out of range.
        """
        iou = iou_of(self.exact_counts())
        return self.results({"boundary_iou": iou.nanmean(), "iou": iou})


def boundary_iou_counts(
    maps: ClassMaps, num_classes: int, dilation: int | float, per_image: bool = False
) -> Tensor:
    """Return the boundary pixels of every class: shared, predicted and true.

    Args:
        maps: The class maps.
        num_classes: Number of classes C.
        dilation: The distance d, as `BoundaryIoU` takes it.
        per_image: Whether images are counted separately.

    Returns:
        (C, 3) int64, or (B, C, 3) with `per_image`.
    """
    height, width = maps.target.shape[1:]
    distance = boundary_distance(dilation, height, width)
    in_preds, in_target = (
        with_border(near_other_class(labels, maps.valid, distance), maps.valid, distance)
        for labels in (maps.preds, maps.target)
    )
    return iou_counts(maps, num_classes, in_preds, in_target, per_image)
