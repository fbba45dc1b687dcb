"""LR-ASPP: the light head of "Searching for MobileNetV3" (2019, arXiv 1905.02244)."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torchvision.models.segmentation.lraspp import LRASPPHead

from lightning_seg.networks.encoder import TimmEncoder
from lightning_seg.networks.encoder_head import EncoderHead


class LRASPP(EncoderHead):
    """Lite reduced atrous spatial pyramid pooling on a mobile encoder.

    Args:
        num_classes: Channels of the logits.
        encoder: A timm name; see `TimmEncoder` for the further options.
        output_stride: 8, 16 or 32.
        inter_channels: Width of the head.
        encoder_options: Passed to `TimmEncoder`.
    """

    def __init__(
        self,
        num_classes: int,
        encoder: str = "mobilenetv3_large_100.ra_in1k",
        output_stride: int = 16,
        inter_channels: int = 128,
        **encoder_options: Any,
    ) -> None:
        trunk = TimmEncoder(
            encoder, out_indices=(-3, -1), output_stride=output_stride, **encoder_options
        )
        low, high = trunk.channels
        super().__init__(trunk, _LowHigh(low, high, num_classes, inter_channels))


class _LowHigh(LRASPPHead):  # type: ignore[misc]
    def forward(self, features: list[Tensor]) -> Tensor:
        low, high = features
        logits: Tensor = super().forward({"low": low, "high": high})
        return logits
