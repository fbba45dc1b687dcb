"""The convolution of class ids equals the convolution of their one-hot vectors."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import spectral_norm

from lightning_seg.networks import FCDiscriminator, StructureAnalyzer
from lightning_seg.networks.label_convolution import _LabelConvolution, label_convolution


def one_hot(labels, classes):
    """(B, H, W) ids in [0, C] -> (B, C, H, W), zero vectors for C."""
    return F.one_hot(labels, classes + 1)[..., :classes].movedim(-1, 1).double()


def blocky(classes, size, block=5):
    """Label maps of large areas, as masks are, with void among the classes."""
    rows, columns = (-(-side // block) for side in size)
    small = torch.randint(classes + 1, (2, rows, columns))
    large = small.repeat_interleave(block, 1).repeat_interleave(block, 2)
    return large[:, : size[0], : size[1]]


LAYERS = [
    {"kernel_size": 4, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (3, 2), "stride": (1, 3), "padding": (0, 2)},
    {"kernel_size": 1},
    {"kernel_size": 3, "stride": 5, "padding": 3, "bias": False},
]
DENSE = [
    {"kernel_size": 3, "groups": 3},
    {"kernel_size": 3, "dilation": 2},
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
]


@pytest.mark.parametrize("options", LAYERS + DENSE)
@pytest.mark.parametrize("size", [(17, 23), (32, 24)])
@pytest.mark.parametrize("kind", ["random", "blocks", "void"])
def test_it_equals_the_convolution_of_one_hot_vectors_in_values_and_gradients(
    options, size, kind
) -> None:
    torch.manual_seed(0)
    labels = {
        "random": torch.randint(7, (2, *size)),
        "blocks": blocky(6, size),
        "void": torch.full((2, *size), 6),
    }[kind]
    layer = nn.Conv2d(6, 9, **options).double()
    other = deepcopy(layer)
    found, expected = label_convolution(labels, layer), other(one_hot(labels, 6))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    gradient = torch.randn_like(expected)
    found.backward(gradient)
    expected.backward(gradient)
    for one, two in zip(layer.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_has_the_dtype_of_the_layer(dtype) -> None:
    torch.manual_seed(0)
    layer, labels = nn.Conv2d(5, 8, 4, 2, 1).to(dtype), blocky(5, (40, 40))
    found = label_convolution(labels, layer)
    exact = deepcopy(layer).double()(one_hot(labels, 5))
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=4 * torch.finfo(dtype).eps)
    found.sum().backward()
    assert layer.weight.grad.dtype == dtype


def test_under_autocast_it_has_the_dtype_of_the_convolution() -> None:
    layer, labels = nn.Conv2d(5, 8, 4, 2, 1), blocky(5, (40, 40))
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = label_convolution(labels, layer), layer(one_hot(labels, 5).float())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected)


def test_a_layer_with_hooks_is_called() -> None:
    torch.manual_seed(0)
    layer, labels = spectral_norm(nn.Conv2d(5, 8, 3)), blocky(5, (20, 20))
    layer.eval()
    expected = layer(one_hot(labels, 5).float())
    layer.weight.data.zero_()  # the hook computes it anew
    torch.testing.assert_close(label_convolution(labels, layer), expected)


def test_gradients_are_those_of_finite_differences() -> None:
    labels = blocky(3, (9, 8), 3)
    weight, bias = torch.randn(2, 3, 4, 4).double(), torch.randn(2).double()
    inputs = (weight.requires_grad_(), bias.requires_grad_())
    torch.autograd.gradcheck(
        lambda w, b: _LabelConvolution.apply(labels, w, b, (2, 2), (1, 1)), inputs
    )


@pytest.mark.parametrize("value", [-1, 6, 255])
def test_ids_that_are_no_classes_are_refused(value) -> None:
    labels = torch.full((1, 8, 8), value)
    with pytest.raises(IndexError, match=rf"{value}.*\[0, 5\]"):
        label_convolution(labels, nn.Conv2d(5, 8, 3))


@pytest.mark.parametrize("channels_last", [False, True])
def test_discriminator_and_analyzer_take_class_ids(channels_last) -> None:
    torch.manual_seed(0)
    labels = blocky(5, (67, 80), 9)
    for network in (FCDiscriminator(5, 4), StructureAnalyzer(5)):
        network = network.double()
        if channels_last:
            network.to(memory_format=torch.channels_last)
        other = deepcopy(network)
        found, expected = network(labels), other(one_hot(labels, 5))
        if isinstance(network, StructureAnalyzer):
            for one, two in zip(network.features(labels), expected[0], strict=True):
                torch.testing.assert_close(one, two, rtol=0, atol=1e-11)
            found, expected = found[1], expected[1]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
        found.square().sum().backward()
        expected.square().sum().backward()
        for one, two in zip(network.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(one.grad, two.grad, rtol=1e-9, atol=1e-9)
