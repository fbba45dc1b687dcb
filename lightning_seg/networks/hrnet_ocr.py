"""HRNetV2 (2019, arXiv 1908.07919) with object-contextual representations (arXiv 1909.11065)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_seg.networks.encoder import TimmEncoder
from lightning_seg.networks.encoder_head import EncoderHead, require_batch, resize


class HRNetOCR(EncoderHead):
    """All four HRNet branches at stride 4, each pixel enriched by the classes it belongs to.

    Args:
        num_classes: Channels of the logits.
        encoder: A timm HRNet name (any encoder with several maps works); see `TimmEncoder` for
            the further options.
        hidden: Width of the pixel representation.
        key_channels: Width of queries, keys and values.
        encoder_options: Passed to `TimmEncoder`.
    """

    def __init__(
        self,
        num_classes: int,
        encoder: str = "hrnet_w18.ms_in1k",
        hidden: int = 512,
        key_channels: int = 256,
        **encoder_options: Any,
    ) -> None:
        trunk = TimmEncoder(encoder, **encoder_options)
        super().__init__(trunk, OCRHead(sum(trunk.channels), num_classes, hidden, key_channels))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return the logits at the image's size."""
        # HRNet adds maps of neighbouring strides, which agree for multiples of its deepest only
        height, width = image.shape[-2:]
        stride = max(self.encoder.reductions)
        border = (0, -width % stride, 0, -height % stride)
        padded = F.pad(image, border, mode="replicate") if any(border) else image
        logits = super().forward(padded)
        return {name: value[..., :height, :width] for name, value in logits.items()}


class OCRHead(nn.Module):
    """Soft object regions -> one descriptor per class -> attention of every pixel to them.

    Args:
        in_channels: Sum of the channels of all maps.
        num_classes: Channels of the logits.
        hidden: Width of the pixel representation.
        key_channels: Width of queries, keys and values.

    Shape:
        Maps shallow to deep, joined at the shallowest's resolution (h, w) -> dict with `out`
        and `aux`, both (B, num_classes, h, w). `aux` scores the object regions.
    """

    def __init__(
        self, in_channels: int, num_classes: int, hidden: int = 512, key_channels: int = 256
    ) -> None:
        super().__init__()
        self.regions = nn.Sequential(
            *_conv_bn_relu(in_channels, in_channels), nn.Conv2d(in_channels, num_classes, 1)
        )
        self.pixels = nn.Sequential(*_conv_bn_relu(in_channels, hidden, kernel_size=3))
        self.query = nn.Sequential(
            *_conv_bn_relu(hidden, key_channels), *_conv_bn_relu(key_channels, key_channels)
        )
        self.key = nn.Sequential(
            *_conv_bn_relu(hidden, key_channels), *_conv_bn_relu(key_channels, key_channels)
        )
        self.value = nn.Sequential(*_conv_bn_relu(hidden, key_channels))
        self.up = nn.Sequential(*_conv_bn_relu(key_channels, hidden))
        self.fuse = nn.Sequential(*_conv_bn_relu(2 * hidden, hidden), nn.Dropout2d(0.05))
        self.classifier = nn.Conv2d(hidden, num_classes, 1)

    def forward(self, features: list[Tensor]) -> dict[str, Tensor]:
        """Return the logits and the region scores."""
        size = features[0].shape[-2:]
        joined = torch.cat([resize(each, size) for each in features], dim=1)
        regions = self.regions(joined)
        pixels = self.pixels(joined)
        objects = gather_objects(pixels, regions)
        if objects.shape[2] == 1:  # a single class: the batch norm sees one value per image
            require_batch(self.key, objects)
        context = self.up(attend(self.query(pixels), self.key(objects), self.value(objects)))
        return {"out": self.classifier(self.fuse(torch.cat([context, pixels], 1))), "aux": regions}


def gather_objects(pixels: Tensor, regions: Tensor) -> Tensor:
    """Average the pixels of each soft region: f_k = sum_i softmax_i(regions_k)_i * pixels_i.

    In float32 whatever comes in: a softmax over tens of thousands of positions underflows in
    half precision.

    Args:
        pixels: (B, D, H, W) pixel representations.
        regions: (B, K, H, W) scores of K regions.

    Returns:
        (B, D, K, 1) in the dtype of `pixels`.
    """
    with torch.autocast(pixels.device.type, enabled=False):
        weights = regions.float().flatten(2).softmax(dim=2)
        objects = torch.einsum("bkn,bdn->bdk", weights, pixels.float().flatten(2))
    return objects.unsqueeze(-1).to(pixels.dtype)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Give every pixel the values of the objects it resembles, softmax(q k / sqrt(D)) v.

    Args:
        query: (B, D, H, W).
        key: (B, D, K, 1).
        value: (B, E, K, 1).

    Returns:
        (B, E, H, W).
    """
    keys, values = key.flatten(2), value.flatten(2)
    scores = torch.einsum("bdhw,bdk->bkhw", query, keys) * key.shape[1] ** -0.5
    return torch.einsum("bkhw,bek->behw", scores.softmax(dim=1), values)


def _conv_bn_relu(in_channels: int, out_channels: int, kernel_size: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    ]
