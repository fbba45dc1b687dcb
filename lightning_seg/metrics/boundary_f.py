"""Boundary F-score: precision and recall of the boundaries of every class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_seg.metrics.boundaries import (
    boundary_distance,
    near_other_class,
    over_windows,
    require_dilation,
)
from lightning_seg.metrics.class_maps import ClassMaps, CountingMetric, count

_BITS = 63  # classes in an int64 whose sign is not used


class BoundaryFScore(CountingMetric):
    """The F-score of the boundaries of every class, within a tolerance.

    The boundary of a class is its pixels with a pixel of another class among their 8 neighbours;
    the border of the image is none. Precision is the share of predicted boundary pixels that have
    a true boundary pixel of their class within the tolerance, in a square window; recall is the
    share of true boundary pixels that have a predicted one. Both are of the pixels of all images,
    and F = 2 precision recall / (precision + recall). Void pixels of the target make no boundary in
    either map and do not count.

    G. Csurka, D. Larlus, F. Perronnin: What is a Good Evaluation Measure for Semantic Segmentation?
    (BMVC 2013). They take the mean of the F-scores of images, and round windows.

    Args:
        num_classes: Number of classes C, at least 1.
        ignore_index: The class id, in targets, of void pixels.
        tolerance: The distance in pixels where an integer of at least 1, or a share of the image's
            diagonal where a float in (0, 1), rounded to at least 1 pixel.
        kwargs: Keyword arguments of `torchmetrics.Metric`.

    Raises:
        SetupError: A setting is out of range.

    Examples:
        A row of 8 pixels whose labels change in its middle, where the prediction changes two pixels
        later. With a tolerance of 2 pixels every boundary pixel finds one of its class, with a
        tolerance of 1 pixel none does.

        >>> target = torch.tensor([[[0, 0, 0, 0, 1, 1, 1, 1]]])
        >>> preds = torch.tensor([[[0, 0, 0, 0, 0, 0, 1, 1]]])
        >>> for tolerance in (1, 2):
        ...     metric = BoundaryFScore(num_classes=2, tolerance=tolerance)
        ...     metric.update(preds, target)
        ...     metric.compute()["boundary_f"].item()
        0.0
        1.0
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = 255,
        tolerance: int | float = 0.0075,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, ignore_index, (num_classes, 4), **kwargs)
        require_dilation(tolerance=tolerance)
        self.tolerance = tolerance

    def counts_of(self, maps: ClassMaps) -> Tensor:
        """Return the (C, 4) boundary pixels of a batch, as `boundary_matches` counts them."""
        distance = boundary_distance(self.tolerance, *maps.target.shape[1:])
        return boundary_matches(maps, self.num_classes, distance)

    def compute(self) -> dict[str, Tensor]:
        """Return the scores of all batches of all processes.

        Returns:
            `boundary_f`, the mean over the classes that have an F-score, and `f`, `precision` and
            `recall`, (C,), in [0, 1]. A class without a boundary in targets and predictions has
            NaN, and a class that has a boundary in one of them alone has an F-score of 0.

        Raises:
            ValueError: A value was out of range.
        """
        right, predicted, found, true = self.exact_counts().unbind(-1)
        precision, recall = right / predicted, found / true
        # the harmonic mean, which is 0 where one of them is 0 or has no pixels
        product = precision.nan_to_num() * recall.nan_to_num()
        f = 2 * product / (precision.nan_to_num() + recall.nan_to_num()).clamp(min=1e-300)
        f = f.masked_fill(predicted + true == 0, torch.nan)
        return self.results(
            {"boundary_f": f.nanmean(), "f": f, "precision": precision, "recall": recall}
        )


def boundary_matches(maps: ClassMaps, num_classes: int, distance: int) -> Tensor:
    """Return the boundary pixels of every class that lie near one of the other map.

    Args:
        maps: The class maps.
        num_classes: Number of classes C.
        distance: The tolerance in pixels.

    Returns:
        (C, 4) int64: predicted boundary pixels near a true one, all predicted ones, true boundary
        pixels near a predicted one, all true ones.
    """
    edges = [near_other_class(labels, maps.valid, 1) for labels in (maps.preds, maps.target)]
    columns = []
    for labels, edge, others, other_edge in (
        (maps.preds, edges[0], maps.target, edges[1]),
        (maps.target, edges[1], maps.preds, edges[0]),
    ):
        near = _near_same_class(labels, others, other_edge, num_classes, distance) & edge
        for chosen in (near, edge):
            # pixels that are not chosen get a class of their own
            codes = labels.int().masked_fill(~chosen, num_classes)
            columns.append(count(codes, num_classes + 1)[:num_classes])
    return torch.stack(columns, dim=-1)


def _near_same_class(
    labels: Tensor, others: Tensor, chosen: Tensor, num_classes: int, distance: int
) -> Tensor:
    """Return where one of the chosen pixels of the other map has the same class within a distance.

    The classes in a window are a set of bits, so that all classes take one pass over windows.
    """
    near = torch.zeros_like(chosen)
    for first in range(0, num_classes, _BITS):
        bit, own = others.long() - first, labels.long() - first
        member = chosen & (bit >= 0) & (bit < _BITS)
        # (B, H, W) sets of one class, and their unions over windows
        sets = torch.where(member, 1 << bit.clamp(0, _BITS - 1), 0)
        sets = over_windows(sets, distance, torch.bitwise_or, 0)
        in_word = (own >= 0) & (own < _BITS)
        near |= in_word & ((sets >> own.clamp(0, _BITS - 1)) & 1).bool()
    return near
