"""Every network as a whole, and against torchvision's and segmentation-models-pytorch's."""

from __future__ import annotations

import copy
import functools
import io
from functools import partial

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn
from torchvision.models.segmentation import (
    deeplabv3_resnet50,
    fcn_resnet50,
    lraspp_mobilenet_v3_large,
)

from lightning_seg.errors import SetupError
from lightning_seg.networks import (
    FCN,
    LRASPP,
    DeepLabV2,
    DeepLabV3,
    EncoderHead,
    FCN8s,
    HRNetOCR,
    PSPNet,
    UNet,
)
from lightning_seg.networks.encoder_head import require_batch

CLASSES = 5
NETWORKS = {
    "fcn": partial(FCN, encoder="resnet18"),
    "fcn8s": partial(FCN8s, encoder="vgg11", hidden=16),
    "unet": partial(UNet, encoder="resnet18"),
    "deeplab_v2": partial(DeepLabV2, encoder="resnet18"),
    "deeplab_v3": partial(DeepLabV3, encoder="resnet18"),
    "pspnet": partial(PSPNet, encoder="resnet18"),
    "hrnet_ocr": partial(HRNetOCR, encoder="hrnet_w18_small", hidden=32, key_channels=16),
    "lraspp": partial(LRASPP, encoder="mobilenetv3_small_050"),
}
WITH_AUX = {"fcn", "deeplab_v3", "pspnet", "hrnet_ocr"}
every_network = pytest.mark.parametrize("name", NETWORKS)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@functools.cache
def template(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = NETWORKS[name](CLASSES)
        # layers that start at zero would hide what they do from every comparison
        for parameter in network.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.1)
    return network


