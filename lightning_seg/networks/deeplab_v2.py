"""DeepLab v2 (2016, arXiv 1606.00915): parallel dilated classifiers whose logits are summed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

from torch import Tensor, nn

from lightning_seg.networks.encoder import TimmEncoder
from lightning_seg.networks.encoder_head import EncoderHead, OnMap


class DeepLabV2(EncoderHead):
    """A dilated ResNet with the four-rate ASPP classifier ("ASPP-L").

    The paper freezes batch norm and gives head weights 10 and head biases 20 times the learning
    rate: `freeze_batch_norm: encoder`, `backbone_lr_factor: 0.1`, `head_bias_lr_factor: 2`.

    Args:
        num_classes: Channels of the logits.
        encoder: A timm ResNet name; see `TimmEncoder` for the further options.
        output_stride: 8, 16 or 32.
        rates: Dilation rates of the parallel classifiers.
        uniform_dilation: Dilate the first block of a stage like the others, as DeepLab does.
        encoder_options: Passed to `TimmEncoder`.
    """

    def __init__(
        self,
        num_classes: int,
        encoder: str = "resnet101.tv_in1k",
        output_stride: int = 8,
        rates: Sequence[int] = (6, 12, 18, 24),
        uniform_dilation: bool = True,
        **encoder_options: Any,
    ) -> None:
        trunk = TimmEncoder(
            encoder,
            out_indices=(-1,),
            output_stride=output_stride,
            uniform_dilation=uniform_dilation,
            **encoder_options,
        )
        super().__init__(trunk, OnMap(ASPPv2Head(trunk.channels[-1], num_classes, rates), -1))


class ASPPv2Head(nn.Module):
    """3x3 classifiers at several dilation rates, summed; no normalisation, no activation.

    Args:
        in_channels: Channels of the feature map.
        num_classes: Channels of the logits.
        rates: Dilation rates.

    Shape:
        (B, in_channels, H, W) -> (B, num_classes, H, W).
    """

    def __init__(
        self, in_channels: int, num_classes: int, rates: Sequence[int] = (6, 12, 18, 24)
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(in_channels, num_classes, 3, padding=rate, dilation=rate) for rate in rates
        )
        for branch in self.branches:
            assert isinstance(branch, nn.Conv2d)
            assert branch.bias is not None
            nn.init.normal_(branch.weight, std=0.01)
            nn.init.zeros_(branch.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return the sum of all branches' logits."""
        logits: Tensor = reduce(add, (branch(features) for branch in self.branches))
        return logits
