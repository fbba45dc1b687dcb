"""The network of colorization against its own layers, applied by hand."""

from __future__ import annotations

import math

import pytest
import torch
from plain_reading import by_hand

from lightning_seg.networks.colorization import ColorizationNetwork
from lightning_seg.networks.encoder import TimmEncoder


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def encoder():
    return TimmEncoder("resnet18", options={"norm_layer": "groupnorm"}).double()


def test_the_head_on_the_hypercolumn(encoder):
    network = ColorizationNetwork(encoder, outputs=7, width=12).double().eval()
    image, spots = torch.randn(2, 3, 64, 96).double(), torch.randint(64, (2, 5, 2))
    columns = by_hand(encoder(image), (64, 96), spots)
    assert columns.shape[2] == 64 + 64 + 128 + 256 + 512
    first, first_bias, second, second_bias = network.head.parameters()
    expected = (columns @ first.T + first_bias).clamp(min=0) @ second.T + second_bias
    found = network(image, spots)
    assert found.shape == (2, 5, 7)
    torch.testing.assert_close(found, expected)
    assert network.encoder is encoder


def test_dropout_is_of_hidden_units_in_training(encoder):
    network = ColorizationNetwork(encoder, outputs=3, width=4000, dropout=0.3).double()
    hidden = network.head[:3](torch.randn(1, 1024).double())
    alive = network.head[:2](torch.randn(1, 1024).double())
    assert (alive > 0).double().mean().item() == pytest.approx(0.5, abs=0.1)
    assert (hidden > 0).double().mean().item() == pytest.approx(0.5 * 0.7, abs=0.1)
    network.eval()
    image, spots = torch.randn(1, 3, 64, 64).double(), torch.randint(64, (1, 5, 2))
    assert torch.equal(network(image, spots), network(image, spots))


def test_the_first_layers_own_start(encoder):
    network = ColorizationNetwork(encoder, outputs=64, init_std=1e-4)
    hidden = network.head[0]
    assert hidden.weight.shape == (1024, 1024)
    assert hidden.weight.std().item() == pytest.approx(1e-4, rel=0.02)
    assert hidden.weight.mean().abs().item() < 1e-6
    assert (hidden.bias == 0).all()
    usual = ColorizationNetwork(encoder, outputs=64).head[0]
    assert usual.weight.std().item() == pytest.approx(1 / math.sqrt(3 * 1024), rel=0.02)
    assert (usual.bias != 0).any()


def test_the_penalty_is_of_matrices_only(encoder):
    network = ColorizationNetwork(encoder, outputs=3, width=5)
    matrices = [each for each in network.head.parameters() if each.ndim == 2]
    expected = sum(value**2 for each in matrices for value in each.flatten().tolist())
    penalty = network.head_penalty()
    assert penalty.shape == ()
    assert penalty.item() == pytest.approx(expected, rel=1e-5)
    penalty.backward()
    for each in network.head.parameters():
        if each.ndim == 2:
            torch.testing.assert_close(each.grad, 2 * each.detach())
        else:
            assert each.grad is None


def test_every_map_learns():
    # with its usual start, residual branches are multiplied by 0
    encoder = TimmEncoder("resnet18", options={"zero_init_last": False})
    network = ColorizationNetwork(encoder, outputs=3, width=16, dropout=0.0)
    network(torch.randn(2, 3, 64, 64), torch.randint(64, (2, 9, 2))).square().sum().backward()
    assert all(each.grad.abs().sum() > 0 for each in network.parameters())


@pytest.mark.parametrize(
    "setting",
    [
        {"outputs": 0}, {"width": 0}, {"dropout": 1.0}, {"dropout": -0.1}, {"init_std": 0.0},
        {"init_std": math.nan},
    ],
)  # fmt: skip
def test_settings_out_of_range(encoder, setting):
    (name,) = setting
    with pytest.raises(ValueError, match=f"{name} must be"):
        ColorizationNetwork(encoder, **{"outputs": 4, **setting})
