"""The structure analyzer of adversarial structure matching.

J.-J. Hwang, T.-W. Ke, J. Shi, S. Yu: Adversarial Structure Matching for Structured Prediction Tasks
(CVPR 2019, arXiv 1805.07457).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_seg.errors import SetupError
from lightning_seg.networks.label_convolution import label_convolution


class StructureAnalyzer(nn.Module):
    """A U-Net on structured maps: it returns features of a map, and reconstructs the map.

    A structured map holds classes, depths or normals; the analyzer never gets an image. Each block
    of the encoder is one 3x3 convolution of stride 2 without normalisation; the feature of a tap is
    the output of the convolution before the ReLU. The decoder consists of 3x3 convolutions,
    bilinear upsampling and concatenated encoder outputs. Training it to reconstruct the true map
    keeps the features descriptive of maps. Channels and initialisation are those of the authors'
    code, 990,629 parameters for 21 channels.

    The decoder resizes with half-pixel centres (`align_corners=False`). `resize_bilinear` of
    TensorFlow 1, in the authors' code, reads the value of output pixel i at i h / H of the input,
    half a pixel of the input minus half a pixel of the output away. The features of the taps do not
    depend on it.

    Args:
        channels: Channels of a map: C for classes, 1 for depth, 3 for normals.
        taps: Encoder blocks whose features are compared: rising numbers from 1 to the number of
            blocks.
        widths: Channels of the encoder blocks, one number per block.

    Raises:
        SetupError: `taps` are not rising numbers of encoder blocks.

    Examples:
        >>> analyzer = StructureAnalyzer(21)
        >>> sum(weight.numel() for weight in analyzer.parameters())
        990629
        >>> features, reconstruction = analyzer(torch.rand(1, 21, 65, 97))
        >>> [tuple(each.shape) for each in features], tuple(reconstruction.shape)
        ([(1, 16, 33, 49), (1, 64, 17, 25)], (1, 21, 65, 97))
    """

    def __init__(
        self,
        channels: int,
        taps: Sequence[int] = (1, 2),
        widths: Sequence[int] = (16, 64, 128, 128, 128),
    ) -> None:
        super().__init__()
        if (
            not taps
            or sorted(set(taps)) != list(taps)
            or not 1 <= taps[0] <= taps[-1] <= len(widths)
        ):
            raise SetupError(
                f"taps must be rising numbers of blocks, 1 to {len(widths)}, not {list(taps)}",
                option="taps",
            )
        self.taps = tuple(taps)
        # encoder blocks: channels -> widths[0] -> widths[1] -> ...
        inputs = [channels, *widths[:-1]]
        self.encoder = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1)
            for before, after in zip(inputs, widths, strict=True)
        )
        # decoder blocks: each takes the one before, concatenated with an encoder output
        skips = list(reversed(widths[:-1]))
        inputs = [widths[-1], *(2 * width for width in skips)][: len(skips)]
        self.decoder = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1)
            for before, after in zip(inputs, skips, strict=True)
        )
        self.head = nn.Conv2d(2 * widths[0] if skips else widths[0], channels, 1)
        self.apply(_glorot)

    def forward(self, maps: Tensor, full_size: bool = True) -> tuple[list[Tensor], Tensor]:
        """Return the features of the taps, and the reconstruction.

        Args:
            maps: (B, channels, H, W); or (B, H, W) int64 class ids in [0, channels], where
                `channels` is void. Class ids give the result of their one-hot vectors.
            full_size: False leaves the reconstruction at half the size, for losses that upsample it
                block by block.

        Returns:
            One (B, width, ceil(H / 2^block), ceil(W / 2^block)) tensor per tap, and the
            (B, channels, H, W) reconstruction: logits of classes, or values.
        """
        blocks = self._encode(maps, len(self.encoder))
        decoded = F.relu(blocks[-1])
        for convolution, skip in zip(self.decoder, reversed(blocks[:-1]), strict=True):
            # (B, *, h, w) -> (B, width, 2 h, 2 w) -> (B, 2 width, 2 h, 2 w)
            decoded = _resize(F.relu(convolution(decoded)), skip)
            decoded = torch.cat([decoded, F.relu(skip)], dim=1)
        rebuilt = self.head(decoded)
        return self._tapped(blocks), _resize(rebuilt, maps) if full_size else rebuilt

    def features(self, maps: Tensor) -> list[Tensor]:
        """Return the features of the taps only; deeper blocks and the decoder do not run.

        Args:
            maps: (B, channels, H, W), or (B, H, W) class ids; see `forward`.

        Returns:
            One (B, width, ceil(H / 2^block), ceil(W / 2^block)) tensor per tap.
        """
        return self._tapped(self._encode(maps, self.taps[-1]))

    def valid(self, valid: Tensor) -> list[Tensor]:
        """Return the places of the taps' features that depend on valid pixels only.

        Args:
            valid: (B, H, W) bool, False where a map is void.

        Returns:
            One (B, h, w) bool tensor per tap.
        """
        # A place is void if any pixel under the 3x3 kernels up to it is: (B, 1, H, W), halved
        # with every block.
        void = (~valid)[:, None].float()
        levels = []
        for _ in range(self.taps[-1]):
            void = F.max_pool2d(void, 3, stride=2, padding=1)
            levels.append(void[:, 0] == 0)
        return self._tapped(levels)

    def _encode(self, maps: Tensor, depth: int) -> list[Tensor]:
        """Return the outputs of the first blocks before their ReLUs."""
        first, *others = self.encoder[:depth]
        assert isinstance(first, nn.Conv2d)
        of_ids = not maps.is_floating_point()
        blocks: list[Tensor] = [label_convolution(maps, first) if of_ids else first(maps)]
        for convolution in others:
            blocks.append(convolution(F.relu(blocks[-1])))
        return blocks

    def _tapped(self, blocks: list[Tensor]) -> list[Tensor]:
        """Return the outputs of the blocks that are taps."""
        return [blocks[tap - 1] for tap in self.taps]


def _resize(maps: Tensor, like: Tensor) -> Tensor:
    """Resize maps bilinearly to the height and width of another tensor."""
    return F.interpolate(maps, like.shape[-2:], mode="bilinear", align_corners=False)


def _glorot(module: nn.Module) -> None:
    """Draw kernels and biases from Glorot's uniform distribution, the default of TensorFlow 1."""
    if isinstance(module, nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)
        assert module.bias is not None
        nn.init.uniform_(module.bias, -1, 1)
        with torch.no_grad():
            module.bias.mul_(math.sqrt(3 / len(module.bias)))
