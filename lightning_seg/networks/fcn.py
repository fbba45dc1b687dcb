"""Fully convolutional networks: on a dilated ResNet, and FCN-8s on VGG.

J. Long, E. Shelhamer, T. Darrell: Fully Convolutional Networks for Semantic Segmentation (2015,
arXiv 1411.4038).
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.segmentation.fcn import FCNHead

from lightning_seg.networks.encoder import TimmEncoder
from lightning_seg.networks.encoder_head import EncoderHead, OnMap
from lightning_seg.numerics import resize


class FCN(EncoderHead):
    """A dilated encoder with one 3x3 convolution and a classifier (the head of torchvision).

    Args:
        num_classes: Number of classes C, which is the number of channels of the logits.
        encoder: Name of a timm model; its further options are those of `TimmEncoder`.
        output_stride: Input pixels per pixel of the deepest feature map: 8, 16 or 32. A smaller
            stride gives finer logits for more memory and time.
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
    """FCN-8s: VGG with convolved fully connected layers, and skips from strides 16 and 8.

    Difference from the authors' network: convolutions are padded so that all feature maps are
    aligned. The authors pad the input by 100 pixels and crop.

    Args:
        num_classes: Number of classes C, which is the number of channels of the logits.
        encoder: Name of a timm VGG; its further options are those of `TimmEncoder`.
        hidden: Channels of the two convolved fully connected layers, at least 1.
        encoder_options: Further keyword arguments of `TimmEncoder`.

    Shape:
        (B, 3, H, W) normalised images -> a dict with the logits `out`, (B, C, H, W).
    """

    def __init__(
        self,
        num_classes: int,
        encoder: str = "vgg16.tv_in1k",
        hidden: int = 4096,
        **encoder_options: Any,
    ) -> None:
        # timm returns the maps before each max-pooling, and last the map after the fifth.
        trunk = TimmEncoder(encoder, out_indices=(-4, -3, -1), **encoder_options)
        super().__init__(trunk, FCN8sHead(trunk.channels, num_classes, hidden))


class FCN8sHead(nn.Module):
    """Classifiers on pool5, pool4 and pool3, whose logits are added from coarse to fine.

    Args:
        in_channels: Channels of three feature maps: before pool3, before pool4 and after pool5.
        num_classes: Number of classes C.
        hidden: Channels of the convolved layers fc6 and fc7, at least 1.

    Shape:
        Three feature maps at strides 4, 8 and 32 -> (B, C, H / 8, W / 8) logits.
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
        """Return logits at stride 8.

        Args:
            features: Feature maps at strides 4, 8 and 32.

        Returns:
            (B, C, H / 8, W / 8) logits.
        """
        stride4, stride8, pool5 = features
        pool3 = F.max_pool2d(stride4, 2, ceil_mode=True)
        pool4 = F.max_pool2d(stride8, 2, ceil_mode=True)
        score: Tensor = self.score5(self.fc(pool5))
        score = resize(score, pool4.shape[-2:]) + self.score4(pool4)
        score = resize(score, pool3.shape[-2:]) + self.score3(pool3)
        return score  # noqa: RET504 (mypy wants the type of the sum)
