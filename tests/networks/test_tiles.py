"""Permutations against brute force, tiles against plain loops."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lightning_seg.networks.tiles import (
    _far_permutations,
    cut_tiles,
    far_permutations,
    shuffle,
    unshuffle,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# Permutations


def hamming(one, other):
    return sum(a != b for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("count", [2, 7, 24])
def test_each_of_4_tiles_is_a_best_choice(count, seed):
    chosen = [tuple(each) for each in far_permutations(count, 4, seed).tolist()]
    every = list(itertools.permutations(range(4)))
    assert len(set(chosen)) == count
    assert set(chosen) <= set(every)
    for step in range(1, count):
        before = chosen[:step]
        scores = {
            each: (min(hamming(each, b) for b in before), sum(hamming(each, b) for b in before))
            for each in every
            if each not in before
        }
        assert scores[chosen[step]] == max(scores.values())


def distances(chosen):
    return (chosen[:, None] != chosen).sum(2)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_first_9_of_9_tiles_differ_everywhere(seed):
    chosen = far_permutations(9, 9, seed)
    off = ~torch.eye(9, dtype=torch.bool)
    assert (distances(chosen)[off] == 9).all()


def test_a_thousand_of_9_tiles():
    chosen = far_permutations(1000)
    assert chosen.shape == (1000, 9)
    assert chosen.dtype == torch.int64
    assert torch.equal(chosen.sort(1).values, torch.arange(9).expand(1000, 9))
    apart = distances(chosen).fill_diagonal_(9)
    # 0 would be a permutation twice; random ones have pairs at 2
    assert apart.min() == 5
    torch.manual_seed(1)
    drawn = torch.rand(1000, 9).argsort(1)
    assert distances(drawn).fill_diagonal_(9).min() < 4
    # greedy: the distance to those before never grows
    nearest = [int(apart[at, :at].min()) for at in range(1, 1000)]
    assert nearest == sorted(nearest, reverse=True)
    assert torch.equal(far_permutations(100), chosen[:100])


def test_far_permutations_are_a_matter_of_the_seed_alone():
    _far_permutations.cache_clear()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    first = far_permutations(20, 9, 3)
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    _far_permutations.cache_clear()
    random.seed(6), np.random.seed(6), torch.manual_seed(6)
    assert torch.equal(far_permutations(20, 9, 3), first)
    assert not torch.equal(far_permutations(20, 9, 4), first)


def test_what_is_handed_out_is_a_copy():
    first = far_permutations(5, 4)
    kept = first.clone()
    first.zero_()
    assert torch.equal(far_permutations(5, 4), kept)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ((1, 9), "1 permutations of 9 tiles.*362880"),
        ((362_881, 9), "362881"),
        ((25, 4), "25 permutations of 4 tiles.*24"),
        ((5, 16), "tiles must be 4 or 9, not 16"),
        ((5, 6), "tiles must be"),
        ((5, 9, -1), "seed must be"),
    ],
)
def test_sets_that_do_not_exist(settings, told):
    with pytest.raises(ValueError, match=told):
        far_permutations(*settings)


# Tiles


def tiles_by_hand(images, offsets, grid, jitter, size):
    height, width = images.shape[-2:]
    square = min(height, width)
    cell = square // grid
    tile = cell - math.floor(cell * jitter)
    top, left = (height - square) // 2, (width - square) // 2
    found = []
    for image, places in zip(images, offsets.tolist(), strict=True):
        for index, (down, across) in enumerate(places):
            y = top + index // grid * cell + math.floor(down * (cell - tile + 1))
            x = left + index % grid * cell + math.floor(across * (cell - tile + 1))
            cut = image[:, y : y + tile, x : x + tile]
            if tile != size:
                cut = F.interpolate(cut[None], (size, size), mode="bilinear", antialias=True)[0]
            found.append(cut)
    return torch.stack(found).view(len(images), grid * grid, 3, size, size)


@pytest.mark.parametrize(
    ("shape", "grid", "jitter", "size"),
    [
        ((255, 255), 3, 0.25, 64),
        ((60, 91), 3, 0.25, 15),  # cells of 20
        ((91, 60), 3, 0.25, 16),
        ((40, 41), 2, 0.0, 20),
        ((40, 41), 2, 0.5, 7),
        ((100, 98), 3, 0.9, 8),
        ((3, 5), 3, 0.25, 1),
    ],
)
def test_tiles_equal_the_loop(shape, grid, jitter, size):
    images, offsets = torch.rand(3, 3, *shape), torch.rand(3, grid * grid, 2)
    found = cut_tiles(images, offsets, grid, jitter, size)
    expected = tiles_by_hand(images, offsets, grid, jitter, size)
    assert found.shape == (3, grid * grid, 3, size, size)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_255_pixels_give_tiles_of_64_as_they_are():
    image = torch.arange(255 * 255.0).view(1, 1, 255, 255).expand(1, 3, -1, -1)
    for offset, shift in ((0.0, 0), (0.5, 11), (1 - 2**-24, 21)):
        tiles = cut_tiles(image, torch.full((1, 9, 2), offset))
        assert tiles.shape == (1, 9, 3, 64, 64)
        corner = tiles[0, :, 0, 0, 0].long()
        expected = [(85 * y + shift) * 255 + 85 * x + shift for y in range(3) for x in range(3)]
        assert corner.tolist() == expected
        assert tiles[0, 4, 0, 63, 63] == corner[4] + 63 * 255 + 63


def test_offsets_reach_every_place_of_the_cell_alike():
    image = torch.arange(12 * 12.0).view(1, 1, 12, 12).expand(4000, 3, -1, -1)
    tiles = cut_tiles(image, torch.rand(4000, 4, 2), grid=2, jitter=0.5, size=3)
    # cells of 6, tiles of 3: four rows and four columns
    corner = tiles[:, 0, 0, 0, 0].long()
    places, counts = corner.unique(return_counts=True)
    assert places.tolist() == [12 * y + x for y in range(4) for x in range(4)]
    assert ((counts - 250).abs() < 6 * math.sqrt(250)).all()


def test_no_offset_leaves_the_cell():
    image = torch.zeros(1, 3, 12, 12)
    image[..., :6, :6] = 1
    below_1 = torch.full((1, 4, 2), math.nextafter(1.0, 0.0), dtype=torch.float64)
    for offsets in (below_1, below_1.float(), torch.full((1, 4, 2), 1 - 2**-24)):
        tiles = cut_tiles(image, offsets, grid=2, jitter=0.5, size=3)
        assert (tiles[0, 0] == 1).all()
        assert (tiles[0, 1:] == 0).all()


@pytest.mark.parametrize(
    ("shape", "offsets", "settings", "told"),
    [
        ((1, 3, 9, 9), (1, 9, 2), {"jitter": 1.0}, "jitter"),
        ((1, 3, 9, 9), (1, 9, 2), {"jitter": -0.1}, "jitter"),
        ((1, 3, 9, 9), (1, 9, 2), {"size": 0}, "size"),
        ((1, 3, 9, 9), (1, 0, 2), {"grid": 0}, "grid"),
        ((1, 3, 9, 9), (1, 4, 2), {}, "do not fit"),
        ((2, 3, 9, 9), (1, 9, 2), {}, "do not fit"),
        ((3, 9, 9), (3, 9, 2), {}, "do not fit"),
        ((1, 3, 2, 9), (1, 9, 2), {}, "2x9 pixels are too small"),
    ],
)
def test_tiles_that_cannot_be_cut(shape, offsets, settings, told):
    with pytest.raises(ValueError, match=told):
        cut_tiles(torch.zeros(shape), torch.zeros(offsets), **settings)


# Order


def test_shuffling_and_back():
    tiles = torch.rand(5, 9, 3, 4, 4)
    permutations = torch.stack([torch.randperm(9) for _ in range(5)])
    mixed = shuffle(tiles, permutations)
    for image, order in enumerate(permutations.tolist()):
        for t, source in enumerate(order):
            assert torch.equal(mixed[image, t], tiles[image, source])
    assert torch.equal(unshuffle(mixed, permutations), tiles)
    assert not torch.equal(unshuffle(tiles, permutations), mixed)


@pytest.mark.parametrize("order", [shuffle, unshuffle])
@pytest.mark.parametrize("shape", [(2, 8), (1, 9), (9,)])
def test_orders_that_do_not_fit(order, shape):
    with pytest.raises(ValueError, match="do not fit"):
        order(torch.zeros(2, 9, 3, 4, 4), torch.zeros(shape, dtype=torch.int64))
