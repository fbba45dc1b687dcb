"""The network of jigsaw puzzles against its own layers, applied by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lightning_seg.networks.encoder import TimmEncoder
from lightning_seg.networks.jigsaw import JigsawNetwork
from lightning_seg.networks.tiles import shuffle


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def encoder():
    # no batch norm in it: tiles can be looked at one by one
    return TimmEncoder("resnet18", options={"norm_layer": "groupnorm"}).double()


@pytest.mark.parametrize("training", [False, True])
def test_the_network_by_hand(encoder, training):
    network = JigsawNetwork(encoder, permutations=5, tiles=4, width=6).double().train(training)
    norm = network.reduce[1]
    with torch.no_grad():
        for each in (norm.weight, norm.bias, norm.running_mean):
            each.copy_(torch.randn(6))
        norm.running_var.copy_(torch.rand(6) + 0.5)
    tiles = torch.randn(3, 4, 3, 32, 32).double()
    linear = network.reduce[0]
    pooled = [[encoder(tiles[b, t][None])[-1][0].mean((1, 2)) for t in range(4)] for b in range(3)]
    flat = torch.stack([linear.weight @ each + linear.bias for row in pooled for each in row])
    mean, variance = norm.running_mean.clone(), norm.running_var.clone()
    if training:  # over all tiles of all images
        mean, variance = flat.mean(0), flat.var(0, unbiased=False)
    normal = (flat - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias
    rows = normal.clamp(min=0).view(3, 24)
    expected = rows @ network.classify.weight.T + network.classify.bias
    torch.testing.assert_close(network(tiles), expected)
    assert network.encoder is encoder


def test_the_order_of_tiles_counts(encoder):
    network = JigsawNetwork(encoder, permutations=5, tiles=4, width=6).double().eval()
    tiles = torch.randn(1, 4, 3, 32, 32).double()
    turned = shuffle(tiles, torch.tensor([[1, 0, 2, 3]]))
    assert (network(tiles) - network(turned)).abs().max() > 1e-6


def test_it_learns_an_order():
    encoder = TimmEncoder("resnet18")
    network = JigsawNetwork(encoder, permutations=2, tiles=4, width=8)
    pictures = torch.zeros(8, 4, 3, 32, 32)
    pictures[:, 0] = 1
    puzzle = torch.arange(8) % 2
    orders = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])
    tiles = shuffle(pictures + 0.1 * torch.randn_like(pictures), orders[puzzle])
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(15):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(tiles), puzzle)
        loss.backward()
        optimizer.step()
    assert loss < 0.2
    assert all(each.grad is not None for each in network.parameters())


@pytest.mark.parametrize("shape", [(2, 9, 3, 32, 32), (8, 3, 32, 32)])
def test_tiles_that_do_not_fit(encoder, shape):
    network = JigsawNetwork(encoder, permutations=5, tiles=4, width=6)
    with pytest.raises(ValueError, match=r"\(B, 4, 3, s, s\)"):
        network(torch.zeros(shape))


@pytest.mark.parametrize("setting", [{"permutations": 1}, {"tiles": 0}, {"width": 0}])
def test_settings_out_of_range(encoder, setting):
    (name,) = setting
    with pytest.raises(ValueError, match=f"{name} must be at least"):
        JigsawNetwork(encoder, **{"permutations": 5, **setting})
