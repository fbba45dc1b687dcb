"""Jigsaw puzzles: an encoder learns what things are by putting their parts in order.

The middle of an image is cut into 3 x 3 cells, a tile is taken from somewhere in each, and the
tiles are shuffled by one of a fixed set of permutations that differ as much as possible. The
encoder looks at each tile by itself; from what it says of all nine, a linear layer guesses which
permutation it was:

    L = CE(permutation)

M. Noroozi, P. Favaro: Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles
(ECCV 2016, arXiv 1603.09246). Sizes, the share of grey images and the head follow the recipe for
a ResNet-50 in VISSL. The images' own colours are `input_mode: rgb`; `gray` makes all of them grey.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_seg.errors import SetupError, require_range
from lightning_seg.metrics import WeightedMean
from lightning_seg.networks.encoder import TimmEncoder
from lightning_seg.networks.jigsaw import JigsawNetwork
from lightning_seg.networks.tiles import cut_tiles, far_permutations, shuffle, unshuffle
from lightning_seg.training.pretraining import ImagePretrainingModule


class JigsawModule(ImagePretrainingModule):
    """Trains an encoder on images without labels.

    Logs the loss and `accuracy`, the share of puzzles that are solved.

    Args:
        encoder: Its last map is averaged over each tile.
        permutations: How many there are to choose from, at least 2.
        grid: Cells per side, 2 or 3.
        jitter: Share of a cell's side that the tile leaves free, in [0, 1): where it lies in the
            cell is random in training, so that edges do not give the order away.
        tile_size: Side in pixels that tiles are resized to; 64 are what 255-pixel crops give.
        gray_share: Share of the training images that are made grey, in [0, 1].
        width: What the encoder's words on a tile are reduced to.
        permutation_seed: Of the set.
        options: Passed to `ImagePretrainingModule`.

    Raises:
        SetupError: Settings out of range.
    """

    permutations: Tensor
    headings = ("the puzzle", "its guess", "solved")

    def __init__(
        self,
        encoder: TimmEncoder,
        *,
        permutations: int = 1000,
        grid: int = 3,
        jitter: float = 0.25,
        tile_size: int = 64,
        gray_share: float = 0.66,
        width: int = 1000,
        permutation_seed: int = 0,
        **options: Any,
    ) -> None:
        require_range(0, 0.99, jitter=jitter)
        require_range(0, 1, gray_share=gray_share)
        require_range(1, float("inf"), tile_size=tile_size, width=width)
        require_range(0, float("inf"), permutation_seed=permutation_seed)
        try:
            chosen = far_permutations(permutations, grid * grid, permutation_seed)
        except ValueError as error:
            raise SetupError(f"{error} (options: --model.permutations, --model.grid)") from error
        super().__init__(JigsawNetwork(encoder, permutations, grid * grid, width), **options)
        self.register_buffer("permutations", chosen)
        self.grid = grid
        self.jitter = jitter
        self.tile_size = tile_size
        self.gray_share = gray_share
        self.mean_accuracy = WeightedMean()

    @property
    def encoder(self) -> TimmEncoder:
        """The network without its head."""
        encoder: TimmEncoder = self.network.encoder  # type: ignore[assignment]
        return encoder

    def forward(self, tiles: Tensor) -> Tensor:
        """Return (B, permutations) logits of (B, T, 3, s, s) RGB tiles in [0, 1]."""
        logits: Tensor = self.network(self.normalize(tiles))
        return logits

    def cut(self, image: Tensor, offsets: Tensor) -> Tensor:
        """Return (B, T, 3, tile_size, tile_size) tiles in [0, 1], in their true order.

        Args:
            image: (B, 3, H, W) RGB, uint8 or in [0, 1].
            offsets: (B, T, 2) in [0, 1): where in its cell a tile lies, down and across.
        """
        image = image.float() / 255 if not image.is_floating_point() else image
        return cut_tiles(image, offsets, self.grid, self.jitter, self.tile_size)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of one batch of images, whatever labels it has."""
        batch = batch.get("unlabeled", batch)
        image, device = batch["image"], batch["image"].device
        tiles = self.cut(image, torch.rand(len(image), self.grid**2, 2, device=device))
        gray = torch.rand(len(tiles), 1, 1, 1, 1, device=device) < self.gray_share
        tiles = tiles.mean(2, keepdim=True).expand_as(tiles).where(gray, tiles)
        puzzle = torch.randint(len(self.permutations), (len(tiles),), device=device)
        logits = self(shuffle(tiles, self.permutations[puzzle]))
        loss = F.cross_entropy(logits.float(), puzzle)
        accuracy = (logits.argmax(1) == puzzle).float().mean()
        self.log_training({"loss": loss, "accuracy": accuracy}, batch)
        return loss

    # Validation

    def evaluation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Count a batch of puzzles that are the same each time, of tiles from the cells' middle."""
        super().evaluation_step(batch, batch_idx)
        puzzle, logits, _ = self._solve(batch["image"], batch_idx)
        count = torch.tensor(len(puzzle), device=puzzle.device)
        self.mean_loss.update(F.cross_entropy(logits.float(), puzzle), count)
        self.mean_accuracy.update((logits.argmax(1) == puzzle).float().mean(), count)

    def _solve(self, image: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the permutations' numbers, the network's logits, and the shuffled tiles."""
        generator = torch.Generator().manual_seed(seed)
        puzzle = torch.randint(len(self.permutations), (len(image),), generator=generator)
        puzzle = puzzle.to(image.device)
        middle = torch.full((len(image), self.grid**2, 2), 0.5, device=image.device)
        tiles = shuffle(self.cut(image, middle), self.permutations[puzzle])
        return puzzle, self(tiles), tiles

    def evaluation(self) -> dict[str, Tensor]:
        """Return the loss and the share of puzzles that were solved."""
        accuracy = self.mean_accuracy.compute()
        self.mean_accuracy.reset()
        return {**super().evaluation(), "accuracy": accuracy}

    def row(self, image: Tensor, number: int) -> list[Tensor]:
        """Return a puzzle, as the network solves it, and solved."""
        puzzle, logits, tiles = self._solve(image, number)
        guess = unshuffle(tiles, self.permutations[logits.argmax(1)])
        truth = unshuffle(tiles, self.permutations[puzzle])
        return [_laid_out(each[0], self.grid) for each in (tiles, guess, truth)]


def _laid_out(tiles: Tensor, grid: int) -> Tensor:
    """Return (T, 3, s, s) tiles as one (3, H, W) picture with gaps between them."""
    framed = F.pad(tiles, (2, 2, 2, 2), value=1.0)
    rows = [torch.cat(list(framed[row * grid : (row + 1) * grid]), 2) for row in range(grid)]
    return torch.cat(rows, 1)
