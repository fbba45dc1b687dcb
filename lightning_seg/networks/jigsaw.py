"""The network of jigsaw puzzles: it classifies the permutation that shuffled the tiles of an image.

M. Noroozi, P. Favaro: Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles
(ECCV 2016, arXiv 1603.09246). The head is that of the recipe for a ResNet-50 in VISSL.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from lightning_seg.errors import require_range
from lightning_seg.networks.encoder import TimmEncoder


class JigsawNetwork(nn.Module):
    """An encoder that embeds each tile alone, and a classifier of permutations on all embeddings.

    The last feature map of a tile is averaged over its positions. One linear layer with batch norm
    and ReLU, shared by all tiles, reduces it to an embedding. A second linear layer takes the
    concatenated embeddings of an image.

    Args:
        encoder: Its last feature map must be (B, channels, rows, columns).
        permutations: Number of permutations to choose from, at least 2.
        tiles: Number T of tiles per image, at least 1.
        width: Channels of a tile's embedding, at least 1.

    Raises:
        SetupError: An argument is out of its range.

    Shape:
        (B, T, 3, s, s) normalised tiles -> (B, permutations) logits.

    Examples:
        >>> import torch
        >>> network = JigsawNetwork(TimmEncoder("resnet18"), permutations=100, width=16)
        >>> network(torch.zeros(2, 9, 3, 64, 64)).shape
        torch.Size([2, 100])
    """

    def __init__(
        self, encoder: TimmEncoder, permutations: int, tiles: int = 9, width: int = 1000
    ) -> None:
        super().__init__()
        require_range(2, math.inf, permutations=permutations)
        require_range(1, math.inf, tiles=tiles, width=width)
        self.encoder = encoder
        self.tiles = tiles
        self.reduce = nn.Sequential(
            nn.Linear(encoder.channels[-1], width), nn.BatchNorm1d(width), nn.ReLU()
        )
        self.classify = nn.Linear(tiles * width, permutations)

    def forward(self, tiles: Tensor) -> Tensor:
        """Return one logit per permutation.

        Args:
            tiles: (B, T, 3, s, s), normalised with the mean and std of the encoder.

        Returns:
            (B, permutations) logits.

        Raises:
            ValueError: The number of tiles or of dimensions does not fit.
        """
        if tiles.ndim != 5 or tiles.shape[1] != self.tiles:
            raise ValueError(
                f"tiles {tuple(tiles.shape)} do not fit: expected (B, {self.tiles}, 3, s, s)"
            )
        pooled = self.encoder(tiles.flatten(0, 1))[-1].mean((2, 3))  # (B T, channels)
        reduced = self.reduce(pooled).view(len(tiles), -1)  # (B T, width) -> (B, T width)
        logits: Tensor = self.classify(reduced)
        return logits
