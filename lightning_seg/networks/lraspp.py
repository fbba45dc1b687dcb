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

    On a MobileNetV3 at output stride 16 this is torchvision's `lraspp_mobilenet_v3_large`: the
    shallow map is the output of the first block of stride 8, and all blocks of the dilated stage
    have its rate. With the weights and the batch norms' eps of torchvision (`options: {bn_eps:
    0.001}`) the logits are equal. timm's weights were trained with eps 1e-5, the default here.
    Encoders of other families give the output of the last block of stride 8, and give the first
    block of a dilated stage the rate of the previous stage, as timm does.

    Args:
        num_classes: Number of classes C, which is the number of channels of the logits.
        encoder: Name of a timm model; its further options are those of `TimmEncoder`.
        output_stride: Input pixels per pixel of the deepest feature map: 8, 16 or 32. A smaller
            stride gives finer logits for more memory and time.
        inter_channels: Channels of the head, at least 1.
        uniform_dilation: Give the first block of a dilated stage the dilation rate of the stage;
            None does so for MobileNetV3 alone.
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
        uniform_dilation: bool | None = None,
        **encoder_options: Any,
    ) -> None:
        mobile = "mobilenetv3" in encoder
        uniform = mobile if uniform_dilation is None else uniform_dilation
        # two calls: the command reads the options of the encoder from them
        if mobile:
            trunk: TimmEncoder = _MobileNetV3(
                encoder, (-3, -1), output_stride, uniform_dilation=uniform, **encoder_options
            )
        else:
            trunk = TimmEncoder(
                encoder, (-3, -1), output_stride, uniform_dilation=uniform, **encoder_options
            )
        low, high = trunk.channels
        super().__init__(trunk, _LowHigh(low, high, num_classes, inter_channels))


class _MobileNetV3(TimmEncoder):
    """A MobileNetV3 whose shallow map comes from the first block of its stage, not the last."""

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the map of the first block of stride 8, and the deepest map."""
        model: Any = self.bare
        low_stage = int(self.model.feature_info.module_name()[0].rpartition(".")[2])
        # (B, 3, H, W) -> (B, C, H / 2, W / 2) -> ... -> (B, K, H / 16, W / 16)
        features: Tensor = model.act1(model.bn1(model.conv_stem(image)))
        maps: list[Tensor] = []
        for number, stage in enumerate(model.blocks):
            for place, block in enumerate(stage):
                features = block(features)
                if (number, place) == (low_stage, 0):
                    maps.append(features)
        return [*maps, features]


class _LowHigh(LRASPPHead):  # type: ignore[misc]
    """The head of torchvision on a list of two feature maps instead of a dict."""

    def forward(self, features: list[Tensor]) -> Tensor:
        """Return logits at the resolution of the shallower map."""
        low, high = features
        logits: Tensor = super().forward({"low": low, "high": high})
        return logits
