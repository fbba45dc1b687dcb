"""PSPNet: features pooled to grids of several sizes, concatenated with the features themselves.

H. Zhao, J. Shi, X. Qi, X. Wang, J. Jia: Pyramid Scene Parsing Network (2017, arXiv 1612.01105).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_seg.networks.encoder import TimmEncoder
from lightning_seg.networks.encoder_head import EncoderHead, OnMap, require_batch
from lightning_seg.numerics import resize


class PSPNet(EncoderHead):
    """A dilated encoder with pyramid pooling.

    A grid of 1x1 pools each image to one value per channel, so that training needs 2 or more images
    per device while batch norm is in training mode.

    Args:
        num_classes: Number of classes C, which is the number of channels of the logits.
        encoder: Name of a timm model; its further options are those of `TimmEncoder`.
        output_stride: Input pixels per pixel of the deepest feature map: 8, 16 or 32. A smaller
            stride gives finer logits for more memory and time.
        bins: Sides of the grids that features are pooled to, at least one.
        aux: Add an auxiliary head on the last feature map but one; it runs in training mode only.
        encoder_options: Further keyword arguments of `TimmEncoder`. `uniform_dilation: true` gives
            the dilation of the authors.

    Shape:
        (B, 3, H, W) normalised images -> a dict with the logits `out`, and in training mode the
        auxiliary logits `aux` if there are any, all (B, C, H, W).
    """

    def __init__(
        self,
        num_classes: int,
        encoder: str = "resnet50.tv_in1k",
        output_stride: int = 8,
        bins: Sequence[int] = (1, 2, 3, 6),
        aux: bool = True,
        **encoder_options: Any,
    ) -> None:
        trunk = TimmEncoder(
            encoder, out_indices=(-2, -1), output_stride=output_stride, **encoder_options
        )
        middle, deep = trunk.channels
        super().__init__(
            trunk,
            OnMap(PSPHead(deep, num_classes, bins), -1),
            OnMap(_classifier(middle, 256, num_classes), -2) if aux else None,
        )


class PSPHead(nn.Module):
    """Features pooled to several grids, resized to the feature map, and classified together.

    Args:
        in_channels: Channels of the feature map.
        num_classes: Number of classes C.
        bins: Sides of the grids; each pooled map has in_channels // len(bins) channels.
        hidden: Channels of the 3x3 convolution before the classifier, at least 1.

    Shape:
        (B, in_channels, h, w) features -> (B, C, h, w) logits.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        bins: Sequence[int] = (1, 2, 3, 6),
        hidden: int = 512,
    ) -> None:
        super().__init__()
        width = in_channels // len(bins)
        self.bins = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(side),
                nn.Conv2d(in_channels, width, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            )
            for side in bins
        )
        self.classifier = _classifier(in_channels + width * len(bins), hidden, num_classes)
        self._sides = tuple(bins)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits at the resolution of the feature map.

        Args:
            features: (B, in_channels, h, w).

        Returns:
            (B, C, h, w) logits.
        """
        if 1 in self._sides:
            require_batch(self.bins, features)
        size = features.shape[-2:]
        pooled = [resize(level(features), size) for level in self.bins]
        logits: Tensor = self.classifier(torch.cat([features, *pooled], dim=1))
        return logits


def _classifier(in_channels: int, hidden: int, num_classes: int) -> nn.Sequential:
    """Return a 3x3 convolution with batch norm, ReLU and dropout, and a 1x1 classifier."""
    return nn.Sequential(
        nn.Conv2d(in_channels, hidden, 3, padding=1, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU(),
        nn.Dropout2d(0.1),
        nn.Conv2d(hidden, num_classes, 1),
    )
