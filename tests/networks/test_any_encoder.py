"""Encoders of every family, heads on them, and images of any size."""

from __future__ import annotations

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F

from lightning_seg import SetupError
from lightning_seg.networks import DPT, FCN, LRASPP, UNet
from lightning_seg.networks.encoder import TimmEncoder

VIT, DINO = "vit_tiny_patch16_224", "vit_small_patch14_dinov2"
SWIN, MAMBA = "swin_tiny_patch4_window7_224", "mambaout_femto"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("name", "multiple", "fixed"),
    [
        ("resnet18", (1, 1), False),
        ("mobilenetv3_small_050", (1, 1), False),
        (VIT, (16, 16), False),
        (SWIN, (32, 32), False),
        ("hrnet_w18_small", (32, 32), False),
        ("maxvit_nano_rw_256", (256, 256), False),
        ("hiera_tiny_224", (224, 224), True),
    ],
)
def test_the_sizes_that_an_encoder_takes(name: str, multiple: tuple, fixed: bool) -> None:
    encoder = TimmEncoder(name, options={"feature_location": ""} if "hrnet" in name else None)
    assert (encoder.multiple, encoder.fixed_size) == (multiple, fixed)
    assert encoder.training


@pytest.mark.parametrize("name", [SWIN, MAMBA, VIT, "resnet18"])
def test_maps_have_channels_first_and_the_sizes_of_their_strides(name: str) -> None:
    encoder = TimmEncoder(name).eval()
    with torch.no_grad():
        maps = encoder(torch.randn(1, 3, 64, 96))
    assert len(maps) == len(encoder.channels) == len(encoder.reductions)
    for each, channels, stride in zip(maps, encoder.channels, encoder.reductions, strict=True):
        assert each.shape == (1, channels, 64 // stride, 96 // stride)


def test_channels_last_maps_are_those_of_timm() -> None:
    encoder = TimmEncoder(MAMBA).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for ours, theirs in zip(encoder(image), encoder.model(image), strict=True):
            assert torch.equal(ours, theirs.permute(0, 3, 1, 2))


def test_images_are_filled_up_at_the_right_and_at_the_bottom() -> None:
    encoder = TimmEncoder(VIT)
    image = torch.randn(1, 3, 20, 32)
    padded = encoder.pad(image)
    assert padded.shape == (1, 3, 32, 32)
    assert torch.equal(padded[:, :, :20], image)
    assert torch.equal(padded[:, :, 20:], image[:, :, -1:].expand(-1, -1, 12, -1))
    assert encoder.pad(padded) is padded


@pytest.mark.parametrize(("network", "border"), [(DPT, (0, 14, 0, 24)), (FCN, (0, 14, 0, 8))])
def test_logits_are_those_of_the_filled_up_image_cropped(network, border: tuple) -> None:
    ours = network(3, VIT).eval()
    image = torch.randn(1, 3, 40, 50)
    whole = F.pad(image, border, mode="replicate")
    with torch.no_grad():
        assert torch.equal(ours(image)["out"], ours(whole)["out"][..., :40, :50])


def test_a_transformer_takes_other_sizes_than_that_of_its_position_table() -> None:
    encoder = TimmEncoder(VIT, out_indices=[11]).eval()
    table = encoder.bare.pos_embed
    with torch.no_grad():
        table.zero_()
        table[:, 1:] = torch.arange(14 * 14).view(1, -1, 1) / 196  # a ramp over rows
        (small,) = encoder(torch.zeros(1, 3, 64, 64))
    assert small.shape == (1, 192, 4, 4)
    assert small.std() > 0


def test_an_encoder_of_a_fixed_size_refuses_larger_images_in_one_sentence() -> None:
    encoder = TimmEncoder("hiera_tiny_224")
    with pytest.raises(SetupError, match=r"at most 224x224 pixels, not 225x100"):
        encoder(torch.zeros(1, 3, 225, 100))
    built = TimmEncoder("hiera_tiny_224", options={"img_size": 64})
    assert built.multiple == (64, 64)


def test_an_output_stride_that_a_family_does_not_know_is_noted() -> None:
    encoder = TimmEncoder(SWIN, output_stride=16)
    assert encoder.reductions[-1] == 32
    assert encoder.stride_note is not None
    assert "swin_tiny_patch4_window7_224 has no dilated stages" in encoder.stride_note
    assert TimmEncoder("resnet18", output_stride=16).stride_note is None
    assert TimmEncoder(SWIN).stride_note is None


def test_a_number_of_maps_is_spread_over_the_blocks() -> None:
    encoder = TimmEncoder(VIT, out_indices=4).eval()
    blocks = timm.create_model(VIT, features_only=True, out_indices=(2, 5, 8, 11)).eval()
    blocks.load_state_dict(encoder.model.state_dict())
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        for ours, theirs in zip(encoder(image), blocks(image), strict=True):
            torch.testing.assert_close(ours, theirs)
    assert TimmEncoder("resnet18", out_indices=2).channels == [256, 512]


def test_dpt_is_that_of_segmentation_models_pytorch() -> None:
    ours = DPT(3, VIT, widths=(8, 16, 24, 32), fusion=16).eval()
    theirs = smp.DPT(
        f"tu-{VIT}",
        encoder_weights=None,
        decoder_readout="ignore",
        decoder_intermediate_channels=(8, 16, 24, 32),
        decoder_fusion_channels=16,
        dynamic_img_size=True,
    ).eval()
    theirs.encoder.model.load_state_dict(ours.encoder.bare.state_dict(), strict=False)
    theirs.decoder.load_state_dict(ours.head.decoder.state_dict())
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        maps, tokens = theirs.encoder(image)
        expected = theirs.decoder(maps, tokens)
        torch.testing.assert_close(ours.head.decoder(ours.encoder(image), [None] * 4), expected)
        assert ours.head(ours.encoder(image)).shape == (1, 3, 32, 48)


@pytest.mark.parametrize("name", [DINO, SWIN])
@pytest.mark.parametrize("network", [DPT, UNet, LRASPP])
def test_foundation_encoders_train_at_any_size(network, name: str) -> None:
    ours = network(3, name)
    logits = ours(torch.randn(2, 3, 50, 61))["out"]
    assert logits.shape == (2, 3, 50, 61)
    F.cross_entropy(logits, torch.randint(3, (2, 50, 61))).backward()
    gradients = [weight.grad for weight in ours.encoder.parameters() if weight.grad is not None]
    assert gradients
    assert all(each.isfinite().all() for each in gradients)


@pytest.mark.parametrize("options", [{"maps": (1, 2)}, {"widths": (8, 8)}])
def test_dpt_takes_four_maps(options: dict) -> None:
    with pytest.raises(SetupError, match="four"):
        DPT(3, VIT, **options)
