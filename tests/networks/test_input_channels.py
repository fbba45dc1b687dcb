"""Networks for images of any number of channels, against RGB images that mean the same."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from lightning_seg.errors import SetupError
from lightning_seg.networks import TimmEncoder, UNet
from lightning_seg.networks.encoder_weights import WeightFile, save_encoder
from lightning_seg.networks.input_channels import adapt_input, input_layers, take_channels

NAMES = ["test_resnet", "test_vit", "test_efficientnet", "test_convnext"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def features(encoder: TimmEncoder, image: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return encoder.eval()(image)[-1]


@pytest.mark.parametrize("name", NAMES)
def test_one_channel_through_pretrained_weights_is_a_grey_image(name: str) -> None:
    encoder, grey = TimmEncoder(name), torch.randn(1, 1, 96, 96)
    expected = features(encoder, grey.expand(-1, 3, -1, -1))
    assert adapt_input(encoder, 1, pretrained=True)
    torch.testing.assert_close(features(encoder, grey), expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_rgb_twice_through_pretrained_weights_is_rgb(name: str) -> None:
    encoder, image = TimmEncoder(name), torch.randn(1, 3, 96, 96)
    expected = features(encoder, image)
    assert adapt_input(encoder, 6, pretrained=True)
    found = features(encoder, torch.cat([image, image], 1))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


def test_pretrained_weights_are_those_of_timm_for_so_many_channels() -> None:
    encoder = TimmEncoder("test_resnet")
    (layer,) = input_layers(encoder.bare)
    expected = timm.models.adapt_input_conv(5, layer.weight.detach().clone())
    adapt_input(encoder, 5, pretrained=True)
    assert torch.equal(layer.weight, expected)
    assert (layer.in_channels, layer.weight.requires_grad) == (5, True)


def test_random_weights_differ_for_every_channel_and_keep_the_size_of_the_output() -> None:
    stem = nn.Conv2d(3, 64, 7, bias=False)
    before = stem(torch.randn(4, 3, 64, 64)).std().item()
    assert adapt_input(stem, 12, pretrained=False)
    assert stem(torch.randn(4, 12, 64, 64)).std().item() == pytest.approx(before, rel=0.1)
    assert len({round(stem.weight[:, i].sum().item(), 4) for i in range(12)}) == 12


def test_a_network_that_takes_so_many_channels_is_left_alone() -> None:
    encoder = TimmEncoder("test_resnet", options={"in_chans": 5})
    before = {name: each.clone() for name, each in encoder.state_dict().items()}
    assert not adapt_input(encoder, 5, pretrained=True)
    assert all(torch.equal(each, before[name]) for name, each in encoder.state_dict().items())


def test_a_weight_file_of_other_channels_is_loaded_whole(tmp_path) -> None:
    trained = TimmEncoder("test_resnet", options={"in_chans": 4})
    file = tmp_path / "encoder.pt"
    mean, std = [0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]
    state = trained.bare.state_dict()
    save_encoder(file, WeightFile(state, "test_resnet", "rgb", mean, std))
    network = UNet(2, "test_resnet", decoder_channels=[8] * 5, weights=str(file))
    image = torch.randn(1, 4, 64, 64)
    assert torch.equal(features(network.encoder, image), features(trained, image))
    assert (network.encoder.mean, network.encoder.std) == (tuple(mean), tuple(std))
    take_channels(network, network.encoder, 4)
    with pytest.raises(SetupError, match=r"images of 4 channels, .* RGB .*channels=4"):
        take_channels(network, network.encoder, 3)
    with pytest.raises(SetupError, match=r"images have 7 channels, .*first convolution"):
        take_channels(network, network.encoder, 7)


def test_a_network_without_a_first_convolution_is_refused() -> None:
    with pytest.raises(SetupError, match="Linear has no first convolution of 3 channels"):
        adapt_input(nn.Linear(3, 4), 5, pretrained=False)
