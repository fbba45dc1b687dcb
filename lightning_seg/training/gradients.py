"""Gradients of one of two players, and what processes share: weights and running statistics."""

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

    `requires_grad` of the weights is restored at the end of the block, also after an exception. The
    backward pass may come later, because a graph keeps the flags with which it was built.

    Args:
        module: The module whose weights get no gradient.

    Examples:
        >>> layer, x = nn.Linear(1, 1), torch.ones(1, 1, requires_grad=True)
        >>> with frozen(layer):
        ...     y = layer(x)
        >>> y.backward()
        >>> x.grad is not None, layer.weight.grad, layer.weight.requires_grad
        (True, None, True)
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
    """Replace a module's gradients by their mean over all processes, in one all-reduce."""
    gradients = [weight.grad for weight in module.parameters() if weight.grad is not None]
    if not gradients or world_size() == 1:
        return
    together = torch.cat([each.flatten() for each in gradients]) / world_size()
    dist.all_reduce(together)
    parts = torch.split(together, [each.numel() for each in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def share_weights(weights: Iterable[Tensor]) -> None:
    """Copy the weights of the first process to all processes."""
    if world_size() > 1:
        for weight in weights:
            dist.broadcast(weight.detach(), 0)


def share_statistics(module: nn.Module) -> None:
    """Copy the running statistics of batch norms of the first process to all, in one broadcast."""
    running = ("running_mean", "running_var")
    found = [each for name, each in module.named_buffers() if name.endswith(running)]
    if not found or world_size() == 1:
        return
    together = torch.cat(found)
    dist.broadcast(together, 0)
    for buffer, part in zip(
        found, torch.split(together, [len(each) for each in found]), strict=True
    ):
        buffer.copy_(part)


def clip_gradients(optimizer: Optimizer, limit: float, algorithm: Literal["norm", "value"]) -> None:
    """Clip the gradients of an optimizer's parameters, which must be unscaled.

    Args:
        optimizer: The optimizer whose parameters have the gradients.
        limit: Largest norm of all gradients together, or largest absolute value of one, above 0.
        algorithm: Whether `limit` is a `norm` or a `value`.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    if algorithm == "norm":
        nn.utils.clip_grad_norm_(weights, limit)
    else:
        nn.utils.clip_grad_value_(weights, limit)
