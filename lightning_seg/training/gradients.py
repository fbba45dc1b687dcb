"""Gradients of one of several players: who gets none, and how they are averaged and clipped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_seg.processes import world_size


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Let gradients pass through a module to its input, but not to its weights.

    The flags are as before afterwards, also behind an exception. Graphs keep what was set when they
    were built, so the backward pass may come later.
    """
    learning = [weight for weight in module.parameters() if weight.requires_grad]
    for weight in learning:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in learning:
            weight.requires_grad_(True)


def average_gradients(module: nn.Module) -> None:
    """Replace a module's gradients by their mean over all processes, in one exchange."""
    gradients = [weight.grad for weight in module.parameters() if weight.grad is not None]
    if not gradients or world_size() == 1:
        return
    together = torch.cat([each.flatten() for each in gradients]) / world_size()
    dist.all_reduce(together)
    parts = torch.split(together, [each.numel() for each in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def share_weights(weights: Iterable[Tensor]) -> None:
    """Give all processes the first one's weights."""
    if world_size() > 1:
        for weight in weights:
            dist.broadcast(weight.detach(), 0)


def clip_gradients(optimizer: Optimizer, limit: float, algorithm: Literal["norm", "value"]) -> None:
    """Limit the gradients that an optimizer is to use, which must be unscaled.

    Args:
        optimizer: Whose parameters' gradients to change.
        limit: The largest norm of all of them together, or the largest absolute value.
        algorithm: Which of both.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    if algorithm == "norm":
        nn.utils.clip_grad_norm_(weights, limit)
    else:
        nn.utils.clip_grad_value_(weights, limit)
