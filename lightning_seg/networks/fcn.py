"""Fully convolutional networks (2015, arXiv 1411.4038): on a dilated ResNet, and FCN-8s on VGG."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.segmentation.fcn import FCNHead

from lightning_seg.networks.encoder import TimmEncoder
from lightning_seg.networks.encoder_head import EncoderHead, OnMap, resize


class FCN(EncoderHead):
    """One 3x3 convolution and a classifier on a dilated encoder, with an auxiliary head.

    Args:
        num_classes: Channels of the logits.
        encoder: A timm name; see `TimmEncoder` for the further options.
        output_stride: 8, 16 or 32.
        aux: Add the auxiliary head on the last map but one.
        encoder_options: Passed to `TimmEncoder`.
    """

    def __init__(
        self,
        num_classes: int,
        encoder: str = "resnet50.tv_in1k",
        output_stride: int = 8,
        aux: bool = True,
        **encoder_options: Any,
    ) -> None:
        trunk = TimmEncoder(
            encoder, out_indices=(-2, -1), output_stride=output_stride, **encoder_options
        )
        middle, deep = trunk.channels
        super().__init__(
            trunk,
            OnMap(FCNHead(deep, num_classes), -1),
            OnMap(FCNHead(middle, num_classes), -2) if aux else None,
        )


class FCN8s(EncoderHead):
    """FCN-8s: two fully connected layers as convolutions, and skips from strides 16 and 8.

    Padding keeps the maps aligned where the original pads its input by 100 pixels and crops.

    Args:
        num_classes: Channels of the logits.
        encoder: A timm VGG name; see `TimmEncoder` for the further options.
        hidden: Width of the two convolved fully connected layers.
        encoder_options: Passed to `TimmEncoder`.
    """

    def __init__(
        self,
        num_classes: int,
        encoder: str = "vgg16.tv_in1k",
        hidden: int = 4096,
        **encoder_options: Any,
    ) -> None:
        # timm's maps lie before each max-pool, but for the last, which lies behind the fifth
        trunk = TimmEncoder(encoder, out_indices=(-4, -3, -1), **encoder_options)
        super().__init__(trunk, FCN8sHead(trunk.channels, num_classes, hidden))


class FCN8sHead(nn.Module):
    """Scores pool5, pool4 and pool3 and adds them up, coarse to fine.

    Args:
        in_channels: Channels of the maps before pool3, before pool4 and behind pool5.
        num_classes: Channels of the logits.
        hidden: Width of fc6 and fc7.

    Shape:
        Three maps at strides 4, 8 and 32 -> (B, num_classes, H / 8, W / 8).
    """

    def __init__(self, in_channels: list[int], num_classes: int, hidden: int = 4096) -> None:
        super().__init__()
        pool3, pool4, pool5 = in_channels
        self.fc = nn.Sequential(
            nn.Conv2d(pool5, hidden, 7, padding=3),
            nn.ReLU(),
            nn.Dropout2d(0.5),
            nn.Conv2d(hidden, hidden, 1),
            nn.ReLU(),
            nn.Dropout2d(0.5),
        )
        self.score5 = nn.Conv2d(hidden, num_classes, 1)
        self.score4 = nn.Conv2d(pool4, num_classes, 1)
        self.score3 = nn.Conv2d(pool3, num_classes, 1)
        for score in (self.score3, self.score4, self.score5):
            nn.init.zeros_(score.weight)
            nn.init.zeros_(score.bias)  # type: ignore[arg-type]

    def forward(self, features: list[Tensor]) -> Tensor:
        """Return logits at stride 8."""
        stride4, stride8, pool5 = features
        pool3 = F.max_pool2d(stride4, 2, ceil_mode=True)
        pool4 = F.max_pool2d(stride8, 2, ceil_mode=True)
        score: Tensor = self.score5(self.fc(pool5))
        score = resize(score, pool4.shape[-2:]) + self.score4(pool4)
        score = resize(score, pool3.shape[-2:]) + self.score3(pool3)
        return score  # noqa: RET504 (mypy wants the type of the sum)
