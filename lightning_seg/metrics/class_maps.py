"""Class maps of predictions and labels as counts of pixels, without waiting for the device."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_seg.errors import require_range


class ClassMaps(NamedTuple):
    """Predicted and true class maps of a batch, as small integers."""

    preds: Tensor
    """(B, H, W) class ids in [0, C), of one byte each where C allows it."""
    target: Tensor
    """(B, H, W) class ids in [0, C), of the same type."""
    valid: Tensor
    """(B, H, W) bool, False where the target is void or a value is out of range."""
    wrong: Tensor
    """Number of pixels with a value out of range, int64 scalar."""


def class_maps(preds: Tensor, target: Tensor, num_classes: int, ignore_index: int) -> ClassMaps:
    """Return predictions and targets as class maps; invalid pixels have class 0.

    Args:
        preds: (B, H, W) integer class ids.
        target: (B, H, W) integer class ids, or `ignore_index`.
        num_classes: Number of classes C.
        ignore_index: The class id, in targets, of void pixels.

    Raises:
        ValueError: The shapes differ.
    """
    if preds.shape != target.shape:
        raise ValueError(
            f"preds {tuple(preds.shape)} and target {tuple(target.shape)} differ; "
            "both must be class ids of one shape (take logits.argmax(1))"
        )
    labelled = target != ignore_index
    in_range = (target >= 0) & (target < num_classes) & (preds >= 0) & (preds < num_classes)
    valid = labelled & in_range
    small = torch.uint8 if num_classes <= 256 else torch.int16
    one = valid.to(small)  # products of one type are ten times faster than `masked_fill` on CPUs
    wrong = labelled.sum() - valid.sum()
    return ClassMaps(preds.to(small) * one, target.to(small) * one, valid, wrong)


def count(codes: Tensor, bins: int) -> Tensor:
    """Return how often each of the values 0 to bins - 1 occurs, (bins,) int64.

    Args:
        codes: Integers in [0, bins), of any shape.
        bins: Number of values.
    """
    codes = codes.flatten()
    if codes.device.type == "cpu":
        return torch.bincount(codes, minlength=bins)
    # `bincount` would synchronise with the device to learn the largest value.
    ones = torch.ones((), dtype=torch.int64, device=codes.device).expand(codes.numel())
    zeros = torch.zeros(bins, dtype=torch.int64, device=codes.device)
    return zeros.scatter_add_(0, codes.long(), ones)


def iou_counts(
    maps: ClassMaps,
    num_classes: int,
    in_preds: Tensor,
    in_target: Tensor,
    per_image: bool = False,
) -> Tensor:
    """Return the pixels of every class in a region of the predictions and one of the targets.

    Args:
        maps: The class maps.
        num_classes: Number of classes C.
        in_preds: (B, H, W) bool, where the predictions count; False where invalid.
        in_target: (B, H, W) bool, where the targets count; False where invalid.
        per_image: Whether images are counted separately.

    Returns:
        (C, 3) int64, or (B, C, 3) with `per_image`: pixels in the intersection, where both count
        and agree; in the prediction; and in the target.
    """
    images = len(maps.preds) if per_image else 1
    agree = (maps.preds == maps.target) & in_preds & in_target
    # a pixel's part of the target's counts: 0 none, 1 the target's, 2 the intersection's too
    part = in_target.to(torch.uint8) + agree.to(torch.uint8)
    target = _codes(maps.target, part, 3, num_classes, per_image)
    preds = _codes(maps.preds, in_preds.to(torch.uint8), 2, num_classes, per_image)
    # (images, part, C)
    in_truth = count(target, images * 3 * num_classes).view(images, 3, num_classes)
    predicted = count(preds, images * 2 * num_classes).view(images, 2, num_classes)[:, 1]
    hits = in_truth[:, 2]
    found = torch.stack([hits, predicted, in_truth[:, 1] + hits], dim=-1)
    return found if per_image else found[0]


def _codes(classes: Tensor, part: Tensor, parts: int, num_classes: int, per_image: bool) -> Tensor:
    """Return image * parts * C + part * C + class, in a type that can hold it."""
    if not per_image and parts * num_classes <= 256:
        return classes + part * num_classes
    codes = classes.int() + part.int() * num_classes
    if per_image:
        images = torch.arange(len(classes), dtype=torch.int32, device=classes.device)
        codes += images[:, None, None] * (parts * num_classes)
    return codes


class CountingMetric(Metric):
    """Base of the metrics that add up integer counts of pixels; void pixels do not count.

    Results are exact, and do not depend on the sizes of batches or the number of processes. An
    update neither synchronises with an accelerator nor copies to the host.

    Args:
        num_classes: Number of classes C, at least 1.
        ignore_index: The class id, in targets, of void pixels.
        shape: The shape of the counts.
        kwargs: Keyword arguments of `torchmetrics.Metric`.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    counts: Tensor
    wrong: Tensor

    def __init__(
        self, num_classes: int, ignore_index: int, shape: tuple[int, ...], **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        require_range(1, math.inf, num_classes=num_classes)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.add_state("counts", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("wrong", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor | ClassMaps, target: Tensor | None = None) -> None:
        """Add a batch to the counts.

        Args:
            preds: (B, H, W) integer class ids in [0, C), such as `logits.argmax(1)`; or the class
                maps of a batch, which several metrics can share to save time.
            target: (B, H, W) integer class ids in [0, C), or `ignore_index`; None with class maps.

        Raises:
            ValueError: The shapes differ.
        """
        if not isinstance(preds, ClassMaps):
            assert target is not None
            preds = class_maps(preds, target, self.num_classes, self.ignore_index)
        self.wrong += preds.wrong
        self.counts += self.counts_of(preds)

    @abstractmethod
    def counts_of(self, maps: ClassMaps) -> Tensor:
        """Return the counts of a batch, of the shape of the metric's counts."""

    def exact_counts(self) -> Tensor:
        """Return the counts as float64 on the CPU, because MPS devices lack float64.

        Raises:
            ValueError: A target was neither in [0, C) nor `ignore_index`, or a prediction was not
                in [0, C).
        """
        if wrong := int(self.wrong):
            last = self.num_classes - 1
            raise ValueError(
                f"{wrong} pixels have a target that is neither in 0..{last} nor "
                f"{self.ignore_index} (void), or a prediction outside 0..{last}: "
                "does num_classes fit the masks and the network?"
            )
        return self.counts.cpu().double()

    def results(self, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return scores as float32 on the metric's device."""
        return {name: value.float().to(self.counts.device) for name, value in scores.items()}


def iou_of(counts: Tensor) -> Tensor:
    """Return the IoU of counts (..., 3) of intersection, prediction and target; NaN for 0 / 0."""
    hits, predicted, truth = counts.unbind(-1)
    return hits / (predicted + truth - hits)
