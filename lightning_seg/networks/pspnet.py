"""PSPNet (2017, arXiv 1612.01105): the scene at several grid sizes beside the features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_seg.networks.encoder import TimmEncoder
from lightning_seg.networks.encoder_head import EncoderHead, OnMap, require_batch, resize


class PSPNet(EncoderHead):
    """Pyramid pooling on a dilated encoder, with an auxiliary head.

    Args:
        num_classes: Channels of the logits.
        encoder: A timm name; see `TimmEncoder` for the further options.
        output_stride: 8, 16 or 32.
        bins: Side lengths of the pooled grids.
        aux: Add the auxiliary head on the last map but one.
        encoder_options: Passed to `TimmEncoder`. The authors' dilation is
            `uniform_dilation: true`.
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
    """Pools the map to several grids, brings each back to size and classifies them all together.

    Args:
        in_channels: Channels of the feature map.
        num_classes: Channels of the logits.
        bins: Side lengths of the pooled grids; each gets in_channels / len(bins) channels.
        hidden: Width of the fusing 3x3 convolution.

    Shape:
        (B, in_channels, H, W) -> (B, num_classes, H, W).
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
        """Return logits at the map's resolution."""
        if 1 in self._sides:
            require_batch(self.bins, features)
        size = features.shape[-2:]
        pooled = [resize(level(features), size) for level in self.bins]
        logits: Tensor = self.classifier(torch.cat([features, *pooled], dim=1))
        return logits


def _classifier(in_channels: int, hidden: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, hidden, 3, padding=1, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU(),
        nn.Dropout2d(0.1),
        nn.Conv2d(hidden, num_classes, 1),
    )
