"""DeepLab v3 (2017, arXiv 1706.05587): dilated convolutions and image-level features, fused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead

from lightning_seg.networks.encoder import TimmEncoder
from lightning_seg.networks.encoder_head import EncoderHead, OnMap, require_batch


class DeepLabV3(EncoderHead):
    """ASPP with image pooling on a dilated encoder (torchvision's head), and an auxiliary head.

    Args:
        num_classes: Channels of the logits.
        encoder: A timm name; see `TimmEncoder` for the further options.
        output_stride: 8, 16 or 32.
        rates: Three dilation rates; None takes (12, 24, 36), scaled to the output stride.
        aux: Add the auxiliary head on the last map but one.
        encoder_options: Passed to `TimmEncoder`.
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
    def forward(self, features: Tensor) -> Tensor:
        require_batch(self[0].convs[-1], features)
        logits: Tensor = super().forward(features)
        return logits
