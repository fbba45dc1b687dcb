"""Sparse hypercolumns against plain loops."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_seg.networks.encoder import TimmEncoder
from lightning_seg.networks.hypercolumn import ColorizationNetwork, read_at

SIZE = (24, 40)
SHAPES = [(3, 24, 40), (2, 12, 20), (4, 5, 7), (1, 1, 10), (2, 3, 1), (5, 1, 1)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def by_hand(maps, size, locations):
    """Bilinear reading, one number at a time."""
    found = []
    for image, spots in enumerate(locations.tolist()):
        for row, column in spots:
            for each in maps:
                channels, rows, columns = each.shape[1:]
                y = min(max(row / (size[0] / rows), 0), rows - 1)
                x = min(max(column / (size[1] / columns), 0), columns - 1)
                top, left = math.floor(y), math.floor(x)
                low, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
                v, u = y - top, x - left
                for channel in range(channels):
                    value = each[image, channel].tolist()
                    found.append(
                        (1 - v) * ((1 - u) * value[top][left] + u * value[top][right])
                        + v * ((1 - u) * value[low][left] + u * value[low][right])
                    )
    return torch.tensor(found, dtype=torch.float64).view(*locations.shape[:2], -1)


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


# The network


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
