"""HRNetV2 with object-contextual representations (OCR).

J. Wang et al.: Deep High-Resolution Representation Learning for Visual Recognition (2019, arXiv
1908.07919). Y. Yuan, X. Chen, J. Wang: Object-Contextual Representations for Semantic Segmentation
(2019, arXiv 1909.11065).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_seg.networks.encoder import TimmEncoder
from lightning_seg.networks.encoder_head import EncoderHead, require_batch
from lightning_seg.numerics import resize


class HRNetOCR(EncoderHead):
    """HRNet whose pixel features are enriched by the features of the objects they resemble.

    All feature maps of the encoder are resized to the shallowest and concatenated, at stride 4 for
    an HRNet. A network for a single class needs 2 or more images per device in training.

    Args:
        num_classes: Number of classes C, which is the number of channels of the logits.
        encoder: Name of a timm HRNet, or of any timm model with several feature maps; its further
            options are those of `TimmEncoder`.
        hidden: Channels of the pixel features, at least 1.
        key_channels: Channels of queries, keys and values, at least 1.
        encoder_options: Further keyword arguments of `TimmEncoder`.

    Shape:
        (B, 3, H, W) normalised images -> a dict with the logits `out`, and in training mode the
        auxiliary logits `aux` if there are any, all (B, C, H, W).
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


class OCRHead(nn.Module):
    """Soft object regions, one descriptor per class, and attention of every pixel to them.

    Args:
        in_channels: Sum of the channels of all feature maps.
        num_classes: Number of classes C, and of object regions.
        hidden: Channels of the pixel features, at least 1.
        key_channels: Channels of queries, keys and values, at least 1.

    Shape:
        Feature maps from shallow to deep, resized to the shallowest of (h, w) -> a dict with the
        logits `out` and the scores of the object regions `aux`, both (B, C, h, w).
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
        """Return the logits and the scores of the object regions.

        Args:
            features: Feature maps from shallow to deep.

        Returns:
            `out` and `aux`, both (B, C, h, w).
        """
        size = features[0].shape[-2:]
        joined = torch.cat([resize(each, size) for each in features], dim=1)
        regions = self.regions(joined)  # (B, C, h, w)
        pixels = self.pixels(joined)  # (B, hidden, h, w)
        objects = gather_objects(pixels, regions)  # (B, hidden, C, 1)
        if objects.shape[2] == 1:  # with a single class, batch norm gets one value per image
            require_batch(self.key, objects)
        context = self.up(attend(self.query(pixels), self.key(objects), self.value(objects)))
        return {"out": self.classifier(self.fuse(torch.cat([context, pixels], 1))), "aux": regions}


def gather_objects(pixels: Tensor, regions: Tensor) -> Tensor:
    """Average the pixel features of each soft region: f_k = sum_i softmax_i(regions_k)_i pixels_i.

    The softmax runs in float32, because over tens of thousands of positions it underflows in half
    precision.

    Args:
        pixels: (B, D, H, W) pixel features, any floating dtype.
        regions: (B, K, H, W) scores of K regions.

    Returns:
        (B, D, K, 1) features of the regions, in the dtype of `pixels`.
    """
    with torch.autocast(pixels.device.type, enabled=False):
        weights = regions.float().flatten(2).softmax(dim=2)  # (B, K, H W)
        objects = torch.einsum("bkn,bdn->bdk", weights, pixels.float().flatten(2))
    return objects.unsqueeze(-1).to(pixels.dtype)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return for every pixel the values of the objects it resembles: softmax(q k / sqrt(D)) v.

    Args:
        query: (B, D, H, W) queries of the pixels.
        key: (B, D, K, 1) keys of K objects.
        value: (B, E, K, 1) values of the objects.

    Returns:
        (B, E, H, W).
    """
    keys, values = key.flatten(2), value.flatten(2)
    scores = torch.einsum("bdhw,bdk->bkhw", query, keys) * key.shape[1] ** -0.5
    return torch.einsum("bkhw,bek->behw", scores.softmax(dim=1), values)


def _conv_bn_relu(in_channels: int, out_channels: int, kernel_size: int = 1) -> list[nn.Module]:
    """Return a convolution without bias, batch norm and ReLU."""
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    ]
