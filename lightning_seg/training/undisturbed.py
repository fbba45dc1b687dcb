"""A look at a module in the middle of a training, which leaves no trace in it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Evaluate a module without gradients, and restore all modes and random states at the end.

    Every part of the module gets back its own mode, because frozen batch norms are in evaluation
    mode while the module trains. Batch norms do not update their statistics in this block.

    Args:
        module: The module that is evaluated in the block.

    Examples:
        >>> layer = nn.Sequential(nn.Dropout(0.5)).train()
        >>> with undisturbed(layer):
        ...     layer(torch.ones(3)), layer.training
        (tensor([1., 1., 1.]), False)
        >>> layer.training
        True
    """
    modes = [(part, part.training) for part in module.modules()]
    weight = next(module.parameters(), None)
    devices = [weight.device] if weight is not None and weight.device.type == "cuda" else []
    python, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices), torch.no_grad():
        for part, _ in modes:
            part.training = False
        try:
            yield
        finally:
            for part, mode in modes:
                part.training = mode
            random.setstate(python)
            np.random.set_state(arrays)
