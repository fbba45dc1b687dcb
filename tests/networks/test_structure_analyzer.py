"""The structure analyzer against the authors' table of layers and brute force."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from lightning_seg.losses import one_hot_map, structure_hinge_loss, structure_matching_loss
from lightning_seg.networks import StructureAnalyzer

SIZES = [(64, 64), (33, 47), (32, 1), (1, 1), (5, 70)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_the_authors_layers_for_21_classes():
    network = StructureAnalyzer(21)
    weights = [tuple(each.shape) for each in network.parameters() if each.ndim == 4]
    encoder = [(16, 21), (64, 16), (128, 64), (128, 128), (128, 128)]
    decoder = [(128, 128), (128, 256), (64, 256), (16, 128)]
    assert weights == [(*each, 3, 3) for each in encoder + decoder] + [(21, 32, 1, 1)]
    biases = [len(each) for each in network.parameters() if each.ndim == 1]
    assert biases == [each[0] for each in weights]
    assert sum(each.numel() for each in network.parameters()) == 990_629
    assert not list(network.buffers())  # no normalisation


def halved(size, times):
    for _ in range(times):
        size = tuple(math.ceil(each / 2) for each in size)
    return size


@pytest.mark.parametrize("size", SIZES)
def test_sizes(size):
    widths = (16, 64, 128, 128, 128)
    network = StructureAnalyzer(4, taps=(1, 2, 3, 4, 5))
    features, rebuilt = network(torch.randn(2, 4, *size))
    for tap, (each, width) in enumerate(zip(features, widths, strict=True), start=1):
        assert each.shape == (2, width, *halved(size, tap))
    assert rebuilt.shape == (2, 4, *size)


def by_hand(network, maps):
    """All features, and the reconstruction of a U-Net with concatenated skips."""
    weights = list(network.parameters())
    encoder, decoder, head = weights[:10], weights[10:18], weights[18:]
    features, skips, out = [], [], maps
    for index in range(5):
        features.append(F.conv2d(out, *encoder[2 * index : 2 * index + 2], stride=2, padding=1))
        out = features[-1].clamp(min=0)
        skips.append(out)
    for index, skip in enumerate(skips[3::-1]):
        out = F.conv2d(out, *decoder[2 * index : 2 * index + 2], padding=1).clamp(min=0)
        out = F.interpolate(out, skip.shape[-2:], mode="bilinear")
        out = torch.cat([out, skip], 1)
    out = F.conv2d(out, *head)
    return features, F.interpolate(out, maps.shape[-2:], mode="bilinear")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("taps", [(1, 2), (3,), (1, 2, 3), (2, 5)])
def test_what_it_computes(taps, size):
    network, maps = StructureAnalyzer(4, taps).double(), torch.randn(2, 4, *size).double()
    features, rebuilt = by_hand(network, maps)
    wanted = [features[tap - 1] for tap in taps]
    found, again = network(maps)
    torch.testing.assert_close((found, again), (wanted, rebuilt))
    torch.testing.assert_close(network.features(maps), wanted)


def test_features_are_those_before_the_relu():
    network = StructureAnalyzer(4, (1, 2, 3, 4, 5))
    for each in network.features(torch.randn(2, 4, 64, 64)):
        assert (each < 0).any()


@pytest.mark.parametrize("channels", [1, 3])
def test_depths_and_normals(channels):
    network = StructureAnalyzer(channels)
    _, rebuilt = network(torch.randn(1, channels, 20, 30))
    assert rebuilt.shape == (1, channels, 20, 30)


def test_kernels_and_biases_are_drawn_by_glorot():
    """TensorFlow 1: a bias of n values counts as n in and n out."""
    for weight in StructureAnalyzer(21).parameters():
        if weight.ndim == 4:
            after, before, *window = weight.shape
            bound = math.sqrt(6 / (math.prod(window) * (before + after)))
        else:
            bound = math.sqrt(6 / (2 * len(weight)))
        # the largest of n values stays below (1 - t) of the bound with probability (1 - t)^n
        near = bound * (1 - 12 / weight.numel())
        assert near < weight.abs().max() <= bound
        if weight.numel() > 1000:
            assert weight.mean().abs() < 4 * bound / math.sqrt(3 * weight.numel())
            assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


# Void


@pytest.mark.parametrize("size", [(33, 47), (40, 40), (7, 12)])
def test_a_place_is_valid_if_it_has_seen_no_void_pixel(size):
    taps = (1, 2, 3)
    network = StructureAnalyzer(2, taps)
    valid = torch.rand(3, *size) < 0.99
    valid[0, 2:4, 3:9] = False
    valid[2] = True
    found = network.valid(valid)
    for tap, each in zip(taps, found, strict=True):
        assert each.dtype == torch.bool
        assert each.shape == (3, *halved(size, tap))
        reach, step = 2**tap - 1, 2**tap  # 3, 7, 15 pixels wide
        for b, y, x in torch.ones_like(each).nonzero().tolist():
            rows = slice(max(step * y - reach, 0), step * y + reach + 1)
            columns = slice(max(step * x - reach, 0), step * x + reach + 1)
            assert each[b, y, x] == valid[b, rows, columns].all()
    assert all(each[2].all() for each in found)
    assert not any(each.any() for each in network.valid(torch.zeros_like(valid)))


def test_features_of_valid_places_do_not_depend_on_void_pixels():
    network = StructureAnalyzer(2, (1, 2, 3))
    ok = torch.ones(1, 40, 40, dtype=torch.bool)
    ok[0, 11:14, 20:23] = False
    maps = torch.randn(1, 2, 40, 40)
    other = maps.where(ok[:, None], torch.randn_like(maps))
    places = network.valid(ok)
    for one, two, each in zip(network.features(maps), network.features(other), places, strict=True):
        same = (one == two).all(1)
        assert torch.equal(same, each)


def test_valid_places_follow_the_taps():
    valid = torch.rand(1, 30, 30) < 0.95
    all_of_them = StructureAnalyzer(2, (1, 2, 3, 4, 5)).valid(valid)
    for taps in ((1, 2), (2,), (3, 5)):
        found = StructureAnalyzer(2, taps).valid(valid)
        assert len(found) == len(taps)
        assert all(torch.equal(all_of_them[t - 1], f) for t, f in zip(taps, found, strict=True))


# Who learns from what


def moved(loss, network):
    """Names of the parameters that get a gradient other than 0."""
    network.zero_grad()
    loss.backward()
    return {
        name
        for name, weight in network.named_parameters()
        if weight.grad is not None and (weight.grad != 0).any()
    }


def test_which_loss_teaches_which_layers():
    network = StructureAnalyzer(4)
    truth = torch.randint(4, (2, 40, 40))
    maps = one_hot_map(truth, 4)
    wrong = one_hot_map(truth.where(torch.rand(truth.shape) < 0.95, 0), 4)
    names = [name for name, _ in network.named_parameters()]
    taps = set(names[:4])  # weights and biases of blocks 1 and 2

    features, _ = network(maps)
    told = structure_hinge_loss(features, network.features(wrong))
    assert 0 < told < 1.6
    assert moved(told, network) == taps
    features, _ = network(maps)
    assert moved(structure_matching_loss(features, network.features(wrong)), network) == taps
    assert moved(F.cross_entropy(network(maps)[1], truth), network) == set(names)


def test_it_learns_to_reconstruct_labels():
    network, truth = StructureAnalyzer(3), torch.randint(3, (2, 4, 4))
    truth = truth.repeat_interleave(8, 1).repeat_interleave(8, 2)
    optimizer, losses = torch.optim.Adam(network.parameters(), 3e-3), []
    for _ in range(40):
        losses.append(F.cross_entropy(network(one_hot_map(truth, 3))[1], truth))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]


# Arguments


@pytest.mark.parametrize("taps", [(), (0,), (6,), (1, 6), (2, 1), (1, 1), (-1, 2)])
def test_taps_that_are_no_blocks(taps):
    with pytest.raises(ValueError, match="taps"):
        StructureAnalyzer(3, taps)


@pytest.mark.parametrize("widths", [(5,), (4, 6), (3, 5, 7, 9)])
def test_other_widths(widths):
    network = StructureAnalyzer(3, (1,), widths)
    features, rebuilt = network(torch.randn(1, 3, 20, 17))
    assert [each.shape[1] for each in features] == [widths[0]]
    assert rebuilt.shape == (1, 3, 20, 17)


def test_the_reconstruction_at_half_the_size_is_upsampled_to_the_whole_one() -> None:
    analyzer = StructureAnalyzer(3, widths=(4, 8))
    ids = torch.randint(4, (2, 13, 18))
    features, whole = analyzer(ids)
    again, half = analyzer(ids, full_size=False)
    assert half.shape == (2, 3, 7, 9)
    assert all(map(torch.equal, features, again))
    upsampled = F.interpolate(half, (13, 18), mode="bilinear", align_corners=False)
    assert torch.equal(upsampled, whole)
