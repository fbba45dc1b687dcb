"""Jigsaw puzzles: an encoder learns without labels, by finding the order of an image's tiles.

The middle of an image is cut into 3 x 3 cells, a tile is taken at a random place of each cell, and
the tiles are shuffled by one of a fixed set of permutations that differ as much as possible. The
encoder sees each tile separately. From its features of all nine tiles a linear layer predicts which
permutation it was:

    L = CE(permutation)

M. Noroozi, P. Favaro: Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles
(ECCV 2016, arXiv 1603.09246). Sizes, the share of grey images and the head follow the recipe for a
ResNet-50 in VISSL. `input_mode: rgb` keeps the colours of the other images, `gray` keeps none.
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
from lightning_seg.numerics import at_least_float32, masked_mean
from lightning_seg.training.pretraining import (
    ImagePretrainingModule,
    counted_images,
    generators,
)
from lightning_seg.views import ColorView, Views


class JigsawModule(ImagePretrainingModule):
    """Training of an encoder on images without labels.

    Logs `loss` and `accuracy`, the share of puzzles that are solved.

    Args:
        encoder: The encoder; its last feature map is averaged over each tile.
        permutations: Number of permutations to choose from, at least 2.
        grid: Number of cells per side, 2 or 3.
        jitter: Share of a cell's side that a tile leaves free, in [0, 0.99]. In training a tile
            lies at a random place of its cell, so that edges do not give the order away.
        tile_size: Side in pixels to which tiles are resized, at least 1; crops of 255 pixels give
            64 without resizing.
        gray_share: Share of the training images that are made grey, in [0, 1].
        width: Number of channels of a tile's embedding, at least 1.
        permutation_seed: Seed of the set of permutations, at least 0.
        options: Arguments of `ImagePretrainingModule`.

    Raises:
        SetupError: A setting is out of range.
    """

    permutations: Tensor

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
            raise SetupError(str(error), option=("permutations", "grid")) from error
        super().__init__(JigsawNetwork(encoder, permutations, grid * grid, width), **options)
        self.register_buffer("permutations", chosen)
        self.grid = grid
        self.jitter = jitter
        self.tile_size = tile_size
        self.gray_share = gray_share
        self.mean_accuracy = WeightedMean()

    @property
    def encoder(self) -> TimmEncoder:
        """The encoder, without the head on top of it."""
        encoder: TimmEncoder = self.network.encoder  # type: ignore[assignment]
        return encoder

    def forward(self, tiles: Tensor) -> Tensor:
        """Return (B, permutations) logits of (B, T, 3, s, s) RGB tiles in [0, 1]."""
        logits: Tensor = self.network(self.normalize(tiles))
        return logits

    def cut(self, image: Tensor, offsets: Tensor) -> Tensor:
        """Return (B, T, 3, tile_size, tile_size) tiles in [0, 1], in their true order.

        Args:
            image: (B, 3, H, W) RGB, uint8 in 0..255 or floating point in [0, 1].
            offsets: (B, T, 2) in [0, 1): the place of each tile in its cell, down and across.
        """
        image = image.float() / 255 if not image.is_floating_point() else image
        return cut_tiles(image, offsets, self.grid, self.jitter, self.tile_size)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of a batch of images; of a batch of groups, of its group `unlabeled`."""
        batch = batch.get("unlabeled", batch)
        image, device = batch["image"], batch["image"].device
        # (B, 3, H, W) -> (B, T, 3, s, s), some of them grey -> shuffled -> (B, permutations)
        tiles = self.cut(image, torch.rand(len(image), self.grid**2, 2, device=device))
        gray = torch.rand(len(tiles), 1, 1, 1, 1, device=device) < self.gray_share
        tiles = tiles.mean(2, keepdim=True).expand_as(tiles).where(gray, tiles)
        puzzle = torch.randint(len(self.permutations), (len(tiles),), device=device)
        logits = self(shuffle(tiles, self.permutations[puzzle]))
        each = F.cross_entropy(logits.float(), puzzle, reduction="none")
        loss = masked_mean(each, None, self.across_ranks)
        losses = {"loss": loss}
        if self.logs_now():
            solved = (logits.argmax(1) == puzzle).float()
            losses["accuracy"] = masked_mean(solved, None, self.across_ranks)
        self.log_training(losses, batch)
        return loss

    # Validation

    def evaluation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Add a batch of puzzles, which are the same in every validation, to the scores."""
        puzzle, logits, _ = self._solve(batch)
        counted = counted_images(batch)
        losses = F.cross_entropy(at_least_float32(logits), puzzle, reduction="none")
        self.mean_loss.update(masked_mean(losses, counted), counted.sum())
        solved = (logits.argmax(1) == puzzle).float()
        self.mean_accuracy.update(masked_mean(solved, counted), counted.sum())

    def _solve(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the numbers of the permutations, the logits, and the shuffled tiles.

        The permutation depends on the image's id alone, and the tiles are from the middle of their
        cells.
        """
        image, high = batch["image"], len(self.permutations)
        draws = [torch.randint(high, (1,), generator=own) for own in generators(batch["id"])]
        puzzle = torch.cat(draws).to(image.device)
        middle = torch.full((len(image), self.grid**2, 2), 0.5, device=image.device)
        tiles = shuffle(self.cut(image, middle), self.permutations[puzzle])
        return puzzle, self(tiles), tiles

    def evaluation(self) -> dict[str, Tensor]:
        """Return the mean loss and the share of puzzles that were solved."""
        accuracy = self.mean_accuracy.compute()
        self.mean_accuracy.reset()
        return {**super().evaluation(), "accuracy": accuracy}

    def views(self, batch: dict[str, Any]) -> Views:
        """Return the tiles shuffled, in the predicted order, and in the true order."""
        puzzle, logits, tiles = self._solve(batch)
        guess = logits.argmax(1)
        solved = "solved" if bool(guess == puzzle) else "not solved"
        guessed = unshuffle(tiles, self.permutations[guess])
        truth = unshuffle(tiles, self.permutations[puzzle])
        return {
            "puzzle": ColorView(_laid_out(self.picture(tiles[0]), self.grid)),
            "prediction": ColorView(_laid_out(self.picture(guessed[0]), self.grid), solved),
            "solution": ColorView(_laid_out(self.picture(truth[0]), self.grid)),
        }


def _laid_out(tiles: Tensor, grid: int) -> Tensor:
    """Return (T, 3, s, s) tiles as one (3, H, W) picture with gaps between them."""
    framed = F.pad(tiles, (2, 2, 2, 2), value=1.0)
    rows = [torch.cat(list(framed[row * grid : (row + 1) * grid]), 2) for row in range(grid)]
    return torch.cat(rows, 1)