def build(name):
    return copy.deepcopy(template(name))


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def relative_difference(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("size", [(64, 64), (65, 65), (96, 160)], ids=str)
@every_network
def test_logits_have_the_size_of_the_image(name, size):
    logits = build(name)(torch.randn(2, 3, *size))
    assert {value.shape for value in logits.values()} == {(2, CLASSES, *size)}


@pytest.mark.parametrize("name", ["lraspp", "unet"])
def test_logits_have_the_size_of_a_513_pixel_crop(name):
    with torch.no_grad():
        logits = build(name).eval()(torch.randn(1, 3, 513, 513))
    assert logits["out"].shape == (1, CLASSES, 513, 513)


@every_network
def test_aux_comes_in_training_mode_only(name):
    network, images = build(name), torch.randn(2, 3, 64, 64)
    assert set(network.train()(images)) == ({"out", "aux"} if name in WITH_AUX else {"out"})
    assert set(network.eval()(images)) == {"out"}


@pytest.mark.parametrize("network", [FCN, DeepLabV3, PSPNet])
def test_aux_can_be_switched_off(network):
    logits = network(CLASSES, encoder="resnet18", aux=False)(torch.randn(2, 3, 64, 64))
    assert set(logits) == {"out"}


@every_network
def test_every_parameter_gets_a_finite_gradient(name):
    network = build(name)
    sum(value.square().mean() for value in network(torch.randn(2, 3, 64, 64)).values()).backward()
    without = [key for key, parameter in network.named_parameters() if parameter.grad is None]
    assert without == []
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@every_network
def test_eval_treats_images_of_a_batch_independently(name):
    network = build(name).eval().double()
    images = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        together = network(images)["out"]
        alone = torch.cat([network(image[None])["out"] for image in images])
    torch.testing.assert_close(together, alone)


@every_network
def test_checkpoint_restores_the_network(name):
    network, images = build(name), torch.randn(2, 3, 64, 64)
    network(images)  # batch norms learn statistics
    torch.save(network.state_dict(), file := io.BytesIO())
    file.seek(0)
    torch.manual_seed(1)
    restored = NETWORKS[name](CLASSES)
    restored.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        assert torch.equal(restored.eval()(images)["out"], network.eval()(images)["out"])


@every_network
def test_channels_last_changes_rounding_only(name):
    network, images = build(name).eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = network(images)["out"]
        network = network.to(memory_format=torch.channels_last)
        found = network(images.contiguous(memory_format=torch.channels_last))["out"]
    assert relative_difference(found, expected) < 1e-4


@every_network
def test_bfloat16_autocast_trains_with_finite_numbers(name):
    network = build(name)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(torch.randn(2, 3, 64, 64))
    sum(value.float().square().mean() for value in logits.values()).backward()
    assert all(value.isfinite().all() for value in logits.values())
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_compiled_network_equals_eager():
    network, images = build("lraspp").eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found = torch.compile(network, backend="eager", fullgraph=True)(images)["out"]
        assert torch.equal(found, network(images)["out"])


# ---- against other libraries ---------------------------------------------------------------------


def conv(inputs, outputs, kernel=1, bias=True):
    return kernel * kernel * inputs * outputs + outputs * bias


def conv_bn(inputs, outputs, kernel=1):
    return conv(inputs, outputs, kernel, bias=False) + 2 * outputs


RESNET50, RESNET101 = 23_508_032, 42_500_160  # torchvision's tables, less the 1000-way classifier
VGG16 = 138_357_544 - (25_088 * 4096 + 4096) - (4096 * 4096 + 4096) - (4096 * 1000 + 1000)
PARAMETERS = {
    FCN8s: VGG16
    + conv(512, 4096, 7)
    + conv(4096, 4096)
    + conv(4096, 21)
    + conv(512, 21)
    + conv(256, 21),
    DeepLabV2: RESNET101 + 4 * conv(2048, 21, 3),
    PSPNet: RESNET50
    + 4 * conv_bn(2048, 512)
    + conv_bn(4096, 512, 3)
    + conv(512, 21)
    + conv_bn(1024, 256, 3)
    + conv(256, 21),
    LRASPP: 3_221_538,
}


@pytest.mark.parametrize(("network", "expected"), PARAMETERS.items())
def test_parameter_count_equals_the_published_architecture(network, expected):
    with torch.device("meta"):
        assert count(network(21)) == expected


@pytest.mark.parametrize(
    ("network", "reference"),
    [
        (FCN, partial(fcn_resnet50, weights=None, weights_backbone=None, aux_loss=True)),
        (
            DeepLabV3,
            partial(deeplabv3_resnet50, weights=None, weights_backbone=None, aux_loss=True),
        ),
        (LRASPP, partial(lraspp_mobilenet_v3_large, weights=None, weights_backbone=None)),
        (
            lambda num_classes: UNet(num_classes, encoder="resnet50"),
            lambda num_classes: smp.Unet("tu-resnet50", encoder_weights=None, classes=num_classes),
        ),
    ],
    ids=["fcn", "deeplab_v3", "lraspp", "unet"],
)
def test_parameter_count_equals_the_library(network, reference):
    with torch.device("meta"):
        assert count(network(21)) == count(reference(num_classes=21))


def test_lraspp_equals_torchvisions_with_its_weights() -> None:
    """Both state dicts list the layers from the input to the output."""
    torch.manual_seed(0)
    reference = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=21)
    for layer in reference.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.1)
    network = LRASPP(21, options={"bn_eps": 0.001})
    tensors = zip(network.state_dict(), reference.state_dict().values(), strict=True)
    network.load_state_dict(dict(tensors))
    reference.eval()
    for each in (network.eval(), copy.deepcopy(network)):
        for size in ((64, 64), (97, 65), (33, 50), (160, 224)):
            image = torch.randn(2, 3, *size)
            with torch.no_grad():
                assert torch.equal(each(image)["out"], reference(image)["out"]), size


