"""Trimap IoU: the IoU of the pixels near the boundaries of the labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_seg.errors import SetupError, require_range
from lightning_seg.metrics.boundaries import near_other_class
from lightning_seg.metrics.class_maps import ClassMaps, CountingMetric, iou_counts, iou_of


class TrimapIoU(CountingMetric):
    """The IoU of the pixels in bands around the boundaries of the labels.

    The band of r is the pixels that have a pixel of another label within r pixels, in a square
    window; it is 2 r pixels wide. Void pixels make no boundary and do not count, and the border of
    the image is none.

    The evaluation on trimaps of growing width is that of P. Kohli, L. Ladicky, P. Torr: Robust
    Higher Order Potentials for Enforcing Label Consistency (IJCV 2009).

    Args:
        num_classes: Number of classes C, at least 1.
        ignore_index: The class id, in targets, of void pixels.
        bands: The distances r in pixels, each at least 1.
        kwargs: Keyword arguments of `torchmetrics.Metric`.

    Raises:
        SetupError: A setting is out of range.

    Examples:
        A row of 8 pixels whose labels change in its middle, where the prediction changes one pixel
        later. The band of 1 has two pixels with the labels 0 and 1, both predicted as 0: the IoUs
        are 1 / 2 and 0 / 1. The band of 2 has four pixels with the labels 0, 0, 1, 1 and the
        predictions 0, 0, 0, 1: 2 / 3 and 1 / 2.

        >>> target = torch.tensor([[[0, 0, 0, 0, 1, 1, 1, 1]]])
        >>> preds = torch.tensor([[[0, 0, 0, 0, 0, 1, 1, 1]]])
        >>> metric = TrimapIoU(num_classes=2, bands=(1, 2))
        >>> metric.update(preds, target)
        >>> scores = metric.compute()
        >>> scores["iou_1"].tolist(), scores["trimap_iou_1"].item()
        ([0.5, 0.0], 0.25)
        >>> [round(value, 4) for value in scores["iou_2"].tolist()]
        [0.6667, 0.5]
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = 255,
        bands: Sequence[int] = (1, 3, 5),
        **kwargs: Any,
    ) -> None:
        if not bands or len(set(bands)) < len(bands):
            raise SetupError(f"bands must be different distances, not {bands}", option="bands")
        for band in bands:
            require_range(1, math.inf, bands=band)
        super().__init__(num_classes, ignore_index, (len(bands), num_classes, 3), **kwargs)
        self.bands = tuple(bands)

    def counts_of(self, maps: ClassMaps) -> Tensor:
        """Return the (R, C, 3) agreeing, predicted and true pixels of a batch in each band."""
        return trimap_counts(maps, self.num_classes, self.bands)

    def compute(self) -> dict[str, Tensor]:
        """Return the scores of all batches of all processes.

        Returns:
            For each band r, `trimap_iou_<r>`, the mean over the classes that have an IoU, and
            `iou_<r>`, (C,), in [0, 1]. The IoU of a class that is neither label nor prediction in
            the band is NaN.

        Raises:
            ValueError: A value was out of range.
        """
        scores: dict[str, Tensor] = {}
        for band, iou in zip(self.bands, iou_of(self.exact_counts()), strict=True):
            scores |= {f"trimap_iou_{band}": iou.nanmean(), f"iou_{band}": iou}
        return self.results(scores)


def trimap_counts(
    maps: ClassMaps, num_classes: int, bands: Sequence[int], per_image: bool = False
) -> Tensor:
    """Return the pixels of every class in each band: agreeing, predicted and true.

    Args:
        maps: The class maps.
        num_classes: Number of classes C.
        bands: R distances in pixels.
        per_image: Whether images are counted separately.

    Returns:
        (R, C, 3) int64, or (B, R, C, 3) with `per_image`.
    """
    found = []
    for band in bands:
        near = near_other_class(maps.target, maps.valid, band)
        found.append(iou_counts(maps, num_classes, near, near, per_image))
    return torch.stack(found, dim=-3)
