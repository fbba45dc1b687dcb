"""The structure analyzer of adversarial structure matching."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_seg.errors import SetupError


class StructureAnalyzer(nn.Module):
    """A U-Net that looks at structured maps, never at images, and reconstructs the map it is shown.

    The encoder halves the resolution in every block with one convolution of 3x3 at stride 2,
    without normalisation; what its convolutions yield before the ReLU is the feature of a tap. The
    decoder of convolutions, bilinear upsampling and concatenated encoder outputs is the
    regularizer that keeps the features fit to describe a map. 990,629 parameters for 21 channels.

    J.-J. Hwang, T.-W. Ke, J. Shi, S. Yu: Adversarial Structure Matching for Structured Prediction
    Tasks (CVPR 2019, arXiv 1805.07457); widths and initialisation are those of the authors' code.

    Args:
        channels: Channels of a map: C for classes, 1 for depth, 3 for normals.
        taps: Encoder blocks whose features are compared, counted from 1.
        widths: Channels of the encoder blocks.

    Raises:
        SetupError: Taps that are no blocks.

    Example:
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
                f"taps must be rising numbers of blocks, 1 to {len(widths)}, not {list(taps)} "
                "(option: --model.analyzer.taps)"
            )
        self.taps = tuple(taps)
        inputs = [channels, *widths[:-1]]
        self.encoder = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1)
            for before, after in zip(inputs, widths, strict=True)
        )
        skips = list(reversed(widths[:-1]))
        inputs = [widths[-1], *(2 * width for width in skips)][: len(skips)]
        self.decoder = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1)
            for before, after in zip(inputs, skips, strict=True)
        )
        self.head = nn.Conv2d(2 * widths[0] if skips else widths[0], channels, 1)
        self.apply(_glorot)

    def forward(self, maps: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the taps' features and the reconstruction of maps.

        Args:
            maps: (B, channels, H, W).

        Returns:
            One (B, width, ceil(H / 2^block), ceil(W / 2^block)) tensor per tap, and
            (B, channels, H, W) logits or values.
        """
        blocks = self._encode(maps, len(self.encoder))
        below = F.relu(blocks[-1])
        for convolution, skip in zip(self.decoder, reversed(blocks[:-1]), strict=True):
            below = _resize(F.relu(convolution(below)), skip)
            below = torch.cat([below, F.relu(skip)], dim=1)
        return self._tapped(blocks), _resize(self.head(below), maps)

    def features(self, maps: Tensor) -> list[Tensor]:
        """Return the taps' features of (B, channels, H, W) maps; nothing deeper is computed."""
        return self._tapped(self._encode(maps, self.taps[-1]))

    def valid(self, valid: Tensor) -> list[Tensor]:
        """Return which places of the taps' features have seen valid pixels only.

        Args:
            valid: (B, H, W) bool, False where a map is void.

        Returns:
            One (B, h, w) bool tensor per tap.
        """
        void = (~valid)[:, None].float()
        levels = []
        for _ in range(self.taps[-1]):
            void = F.max_pool2d(void, 3, stride=2, padding=1)
            levels.append(void[:, 0] == 0)
        return self._tapped(levels)

    def _encode(self, maps: Tensor, depth: int) -> list[Tensor]:
        found: list[Tensor] = []
        for convolution in self.encoder[:depth]:
            found.append(convolution(F.relu(found[-1]) if found else maps))
        return found

    def _tapped(self, blocks: list[Tensor]) -> list[Tensor]:
        return [blocks[tap - 1] for tap in self.taps]


def _resize(maps: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(maps, like.shape[-2:], mode="bilinear", align_corners=False)


def _glorot(module: nn.Module) -> None:
    """Draw kernels and biases as TensorFlow 1 does by default: Glorot's uniform for both."""
    if isinstance(module, nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)
        assert module.bias is not None
        nn.init.uniform_(module.bias, -1, 1)
        with torch.no_grad():
            module.bias.mul_(math.sqrt(3 / len(module.bias)))