@pytest.mark.parametrize(("stride", "rates"), [(32, (1, 1)), (16, (1, 2)), (8, (2, 4))])
@pytest.mark.parametrize("encoder", ["mobilenetv3_small_050", "tf_mobilenetv3_large_100"])
def test_lraspp_dilates_every_block_of_a_stage_alike(encoder, stride, rates) -> None:
    network = LRASPP(3, encoder, output_stride=stride).eval()
    found = [
        {layer.dilation[0] for layer in stage.modules() if getattr(layer, "groups", 1) > 1}
        for stage in network.encoder.bare.blocks
    ]
    dilated = [each for each in found if each]  # the last stage is a single pointwise convolution
    assert dilated[-1] == {rates[1]}
    assert dilated[-2] <= {1, rates[0]}
    low, high = network.encoder(torch.zeros(1, 3, 64, 96))
    assert low.shape[1:] == (network.encoder.channels[0], 8, 12)
    assert high.shape[1:] == (network.encoder.channels[1], 64 // stride, 96 // stride)
    assert network(torch.zeros(1, 3, 33, 50))["out"].shape == (1, 3, 33, 50)


def test_hrnet_ocr_parameter_count_equals_the_authors_layers():
    with torch.device("meta"):
        network = HRNetOCR(19)
    # the authors' two convolutions before a batch norm have a bias that the norm cancels
    head = conv_bn(270, 270) + conv(270, 19) + conv_bn(270, 512, 3)
    query_key_value = 2 * (conv_bn(512, 256) + conv_bn(256, 256)) + conv_bn(512, 256)
    fuse = conv_bn(256, 512) + conv_bn(1024, 512) + conv(512, 19)
    assert count(network.encoder) == pytest.approx(9.56e6, rel=1e-3)
    assert count(network.head) == head + query_key_value + fuse


def copy_weights(reference, network, renamed):
    """Give `network` the state of `reference`, whose names start with the keys of `renamed`."""
    state = {}
    for name, tensor in reference.state_dict().items():
        (old,) = (start for start in renamed if name.startswith(start))
        state[renamed[old] + name.removeprefix(old)] = tensor
    network.load_state_dict(state)


@pytest.mark.parametrize("size", [(64, 64), (65, 81)], ids=str)
@pytest.mark.parametrize(
    ("network", "reference"),
    [(FCN, fcn_resnet50), (DeepLabV3, deeplabv3_resnet50)],
    ids=["fcn", "deeplab_v3"],
)
def test_logits_equal_torchvision(network, reference, size):
    ours = network(CLASSES, encoder="resnet50").double()
    theirs = reference(
        weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=True
    ).double()
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        theirs(images)  # batch norms learn statistics
        renamed = {
            "backbone.": "encoder.model.",
            "classifier.": "head.module.",
            "aux_classifier.": "aux_head.module.",
        }
        copy_weights(theirs, ours, renamed)
        expected, found = theirs.eval()(images), ours.eval()(images)
        torch.testing.assert_close(found["out"], expected["out"])
        # in training mode dropout draws the same masks from the same seed
        torch.manual_seed(1)
        expected = theirs.train()(images)
        torch.manual_seed(1)
        found = ours.train()(images)
        torch.testing.assert_close(found, dict(expected))


def test_unet_logits_equal_segmentation_models_pytorch():
    ours = UNet(CLASSES, encoder="resnet50").double()
    theirs = smp.Unet("tu-resnet50", encoder_weights=None, classes=CLASSES).double()
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        theirs(images)
        renamed = {
            "encoder.": "encoder.",
            "decoder.": "head.decoder.",
            "segmentation_head.": "head.classifier.",
        }
        copy_weights(theirs, ours, renamed)
        torch.testing.assert_close(ours.eval()(images)["out"], theirs.eval()(images))


# ---- what single networks promise ----------------------------------------------------------------


class FixedMap(nn.Module):
    """An encoder that returns what it was given."""

    mean = std = (0.5, 0.5, 0.5)

    def __init__(self, feature_map):
        super().__init__()
        self.feature_map = feature_map

    def forward(self, image):
        return [self.feature_map]


class First(nn.Module):
    def forward(self, features):
        return features[0]


class Unwanted(nn.Module):
    def forward(self, features):
        raise AssertionError("this head should not run")


def test_logits_are_resized_with_half_pixel_centres():
    network = EncoderHead(FixedMap(torch.tensor([[[[0.0, 1.0]]]])), First())
    out = network(torch.zeros(1, 3, 1, 4))["out"]
    assert out.flatten().tolist() == [0, 0.25, 0.75, 1]


def test_logits_of_the_right_size_are_left_alone():
    logits = torch.randn(1, 2, 3, 4)
    assert EncoderHead(FixedMap(logits), First())(torch.zeros(1, 3, 3, 4))["out"] is logits


def test_auxiliary_head_does_not_run_in_eval_mode():
    network = EncoderHead(FixedMap(torch.zeros(1, 2, 3, 4)), First(), Unwanted()).eval()
    assert set(network(torch.zeros(1, 3, 3, 4))) == {"out"}


def test_hrnet_ocr_sees_odd_sizes_with_their_border_repeated():
    network = build("hrnet_ocr").eval()
    image = torch.randn(1, 3, 65, 70)
    padded = np.pad(image.numpy(), ((0, 0), (0, 0), (0, 31), (0, 26)), mode="edge")
    with torch.no_grad():
        expected = network(torch.from_numpy(padded))["out"][..., :65, :70]
        assert torch.equal(network(image)["out"], expected)


@pytest.mark.parametrize("name", ["unet", "hrnet_ocr"])
def test_networks_on_all_maps_take_encoders_without_a_map_at_stride_two(name):
    network = NETWORKS[name](CLASSES, encoder="convnext_atto")
    assert network(torch.randn(2, 3, 64, 64))["out"].shape == (2, CLASSES, 64, 64)


def test_unet_with_too_few_decoder_stages_names_the_option():
    with pytest.raises(ValueError, match=r"\(8, 8\).*5 maps.*decoder_channels"):
        UNet(CLASSES, encoder="resnet18", decoder_channels=(8, 8))


@pytest.mark.parametrize(("stride", "rates"), [(8, [12, 24, 36]), (16, [6, 12, 18])])
def test_deeplab_v3_rates_follow_the_output_stride(stride, rates):
    with torch.device("meta"):
        network = DeepLabV3(CLASSES, encoder="resnet18", output_stride=stride)
    found = [layer.dilation[0] for layer in network.head.modules() if isinstance(layer, nn.Conv2d)]
    assert [rate for rate in found if rate > 1] == rates


def test_networks_pass_on_the_normalisation_of_their_encoder():
    with torch.device("meta"):
        network = LRASPP(CLASSES, encoder="tf_efficientnet_lite0")
    assert (network.mean, network.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


# ---- one image per device ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["deeplab_v3", "pspnet"])
def test_training_on_one_image_is_refused(name):
    with pytest.raises(ValueError, match=r"over a single image.*data\.batch_size="):
        build(name)(torch.randn(1, 3, 64, 64))


def test_the_error_for_one_image_speaks_of_the_network_and_not_of_the_command():
    with pytest.raises(SetupError) as error:
        build("deeplab_v3")(torch.randn(1, 3, 64, 64))
    message = str(error.value)
    for way_out in ("2 or more images per device", "SyncBatchNorm", "evaluation mode"):
        assert way_out in message
    assert "--" not in message
    assert "joint_forward" not in message


def test_training_a_single_class_ocr_on_one_image_is_refused():
    network = HRNetOCR(1, encoder="hrnet_w18_small", hidden=8, key_channels=8)
    with pytest.raises(ValueError, match=r"over a single image.*data\.batch_size="):
        network(torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize("name", sorted(NETWORKS.keys() - {"deeplab_v3", "pspnet"}))
def test_other_networks_train_on_one_image(name):
    assert build(name)(torch.randn(1, 3, 64, 64))["out"].isfinite().all()


@pytest.mark.parametrize("name", ["deeplab_v3", "pspnet"])
def test_one_image_passes_while_batch_norm_is_frozen(name):
    network = build(name)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
    assert set(network(torch.randn(1, 3, 64, 64))) == {"out", "aux"}


def test_one_image_passes_with_synchronised_batch_norm():
    require_batch(nn.SyncBatchNorm(4), torch.zeros(1, 4, 2, 2))
    with pytest.raises(ValueError, match="pools each image"):
        require_batch(nn.BatchNorm2d(4), torch.zeros(1, 4, 2, 2))


def test_pspnet_without_the_image_bin_trains_on_one_image():
    network = PSPNet(CLASSES, encoder="resnet18", bins=(2, 4))
    assert network(torch.randn(1, 3, 64, 64))["out"].isfinite().all()


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (71, 64), (201, 75)])
@every_network
def test_logits_of_a_heads_own_size_are_no_larger_and_give_those_of_the_image(
    name: str, size: tuple[int, int]
) -> None:
    """A loss takes smaller logits, and no larger ones."""
    network = copy.deepcopy(template(name)).eval()
    image = torch.randn(2, 3, *size)
    with torch.no_grad():
        own, whole = network(image, full_size=False)["out"], network(image)["out"]
    assert own.shape[2] <= size[0]
    assert own.shape[3] <= size[1]
    upsampled = nn.functional.interpolate(own, size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(upsampled, whole, rtol=1e-5, atol=1e-5)
