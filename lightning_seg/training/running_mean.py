"""A copy of a network whose weights are the running mean of the network's weights."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn


class RunningMean(nn.Module):
    """The exponential moving average of a network's weights, as a network that is not trained.

    After every step the weights m become m + (1 - decay) (w - m) for the network's weights w. The
    statistics of batch norms are averaged, too, and the mean is always in evaluation mode.

    Args:
        network: The network; the mean starts as a copy of it.
        decay: Share of the mean that is kept at a step, in [0, 1).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.mean = deepcopy(network).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> RunningMean:
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, *inputs: Any) -> Any:
        """Return what the network returns, by the mean of its weights."""
        return self.mean(*inputs)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move the mean towards the weights of the network."""
        old, new = list(self.mean.state_dict().values()), list(network.state_dict().values())
        places = [place for place, value in enumerate(new) if value.is_floating_point()]
        torch._foreach_lerp_(
            [old[place] for place in places], [new[place] for place in places], 1 - self.decay
        )
        for before, value in zip(old, new, strict=True):
            if not value.is_floating_point():  # numbers of batches
                before.copy_(value)
