"""One forward pass of a network with two gradients: to its input, and to its weights.

A discriminator judges the same predictions twice. The segmenter's loss needs the gradient of the
predictions, and the discriminator's own loss needs the gradient of its weights, on detached
predictions. Both losses depend on the same scores, so that one forward pass serves both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lightning_seg.training.gradients import frozen


class SharedForward:
    """The scores of a network for an input, which two losses use.

    Args:
        network: A function from the input to the scores.
        weights: The network's weights that are trained.
        maps: The input, with a gradient to the network that made it.

    Attributes:
        to_input: The scores, whose gradient reaches `maps` and no weight.
        to_weights: The scores, whose gradient reaches the weights and not `maps`.

    The gradients of both may be asked for in any order. The graph of the pass is freed after both.

    Examples:
        >>> layer, x = nn.Linear(1, 1, bias=False), torch.ones(1, 1, requires_grad=True)
        >>> shared = SharedForward(layer, list(layer.parameters()), x)
        >>> shared.to_input.sum().backward()
        >>> x.grad is not None, layer.weight.grad is None
        (True, True)
        >>> shared.to_weights.sum().backward()
        >>> layer.weight.grad.item()
        1.0
    """

    def __init__(
        self, network: Callable[[Tensor], Tensor], weights: list[nn.Parameter], maps: Tensor
    ) -> None:
        leaf = maps.detach().requires_grad_()
        graph = _Graph(network(leaf), leaf, weights)
        self.to_input: Tensor = _Head.apply(graph, "input", maps)
        self.to_weights: Tensor = _Head.apply(graph, "weights", *weights)


def is_repeatable(network: nn.Module) -> bool:
    """Return whether two forward passes of a network on one input surely have the same results.

    A network with buffers may count its passes or change running statistics, and dropout draws
    random numbers. A compiled network does not keep its graph for a second gradient.
    """
    random = any(isinstance(each, nn.modules.dropout._DropoutNd) for each in network.modules())
    compiled = network._compiled_call_impl is not None
    return not random and not compiled and next(network.buffers(), None) is None


def scores_of(network: nn.Module, run: Callable[[Tensor], Tensor], maps: Tensor) -> SharedScores:
    """Return the scores of a network for an input, without a gradient to its weights.

    Args:
        network: The network.
        run: A function from the input to the scores, which calls the network.
        maps: The input.

    Returns:
        The scores with a gradient to `maps` only, and those with a gradient to the weights only:
        None where they need a forward pass of their own.
    """
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    if torch.is_grad_enabled() and maps.requires_grad and weights and is_repeatable(network):
        shared = SharedForward(run, weights, maps)
        return shared.to_input, shared.to_weights
    with frozen(network):
        return run(maps), None


SharedScores = tuple[Tensor, Tensor | None]


class _Graph:
    """The graph of the forward pass, and which of its gradients are computed."""

    def __init__(self, scores: Tensor, leaf: Tensor, weights: list[nn.Parameter]) -> None:
        self.scores = scores
        self.of: dict[str, list[Any]] = {"input": [leaf], "weights": weights}
        self.done: set[str] = set()

    def gradients(self, head: str, gradient: Tensor) -> tuple[Tensor | None, ...]:
        self.done.add(head)
        return torch.autograd.grad(
            self.scores,
            self.of[head],
            gradient,
            retain_graph=len(self.done) < len(self.of),
            allow_unused=True,
        )


class _Head(torch.autograd.Function):
    """The scores as a function of one of two things: the input or the weights."""

    @staticmethod
    def forward(ctx: Any, graph: _Graph, head: str, *inputs: Tensor) -> Tensor:
        ctx.graph, ctx.head = graph, head
        return graph.scores.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.graph.gradients(ctx.head, gradient)
