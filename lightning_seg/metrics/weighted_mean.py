"""The weighted mean of a loss over batches and processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class WeightedMean(Metric):
    """The mean sum_i w_i x_i / sum_i w_i over all batches and processes.

    An update does not synchronise with the device. `torchmetrics.MeanMetric` (version 1.9)
    synchronises to find NaN, or ignores the weights.

    Args:
        kwargs: Keyword arguments of `torchmetrics.Metric`.

    Examples:
        A mean of 2 over three values and a mean of 6 over one: (3 * 2 + 1 * 6) / 4.

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
        """Add the mean of a batch.

        Args:
            value: A scalar, the mean x_i.
            weight: An int64 scalar w_i, the number of values in the mean; a batch of weight 0
                must have a finite mean.
        """
        self.total += value.detach().float() * weight
        self.weight += weight

    def compute(self) -> Tensor:
        """Return the mean as a float32 scalar, NaN where the weights sum to 0."""
        return self.total / self.weight
