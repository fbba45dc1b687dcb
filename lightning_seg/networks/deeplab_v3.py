"""DeepLab v3: dilated convolutions at several rates, and features of the whole image.

L.-C. Chen, G. Papandreou, F. Schroff, H. Adam: Rethinking Atrous Convolution for Semantic Image
Segmentation (2017, arXiv 1706.05587).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead

from lightning_seg.networks.encoder import TimmEncoder
from lightning_seg.networks.encoder_head import EncoderHead, OnMap, require_batch


class DeepLabV3(EncoderHead):
    """A dilated encoder with atrous spatial pyramid pooling (the head of torchvision).

    The pyramid pools each image to one value per channel, so that training needs 2 or more images
    per device while batch norm is in training mode.

    Args:
        num_classes: Number of classes C, which is the number of channels of the logits.
        encoder: Name of a timm model; its further options are those of `TimmEncoder`.
        output_stride: Input pixels per pixel of the deepest feature map: 8, 16 or 32. A smaller
            stride gives finer logits for more memory and time.
        rates: The three dilation rates of the pyramid; None takes 12, 24 and 36 at output stride 8
            and scales them to other output strides.
        aux: Add an auxiliary head on the last feature map but one; it runs in training mode only.
        encoder_options: Further keyword arguments of `TimmEncoder`.

    Shape:
        (B, 3, H, W) normalised images -> a dict with the logits `out`, and in training mode the
        auxiliary logits `aux` if there are any, all (B, C, H, W).
    """

    def __init__(
        self,
        num_classes: int,
        encoder: str = "resnet50.tv_in1k",
        output_stride: int = 8,
        rates: Sequence[int] | None = None,
        aux: bool = True,
        **encoder_options: Any,
    ) -> None:
        trunk = TimmEncoder(
            encoder, out_indices=(-2, -1), output_stride=output_stride, **encoder_options
        )
        middle, deep = trunk.channels
        rates = rates or [rate * 8 // output_stride for rate in (12, 24, 36)]
        super().__init__(
            trunk,
            OnMap(_GuardedHead(deep, num_classes, rates), -1),
            OnMap(FCNHead(middle, num_classes), -2) if aux else None,
        )


class _GuardedHead(DeepLabHead):  # type: ignore[misc]
    """The head of torchvision, with an error for single images in training."""

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, C, h, w) logits of (B, channels, h, w) features."""
        require_batch(self[0].convs[-1], features)
        logits: Tensor = super().forward(features)
        return logits
