"""Sparse hypercolumns against plain loops."""

from __future__ import annotations

import pytest
import torch
from plain_reading import by_hand

from lightning_seg.networks.hypercolumn import read_at

SIZE = (24, 40)
SHAPES = [(3, 24, 40), (2, 12, 20), (4, 5, 7), (1, 1, 10), (2, 3, 1), (5, 1, 1)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def some_maps(dtype=torch.float64):
    return [torch.randn(2, *shape, dtype=torch.float64).to(dtype) for shape in SHAPES]


def integer_locations():
    inside = torch.stack([torch.randint(each, (2, 30)) for each in SIZE], -1)
    corners = torch.tensor([[0, 0], [0, 39], [23, 0], [23, 39]]).expand(2, -1, -1)
    return torch.cat([inside, corners], 1)


def test_reading_equals_the_loop_at_pixels():
    maps, locations = some_maps(), integer_locations()
    found = read_at(maps, SIZE, locations)
    assert found.shape == (2, 34, sum(shape[0] for shape in SHAPES))
    torch.testing.assert_close(found, by_hand(maps, SIZE, locations))


def test_reading_equals_the_loop_between_pixels_and_beyond_the_border():
    maps = some_maps()
    locations = torch.rand(2, 50, 2, dtype=torch.float64) * 60 - 10
    torch.testing.assert_close(read_at(maps, SIZE, locations), by_hand(maps, SIZE, locations))


def test_a_map_of_the_images_size_gives_the_pixels():
    maps, locations = torch.randn(2, 3, *SIZE), integer_locations()
    found = read_at([maps], SIZE, locations)
    for image in range(2):
        row, column = locations[image].T
        expected = maps[image][:, row, column].T
        torch.testing.assert_close(found[image], expected, rtol=0, atol=1e-4)


def test_there_is_no_shift_by_half_a_pixel():
    """A ramp over the columns of a map at a fourth of the size, worked by hand."""
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    spots = torch.tensor([[[0, 0], [5, 2], [9, 8], [1, 12], [1, 15]]])
    found = read_at([ramp], (16, 16), spots).flatten()
    assert found.tolist() == pytest.approx([0, 0.5, 2, 3, 3], abs=1e-6)


def test_rows_and_columns_have_their_own_scale():
    """A map of 2x2 for an image of 4x16: a column of 4 is half way, a row of 1 likewise."""
    maps = torch.tensor([[[[0.0, 10.0], [100.0, 110.0]]]])
    spots = torch.tensor([[[0, 4], [1, 0], [1, 4], [2, 8]]])
    found = read_at([maps], (4, 16), spots).flatten()
    assert found.tolist() == pytest.approx([5, 50, 55, 110])


def test_gradients_go_to_what_was_read():
    shapes = [(2, 3, 4, 5), (2, 2, 1, 1), (2, 1, 2, 1)]
    maps = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    locations = torch.rand(2, 3, 2, dtype=torch.float64) * 8
    assert torch.autograd.gradcheck(lambda *each: read_at(each, (8, 10), locations), maps)
    leaf = torch.zeros(1, 1, 2, 2, requires_grad=True)
    read_at([leaf], (4, 4), torch.tensor([[[0, 1], [3, 3]]])).sum().backward()
    assert leaf.grad.flatten().tolist() == pytest.approx([0.5, 0.5, 0, 1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_are_read_at_exact_places(dtype):
    ramp = torch.arange(256.0).expand(1, 1, 2, 256).to(dtype).requires_grad_()
    spots = torch.stack([torch.zeros(509), torch.arange(509.0)], -1)[None]
    found = read_at([ramp], (4, 512), spots)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.flatten(), torch.arange(509) / 2, rtol=0, atol=1e-3)
    found.sum().backward()
    assert ramp.grad.dtype == dtype


def test_maps_in_their_order():
    one, two = torch.ones(1, 2, 3, 3), torch.full((1, 3, 2, 2), 2.0)
    found = read_at([two, one], (9, 9), torch.tensor([[[4, 4]]]))
    assert found.flatten().tolist() == [2, 2, 2, 1, 1]


@pytest.mark.parametrize(
    ("maps", "size", "locations", "told"),
    [
        ([], (8, 8), (1, 3, 2), "no map"),
        ([(1, 2, 4, 4)], (0, 8), (1, 3, 2), "0x8"),
        ([(2, 2, 4, 4)], (8, 8), (1, 3, 2), "do not fit"),
        ([(1, 2, 4, 4)], (8, 8), (1, 3, 3), "do not fit"),
        ([(1, 2, 4, 4)], (8, 8), (1, 2), "do not fit"),
        ([(1, 4, 4)], (8, 8), (1, 3, 2), "do not fit"),
    ],
)
def test_shapes_that_do_not_fit(maps, size, locations, told):
    with pytest.raises(ValueError, match=told):
        read_at([torch.zeros(shape) for shape in maps], size, torch.zeros(locations))
