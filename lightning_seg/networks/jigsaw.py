"""Jigsaw puzzles: tiles of an image, permutations far from each other, and who guesses them.

M. Noroozi, P. Favaro: Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles
(ECCV 2016, arXiv 1603.09246). Sizes and the head are those of the recipe for a ResNet-50 in VISSL.
"""

from __future__ import annotations

from torch import Tensor, nn

from lightning_seg.errors import SetupError
from lightning_seg.networks.encoder import TimmEncoder


class JigsawNetwork(nn.Module):
    """An encoder that sees tiles one by one, and layers that guess the order they are in.

    The last map of each tile is averaged and reduced by one linear layer with batch norm and ReLU
    that all tiles share; the results side by side go through another linear layer.

    Args:
        encoder: Its last map is used; it has to be (B, channels, rows, columns).
        permutations: How many orders there are to choose from, at least 2.
        tiles: T, per image.
        width: What a tile is reduced to.

    Raises:
        SetupError: Settings out of range.

    Example:
        >>> import torch
        >>> network = JigsawNetwork(TimmEncoder("resnet18"), permutations=100, width=16)
        >>> network(torch.zeros(2, 9, 3, 64, 64)).shape
        torch.Size([2, 100])
    """

    def __init__(
        self, encoder: TimmEncoder, permutations: int, tiles: int = 9, width: int = 1000
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("permutations", permutations, 2),
            ("tiles", tiles, 1),
            ("width", width, 1),
        ):
            if value < least:
                raise SetupError(
                    f"{name} must be at least {least}, not {value} (option: --model.{name})"
                )
        self.encoder = encoder
        self.tiles = tiles
        self.reduce = nn.Sequential(
            nn.Linear(encoder.channels[-1], width), nn.BatchNorm1d(width), nn.ReLU()
        )
        self.classify = nn.Linear(tiles * width, permutations)

    def forward(self, tiles: Tensor) -> Tensor:
        """Return (B, permutations) logits of (B, T, 3, s, s) normalised tiles.

        Raises:
            ValueError: Another number of tiles or of dimensions.
        """
        if tiles.ndim != 5 or tiles.shape[1] != self.tiles:
            raise ValueError(
                f"tiles {tuple(tiles.shape)} do not fit: expected (B, {self.tiles}, 3, s, s)"
            )
        pooled = self.encoder(tiles.flatten(0, 1))[-1].mean((2, 3))
        reduced = self.reduce(pooled).view(len(tiles), -1)
        logits: Tensor = self.classify(reduced)
        return logits
