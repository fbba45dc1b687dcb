"""Calibration: whether the confidence of a prediction is the rate at which it is right."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_seg.errors import require_range

_UNITS = 2**24


class CalibrationError(Metric):
    """Expected calibration error (ECE) of the most probable class, and the bins of its diagram.

    The confidence of a pixel is the probability of its most probable class. The pixels are put into
    bins of equal width in confidence, and with the n_b of n pixels in a bin b

        ECE = sum_b n_b / n |accuracy_b - confidence_b|

    C. Guo, G. Pleiss, Y. Sun, K. Weinberger: On Calibration of Modern Neural Networks (ICML 2017,
    arXiv 1706.04599). Only sums over bins are kept. `torchmetrics` (version 1.9) keeps the
    confidence of every pixel, which for a thousand images of 512x512 is a gigabyte.

    Args:
        bins: Number of bins, at least 1.
        ignore_index: The class id, in targets, of void pixels, which do not count.
        kwargs: Keyword arguments of `torchmetrics.Metric`.

    Raises:
        SetupError: `bins` is below 1.

    Examples:
        Three pixels with a confidence of 0.75, of which two are right: |2/3 - 3/4|.

        >>> probabilities = torch.tensor([[[[0.75, 0.75, 0.25]], [[0.25, 0.25, 0.75]]]])
        >>> metric = CalibrationError(bins=10)
        >>> metric.update(*probabilities.max(1), torch.tensor([[[0, 1, 1]]]))
        >>> round(metric.compute()["ece"].item(), 4)
        0.0833
    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = False
    counts: Tensor
    confidences: Tensor

    def __init__(self, bins: int = 15, ignore_index: int = 255, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require_range(1, math.inf, bins=bins)
        self.bins = bins
        self.ignore_index = ignore_index
        # pixels and right pixels; the last bin is that of void pixels
        self.add_state("counts", torch.zeros(2, bins + 1, dtype=torch.int64), dist_reduce_fx="sum")
        # in units of 2^-24, the resolution of a float32 below 1, so that sums are exact
        self.add_state(
            "confidences", torch.zeros(bins + 1, dtype=torch.int64), dist_reduce_fx="sum"
        )

    def update(self, confidence: Tensor, preds: Tensor, target: Tensor) -> None:
        """Add a batch, of which `confidence, preds = probabilities.max(1)`.

        Args:
            confidence: (B, H, W) probabilities of the predicted classes.
            preds: (B, H, W) integer class ids.
            target: (B, H, W) integer class ids, or `ignore_index`.
        """
        confidence = confidence.float().clamp(0, 1)
        # bins are open at the left end: (low, high], and 0 lies in the first one
        index = (confidence * self.bins).ceil().long().clamp(1, self.bins) - 1
        index = index.masked_fill(target == self.ignore_index, self.bins).flatten()
        right = (preds == target).flatten().long()
        self.counts[0].scatter_add_(0, index, torch.ones_like(index))
        self.counts[1].scatter_add_(0, index, right)
        units = (confidence.flatten() * _UNITS).round().long()
        self.confidences.scatter_add_(0, index, units)

    def compute(self) -> dict[str, Tensor]:
        """Return the error and the bins of all batches of all processes.

        Returns:
            `ece`, a scalar in [0, 1], NaN without pixels, and of each bin, (bins,), the number of
            pixels `count`, the mean `confidence` and the `accuracy`, NaN in an empty bin.
        """
        # on the CPU, because MPS devices lack float64
        total, right = self.counts[:, :-1].cpu().double()
        sums = self.confidences[:-1].cpu().double() / _UNITS
        found = {
            "ece": (right - sums).abs().sum() / total.sum(),
            "confidence": sums / total,
            "accuracy": right / total,
        }
        device = self.counts.device
        scores = {name: value.float().to(device) for name, value in found.items()}
        return {**scores, "count": self.counts[0, :-1].clone()}
