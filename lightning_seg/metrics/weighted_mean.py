"""The mean of a loss over everything it was taken on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class WeightedMean(Metric):
    """sum_i w_i x_i / sum_i w_i over all batches and processes, without waiting for the device.

    torchmetrics' `MeanMetric` looks for NaN, which waits, or ignores the weights (1.9).

    Args:
        kwargs: Passed to `torchmetrics.Metric`.

    Example:
        >>> mean = WeightedMean()
        >>> mean.update(torch.tensor(2.0), torch.tensor(3))
        >>> mean.update(torch.tensor(6.0), torch.tensor(1))
        >>> mean.compute()
        tensor(3.)
    """

    full_state_update = False
    total: Tensor
    weight: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, value: Tensor, weight: Tensor) -> None:
        """Add a mean (a scalar) and the number of things that it is the mean of (int64)."""
        self.total += value.detach().float() * weight
        self.weight += weight

    def compute(self) -> Tensor:
        """Return the mean, NaN where nothing was added."""
        return self.total / self.weight
