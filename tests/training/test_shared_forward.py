"""One forward pass with two gradients gives what two forward passes give, to the last bit."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from lightning_seg.networks import FCDiscriminator
from lightning_seg.training.gradients import frozen
from lightning_seg.training.shared_forward import SharedForward, is_repeatable, scores_of


def networks():
    torch.manual_seed(0)
    one = FCDiscriminator(4, 8)
    return one, deepcopy(one)


def maps():
    return torch.rand(2, 4, 64, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()


@pytest.mark.parametrize("early", [False, True])
def test_gradients_equal_those_of_two_passes(early) -> None:
    (one, two), shown, other = networks(), maps(), maps()
    to_input, to_weights = scores_of(one, one, shown)
    assert to_weights is not None
    if early:
        to_input.square().mean().backward()
        to_weights.exp().mean().backward()
    else:
        (to_input.square().mean() + to_weights.exp().mean()).backward()
    with frozen(two):
        two(other).square().mean().backward()
    two(other.detach()).exp().mean().backward()
    assert torch.equal(shown.grad, other.grad)
    for found, expected in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(found.grad, expected.grad)


def test_each_gradient_reaches_its_own_side_only() -> None:
    (network, _), shown = networks(), maps()
    to_input, to_weights = scores_of(network, network, shown)
    to_input.sum().backward()
    assert all(weight.grad is None for weight in network.parameters())
    before = shown.grad.clone()
    to_weights.sum().backward()
    assert torch.equal(shown.grad, before)
    assert all(weight.requires_grad for weight in network.parameters())


def test_the_graph_is_freed_after_both_gradients() -> None:
    (network, _), shown = networks(), maps()
    shared = SharedForward(network, list(network.parameters()), shown)
    graph = shared.to_input.grad_fn.graph
    shared.to_weights.sum().backward()
    shared.to_input.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        graph.scores.sum().backward()


def test_a_network_without_trained_weights_or_a_gradient_has_one_score() -> None:
    network, _ = networks()
    assert scores_of(network, network, maps().detach())[1] is None
    with torch.no_grad():
        assert scores_of(network, network, maps())[1] is None
    network.requires_grad_(False)
    assert scores_of(network, network, maps())[1] is None


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([nn.Conv2d(4, 1, 3)], True),
        ([nn.Conv2d(4, 1, 3), nn.GroupNorm(1, 1)], True),
        ([nn.Conv2d(4, 1, 3), nn.BatchNorm2d(1)], False),
        ([nn.Conv2d(4, 1, 3), nn.Dropout2d()], False),
        ([nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 1, 3))], False),
    ],
)
def test_networks_whose_passes_may_differ_are_not_shared(layers, expected) -> None:
    network = nn.Sequential(*layers)
    assert is_repeatable(network) == expected
    assert (scores_of(network, network, maps())[1] is not None) == expected


def test_a_compiled_network_is_not_shared() -> None:
    network = nn.Sequential(nn.Conv2d(4, 1, 3))
    network.compile(backend="eager")
    assert not is_repeatable(network)
