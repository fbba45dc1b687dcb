"""LR-ASPP, a light head for mobile encoders.

A. Howard et al.: Searching for MobileNetV3 (2019, arXiv 1905.02244).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torchvision.models.segmentation.lraspp import LRASPPHead

from lightning_seg.networks.encoder import TimmEncoder
from lightning_seg.networks.encoder_head import EncoderHead


class LRASPP(EncoderHead):
    """A mobile encoder with lite reduced atrous spatial pyramid pooling (the head of torchvision).

    Args:
        num_classes: Number of classes C, which is the number of channels of the logits.
        encoder: Name of a timm model; its further options are those of `TimmEncoder`.
        output_stride: Input pixels per pixel of the deepest feature map: 8, 16 or 32. A smaller
            stride gives finer logits for more memory and time.
        inter_channels: Channels of the head, at least 1.
        encoder_options: Further keyword arguments of `TimmEncoder`.

    Shape:
        (B, 3, H, W) normalised images -> a dict with the logits `out`, (B, C, H, W).
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
    """The head of torchvision on a list of two feature maps instead of a dict."""

    def forward(self, features: list[Tensor]) -> Tensor:
        """Return logits at the resolution of the shallower map."""
        low, high = features
        logits: Tensor = super().forward({"low": low, "high": high})
        return logits
