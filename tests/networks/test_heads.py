"""The heads against slow loops, bare functional calls and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_seg.networks import LRASPP
from lightning_seg.networks.deeplab_v2 import ASPPv2Head
from lightning_seg.networks.fcn import FCN8sHead
from lightning_seg.networks.hrnet_ocr import OCRHead, attend, gather_objects
from lightning_seg.networks.pspnet import PSPHead


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def randomise(module):
    """Give every parameter and statistic a value that matters; return the module in eval mode."""
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point():
            tensor.normal_(std=0.3)
    return module.eval()


def slow_adaptive_average(features, side):
    """Cell (i, j) averages rows floor(i H / s) .. ceil((i + 1) H / s), columns likewise."""
    height, width = features.shape[-2:]
    pooled = features.new_empty(*features.shape[:2], side, side)
    for i in range(side):
        for j in range(side):
            rows = slice(i * height // side, math.ceil((i + 1) * height / side))
            columns = slice(j * width // side, math.ceil((j + 1) * width / side))
            pooled[:, :, i, j] = features[:, :, rows, columns].mean((2, 3))
    return pooled


def by_hand(features, conv, norm, padding=0):
    """Convolution, batch norm with running statistics, ReLU."""
    out = F.conv2d(features, conv.weight, padding=padding)
    scale = norm.weight / (norm.running_var + 1e-5).sqrt()
    shift = norm.bias - norm.running_mean * scale
    return (out * scale[:, None, None] + shift[:, None, None]).relu()


# ---- ASPP of DeepLab v2 --------------------------------------------------------------------------

RATES = (6, 12, 18, 24)


def test_aspp_v2_is_the_sum_of_four_dilated_convolutions():
    head = randomise(ASPPv2Head(3, 5, RATES).double())
    features = torch.randn(2, 3, 9, 11, dtype=torch.float64)
    expected = torch.zeros(2, 5, 9, 11, dtype=torch.float64)
    for index, rate in enumerate(RATES):
        weight = head.state_dict()[f"branches.{index}.weight"]
        bias = head.state_dict()[f"branches.{index}.bias"]
        expected += F.conv2d(features, weight, bias, padding=rate, dilation=rate)
    torch.testing.assert_close(head(features), expected)


def test_aspp_v2_is_the_sum_of_its_branches_alone():
    head = randomise(ASPPv2Head(3, 5, RATES).double())
    features = torch.randn(2, 3, 9, 11, dtype=torch.float64)
    total = 0
    for index, rate in enumerate(RATES):
        alone = ASPPv2Head(3, 5, [rate]).double()
        alone.branches[0].load_state_dict(head.branches[index].state_dict())
        total = total + alone(features)
    torch.testing.assert_close(head(features), total)


def test_aspp_v2_reaches_as_far_as_its_rates():
    head = ASPPv2Head(1, 1, RATES)
    for branch in head.branches:
        nn.init.ones_(branch.weight)
    impulse = torch.zeros(1, 1, 1, 61)
    impulse[..., 30] = 1
    row = head(impulse).flatten()
    assert row.nonzero().flatten().tolist() == [6, 12, 18, 24, 30, 36, 42, 48, 54]
    assert row[30].item() == 4


def test_aspp_v2_starts_from_a_narrow_normal_distribution_without_bias():
    head = ASPPv2Head(256, 21, RATES)
    for branch in head.branches:
        assert branch.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert not branch.bias.any()


# ---- pyramid pooling -----------------------------------------------------------------------------


def test_psp_head_equals_slow_pooling_and_bare_convolutions():
    sides = (1, 2, 3, 6)
    head = randomise(PSPHead(8, 5, sides, hidden=7).double())
    features = torch.randn(2, 8, 10, 13, dtype=torch.float64)
    levels = [features]
    for side, level in zip(sides, head.bins, strict=True):
        pooled = by_hand(slow_adaptive_average(features, side), level[1], level[2])
        levels.append(F.interpolate(pooled, (10, 13), mode="bilinear", align_corners=False))
    fused = by_hand(torch.cat(levels, 1), head.classifier[0], head.classifier[1], padding=1)
    last = head.classifier[-1]
    expected = torch.einsum("oc,bchw->bohw", last.weight[..., 0, 0], fused)
    expected = expected + last.bias[:, None, None]
    torch.testing.assert_close(head(features), expected)


# ---- FCN-8s --------------------------------------------------------------------------------------


def pyramid(channels, height, width):
    """Maps as timm's VGG gives them for an image of (height, width)."""
    return [
        torch.randn(2, depth, height // stride, width // stride)
        for depth, stride in zip(channels, (4, 8, 32), strict=True)
    ]


def test_fcn8s_starts_with_zero_logits():
    logits = FCN8sHead([3, 4, 5], 6, hidden=8)(pyramid([3, 4, 5], 64, 96))
    assert logits.shape == (2, 6, 8, 12)
    assert not logits.any()


def test_fcn8s_adds_the_scores_of_three_strides():
    head = FCN8sHead([3, 4, 5], 1, hidden=8).eval()
    for score, bias in ((head.score3, 1.0), (head.score4, 2.0), (head.score5, 4.0)):
        nn.init.constant_(score.bias, bias)
    logits = head(pyramid([3, 4, 5], 64, 96))
    torch.testing.assert_close(logits, torch.full((2, 1, 8, 12), 7.0))


@pytest.mark.parametrize(("skip", "index"), [("score3", 0), ("score4", 1)])
def test_fcn8s_pools_before_it_scores_the_skips(skip, index):
    head = FCN8sHead([1, 1, 1], 1, hidden=2).eval()
    nn.init.ones_(getattr(head, skip).weight)
    maps = pyramid([1, 1, 1], 64, 64)
    pooled = maps[index].unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))
    expected = F.interpolate(pooled, (8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(head(maps), expected)


# ---- LR-ASPP -------------------------------------------------------------------------------------


def test_lraspp_head_equals_its_wiring_by_hand():
    network = randomise(LRASPP(5, encoder="mobilenetv3_small_050").double())
    image = torch.randn(2, 3, 64, 80, dtype=torch.float64)
    low, high = network.encoder(image)
    weights = network.head.state_dict()
    features = by_hand(high, network.head.cbr[0], network.head.cbr[1])
    gate = F.conv2d(high.mean((2, 3), keepdim=True), weights["scale.1.weight"]).sigmoid()
    gated = F.interpolate(features * gate, low.shape[-2:], mode="bilinear", align_corners=False)
    expected = F.conv2d(low, weights["low_classifier.weight"], weights["low_classifier.bias"])
    expected += F.conv2d(gated, weights["high_classifier.weight"], weights["high_classifier.bias"])
    torch.testing.assert_close(network.head([low, high]), expected)


# ---- object-contextual representations -----------------------------------------------------------


def slow_gather(pixels, regions):
    batch, depth, height, width = pixels.shape
    objects = torch.zeros(batch, depth, regions.shape[1], 1, dtype=pixels.dtype)
    for b in range(batch):
        for k in range(regions.shape[1]):
            total = sum(math.exp(score) for score in regions[b, k].flatten().tolist())
            for i in range(height):
                for j in range(width):
                    weight = math.exp(regions[b, k, i, j]) / total
                    objects[b, :, k, 0] += weight * pixels[b, :, i, j]
    return objects


def slow_attend(query, key, value):
    batch, depth, height, width = query.shape
    out = torch.zeros(batch, value.shape[1], height, width, dtype=query.dtype)
    for b in range(batch):
        for i in range(height):
            for j in range(width):
                similar = [
                    math.exp(query[b, :, i, j].dot(key[b, :, k, 0]) / math.sqrt(depth))
                    for k in range(key.shape[2])
                ]
                for k, weight in enumerate(similar):
                    out[b, :, i, j] += weight / sum(similar) * value[b, :, k, 0]
    return out


def test_gather_objects_equals_loops():
    pixels, regions = torch.randn(2, 6, 4, 5), torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(gather_objects(pixels, regions), slow_gather(pixels, regions))


def test_attend_equals_loops():
    query, key, value = torch.randn(2, 6, 4, 5), torch.randn(2, 6, 3, 1), torch.randn(2, 7, 3, 1)
    torch.testing.assert_close(attend(query, key, value), slow_attend(query, key, value))


def test_gather_weights_sum_to_one_over_positions():
    constant = torch.tensor([2.0, -3.0])
    objects = gather_objects(
        constant[None, :, None, None].expand(2, 2, 7, 9), torch.randn(2, 4, 7, 9) * 5
    )
    torch.testing.assert_close(objects, constant[None, :, None, None].expand(2, 2, 4, 1))


def test_attention_weights_sum_to_one_over_classes():
    constant = torch.tensor([2.0, -3.0])[None, :, None, None]
    out = attend(torch.randn(2, 6, 7, 9), torch.randn(2, 6, 4, 1), constant.expand(2, 2, 4, 1))
    torch.testing.assert_close(out, constant.expand(2, 2, 7, 9))


def test_gather_does_not_underflow_in_half_precision():
    # all but one of 128 x 256 positions hold 1000 at e^-18 of that one's weight: 0 in float16
    pixels = torch.full((1, 1, 128, 256), 1000.0, dtype=torch.float16)
    regions = torch.zeros(1, 1, 128, 256, dtype=torch.float16)
    pixels[..., 40, 50], regions[..., 40, 50] = 0, 18
    objects = gather_objects(pixels, regions)
    others = 128 * 256 - 1
    assert objects.dtype == torch.float16
    assert objects.item() == pytest.approx(1000 * others / (others + math.exp(18)), rel=1e-3)


def test_gather_stays_in_float32_under_autocast():
    pixels, regions = torch.randn(2, 6, 16, 16), torch.randn(2, 3, 16, 16) * 4
    with torch.autocast("cpu", torch.bfloat16):
        found = gather_objects(pixels, regions)
    torch.testing.assert_close(found, slow_gather(pixels.double(), regions.double()).float())


def test_ocr_reads_the_maps_at_the_resolution_of_the_shallowest():
    head = randomise(OCRHead(5, 4, hidden=8, key_channels=6))
    shallow, deep = torch.randn(2, 2, 8, 12), torch.randn(2, 3, 2, 3)
    enlarged = F.interpolate(deep, (8, 12), mode="bilinear", align_corners=False)
    with torch.no_grad():
        found, expected = head([shallow, deep]), head([shallow, enlarged])
    assert found["out"].shape == found["aux"].shape == (2, 4, 8, 12)
    torch.testing.assert_close(found, expected)


def test_ocr_context_does_not_depend_on_where_pixels_lie():
    # gather and attention know no positions: with a 1x1 kernel the logits move with the pixels
    head = randomise(OCRHead(5, 4, hidden=8, key_channels=6).double())
    centre = torch.zeros(3, 3)
    centre[1, 1] = 1
    head.pixels[0].weight.data *= centre
    features = torch.randn(1, 5, 6, 7, dtype=torch.float64)
    order = torch.randperm(42)
    shuffled = features.flatten(2)[..., order].view(1, 5, 6, 7)
    with torch.no_grad():
        expected = head([features])["out"].flatten(2)[..., order]
        torch.testing.assert_close(head([shuffled])["out"].flatten(2), expected)
