"""DeepLab v2: parallel dilated classifiers whose logits are summed.

L.-C. Chen, G. Papandreou, I. Kokkinos, K. Murphy, A. L. Yuille: DeepLab (2016, arXiv 1606.00915).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

from torch import Tensor, nn

from lightning_seg.networks.encoder import TimmEncoder
from lightning_seg.networks.encoder_head import EncoderHead, OnMap


class DeepLabV2(EncoderHead):
    """A dilated ResNet with an atrous spatial pyramid of four classifiers (ASPP-L).

    The paper freezes batch norm and gives head weights 10 times and head biases 20 times the
    learning rate of the encoder. The methods of this project have options for this:
    `freeze_batch_norm: pretrained`, `backbone_lr_factor: 0.1` and `head_bias_lr_factor: 2`.

    Args:
        num_classes: Number of classes C, which is the number of channels of the logits.
        encoder: Name of a timm ResNet; its further options are those of `TimmEncoder`.
        output_stride: Input pixels per pixel of the deepest feature map: 8, 16 or 32. A smaller
            stride gives finer logits for more memory and time.
        rates: Dilation rates of the parallel classifiers, at least one.
        uniform_dilation: Give the first block of a dilated stage the dilation rate of the stage, as
            the authors do. False gives it the rate of the previous stage, as timm does. None does
            as the authors where the encoder has such stages.
        encoder_options: Further keyword arguments of `TimmEncoder`.

    Shape:
        (B, 3, H, W) normalised images -> a dict with the logits `out`, (B, C, H, W).
    """

    def __init__(
        self,
        num_classes: int,
        encoder: str = "resnet101.tv_in1k",
        output_stride: int = 8,
        rates: Sequence[int] = (6, 12, 18, 24),
        uniform_dilation: bool | None = None,
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
    """3x3 classifiers at several dilation rates, whose logits are summed.

    Args:
        in_channels: Channels of the feature map.
        num_classes: Number of classes C.
        rates: Dilation rates of the classifiers, at least one.

    Shape:
        (B, in_channels, h, w) features -> (B, C, h, w) logits.
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
        """Return the sum of the logits of all classifiers.

        Args:
            features: (B, in_channels, h, w).

        Returns:
            (B, C, h, w) logits.
        """
        logits: Tensor = reduce(add, (branch(features) for branch in self.branches))
        return logits
