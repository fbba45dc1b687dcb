"""Windows and their shares, against the definition written out pixel by pixel."""

import math
from itertools import pairwise

import pytest
import torch

from lightning_seg.inference import Grid, starts
from lightning_seg.inference.windows import blended, shares, windows_of

CASES = [
    (length, side, overlap)
    for length in (1, 2, 7, 20, 33)
    for side in (1, 2, 5, 7)
    for overlap in (0, 0.25, 0.5, 0.9)
    if side <= length
]


@pytest.mark.parametrize(("length", "side", "overlap"), CASES)
def test_windows_cover_the_axis_and_overlap_as_asked(length, side, overlap) -> None:
    begins = starts(length, side, overlap)
    assert begins[0] == 0
    assert begins[-1] == length - side
    steps = [b - a for a, b in pairwise(begins)]
    # the step of the definition, at least one pixel; no window stands twice
    assert all(1 <= step <= max(1, side * (1 - overlap)) for step in steps)
    # no more windows than needed
    assert len(begins) == 1 + math.ceil((length - side) / max(1, int(side * (1 - overlap))))


@pytest.mark.parametrize("blend", ["gaussian", "flat"])
@pytest.mark.parametrize(("length", "side", "overlap"), CASES)
def test_the_shares_of_a_pixel_sum_to_1(length, side, overlap, blend) -> None:
    begins = starts(length, side, overlap)
    total = torch.zeros(length, dtype=torch.float64)
    for begin, share in zip(begins, shares(begins, side, blend), strict=True):
        assert (share > 0).all()
        total[begin : begin + side] += share
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-15)


def test_gaussian_shares_are_those_of_a_gaussian_of_an_eighth_of_the_side() -> None:
    """Windows of 4 pixels begin at 0 and 2, so that their middles are at 1.5 and 3.5."""
    (first, second) = shares([0, 2], 4, "gaussian")
    weight = lambda x: math.exp(-(x**2) / (2 * 0.5**2))  # noqa: E731
    here, there = weight(2 - 1.5), weight(2 - 3.5)
    assert first[2].item() == pytest.approx(here / (here + there), rel=1e-12)
    assert second[0].item() == pytest.approx(there / (here + there), rel=1e-12)
    assert first[0] == 1  # covered once


def slow(size, window, overlap, blend, values):
    """The weighted mean of all windows at every pixel, by its definition."""
    grid = Grid(size, window, overlap, blend)
    h, w = grid.window
    profile = [
        [
            math.exp(-0.5 * ((i - (side - 1) / 2) * 8 / side) ** 2) if blend == "gaussian" else 1.0
            for i in range(side)
        ]
        for side in (h, w)
    ]
    weight = torch.tensor(profile[0])[:, None].double() * torch.tensor(profile[1]).double()
    total = torch.zeros(values[0].shape[0], *size, dtype=torch.float64)
    count = torch.zeros(size, dtype=torch.float64)
    places = [(top, left) for top in grid.tops for left in grid.lefts]
    for (top, left), value in zip(places, values, strict=True):
        total[:, top : top + h, left : left + w] += value * weight
        count[top : top + h, left : left + w] += weight
    return total / count


@pytest.mark.parametrize("blend", ["gaussian", "flat"])
@pytest.mark.parametrize(
    ("size", "window", "overlap"),
    [
        ((9, 13), (4, 5), 0.25),
        ((9, 13), (4, 5), 0.8),
        ((9, 13), (20, 5), 0.5),
        ((9, 13), (4, 20), 0.5),
        ((1, 30), (4, 7), 0.3),
        ((30, 1), (7, 4), 0.0),
        ((5, 6), (5, 6), 0.5),
        ((10, 11), (9, 10), 0.0),
    ],
)
def test_blocks_are_the_weighted_means_of_the_windows(size, window, overlap, blend) -> None:
    torch.manual_seed(0)
    grid = Grid(size, window, overlap, blend)
    values = [torch.randn(3, *grid.window, dtype=torch.float64) for _ in range(len(grid))]
    places = [(row, column) for row in range(len(grid.tops)) for column in range(len(grid.lefts))]
    found = torch.full((3, *size), torch.nan, dtype=torch.float64)
    pairs = ((place, value.clone()) for place, value in zip(places, values, strict=True))
    for top, left, block in blended(grid, pairs):
        part = found[:, top : top + block.shape[1], left : left + block.shape[2]]
        assert part.isnan().all()  # each pixel comes once
        part.copy_(block)
    torch.testing.assert_close(found, slow(size, window, overlap, blend, values))


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_batches_of_windows_are_the_parts_of_the_image_in_reading_order(batch_size) -> None:
    image = torch.arange(9 * 13).reshape(1, 9, 13)
    grid = Grid((9, 13), (4, 5), 0.25, "flat")
    seen, calls = {}, []

    def rows(top, bottom):
        calls.append((top, bottom))
        return image[:, top:bottom]

    for places, windows in windows_of(grid, rows, batch_size):
        assert len(places) <= batch_size
        seen |= dict(zip(places, windows, strict=True))
    assert list(seen) == sorted(seen)
    assert len(seen) == len(grid)
    assert calls == [(top, top + 4) for top in grid.tops]  # each strip is read once, downwards
    for (row, column), window in seen.items():
        top, left = grid.tops[row], grid.lefts[column]
        assert torch.equal(window, image[:, top : top + 4, left : left + 5])
