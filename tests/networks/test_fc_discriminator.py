"""The discriminator against the authors' table of layers."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_seg.networks import FCDiscriminator


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_the_authors_layers_for_21_classes():
    network = FCDiscriminator(21)
    shapes = [tuple(each.shape) for each in network.parameters()]
    channels = [21, 64, 128, 256, 512, 1]
    wanted = []
    for before, after in pairwise(channels):
        wanted += [(after, before, 4, 4), (after,)]
    assert shapes == wanted
    assert sum(each.numel() for each in network.parameters()) == 2_783_169
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            assert (layer.kernel_size, layer.stride, layer.padding) == ((4, 4), (2, 2), (1, 1))
    assert not list(network.buffers())  # no normalisation


@pytest.mark.parametrize(
    ("size", "expected"),
    [((321, 321), (10, 10)), ((512, 1024), (16, 32)), ((505, 505), (15, 15)), ((32, 32), (1, 1)),
     ((63, 95), (1, 2))],
)  # fmt: skip
def test_sizes(size, expected):
    with torch.device("meta"):
        scores = FCDiscriminator(21)(torch.empty(2, 21, *size))
    assert scores.shape == (2, 1, *expected)


def test_four_leaky_relus_and_a_linear_end():
    network, maps = FCDiscriminator(5, width=3).double(), torch.randn(2, 5, 70, 45).double()
    weights = list(network.parameters())
    expected = maps
    for index in range(5):
        expected = F.conv2d(expected, *weights[2 * index : 2 * index + 2], stride=2, padding=1)
        if index < 4:
            expected = expected.where(expected > 0, 0.2 * expected)
    torch.testing.assert_close(network(maps), expected)


def test_a_logit_has_seen_94_by_94_pixels():
    network = FCDiscriminator(3, width=2).double()
    maps = torch.randn(1, 3, 256, 256).double().requires_grad_()
    scores = network(maps)
    for y, x in ((3, 3), (3, 4)):
        (gradient,) = torch.autograd.grad(scores[0, 0, y, x], maps, retain_graph=True)
        seen = gradient.abs().sum((0, 1)) > 0
        for axis, at in ((0, y), (1, x)):
            places = seen.any(1 - axis).nonzero().flatten()
            # 32 apart, and 31 more on each side
            assert (places[0].item(), places[-1].item()) == (32 * at - 31, 32 * at + 62)
            assert len(places) == 94


def test_maps_stay_as_they_are():
    maps = torch.randn(1, 4, 40, 40)
    before = maps.clone()
    FCDiscriminator(4, width=2)(maps)
    assert torch.equal(maps, before)


@pytest.mark.parametrize("size", [(31, 64), (64, 31), (1, 1)])
def test_maps_that_are_too_small(size):
    with pytest.raises(ValueError, match=f"32x32.*{size[0]}x{size[1]}.*crop_size"):
        FCDiscriminator(3, width=2)(torch.zeros(1, 3, *size))
