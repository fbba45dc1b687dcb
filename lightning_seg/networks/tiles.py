"""Tiles of images, and the permutations that a jigsaw puzzle shuffles them by.

M. Noroozi, P. Favaro: Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles
(ECCV 2016, arXiv 1603.09246).
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


def far_permutations(count: int, tiles: int = 9, seed: int = 0) -> Tensor:
    """Choose permutations with large Hamming distances, greedily.

    The first permutation is random. Each further one has the largest minimum Hamming distance to
    all chosen before it; ties are broken by the largest sum of distances, then at random. The
    first `tiles` permutations differ from each other in all places. A result is cached for the
    process; 1000 permutations of 9 tiles take about a second.

    Args:
        count: Number of permutations, at least 2 and at most the factorial of `tiles`.
        tiles: Number of tiles, 4 (2x2) or 9 (3x3).
        seed: Seed of the random choices, at least 0. The global generators are not used.

    Returns:
        (count, tiles) int64, distinct rows of 0 to `tiles` - 1 in the order of their choice. A
        smaller `count` gives the first rows of a larger one.

    Raises:
        ValueError: An argument is out of its range.

    Examples:
        Four permutations of 2x2 tiles have every number once in each place.

        >>> chosen = far_permutations(4, tiles=4)
        >>> [sorted(column) for column in chosen.T.tolist()]
        [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]]
    """
    if tiles not in (4, 9):
        raise ValueError(f"tiles must be 4 or 9, not {tiles}")
    if not 2 <= count <= math.factorial(tiles):
        raise ValueError(
            f"{count} permutations of {tiles} tiles: there must be at least 2 and at most "
            f"{math.factorial(tiles)}"
        )
    if seed < 0:
        raise ValueError(f"seed must be at least 0, not {seed}")
    return torch.tensor(_far_permutations(count, tiles, seed), dtype=torch.int64)


@lru_cache(maxsize=8)
def _far_permutations(count: int, tiles: int, seed: int) -> NDArray[np.uint8]:
    """Return (count, tiles) permutations; the arguments are in range."""
    every = np.array(list(itertools.permutations(range(tiles))), np.uint8)  # (tiles!, tiles)
    columns = np.ascontiguousarray(every.T)  # (tiles, tiles!), for fast comparisons
    generator = np.random.default_rng(seed)
    # (tiles!,): smallest and summed distance of each permutation from the chosen ones. The sum
    # does not fit into 8 bits.
    nearest = np.full(len(every), tiles, np.uint8)
    total = np.zeros(len(every), np.int32)
    chosen = [int(generator.integers(len(every)))]
    while len(chosen) < count:
        distance = np.zeros(len(every), np.uint8)  # (tiles!,) from the permutation chosen last
        for column, tile in zip(columns, every[chosen[-1]], strict=True):
            distance += column != tile
        np.minimum(nearest, distance, out=nearest)
        total += distance
        # Chosen permutations have the distance 0 and so are never among the best.
        best = np.flatnonzero(nearest == nearest.max())
        best = best[total[best] == total[best].max()]
        chosen.append(int(best[generator.integers(len(best))]))
    return every[chosen]


def cut_tiles(
    images: Tensor, offsets: Tensor, grid: int = 3, jitter: float = 0.25, size: int = 64
) -> Tensor:
    """Cut the central square of images into cells, and a smaller tile out of each cell.

    The central square has the shorter side S of the image. Its cells have the side S // grid; the
    remainder is at the right and bottom edges of the square. Tiles have the side
    cell - floor(cell * jitter). An image of 255 pixels has cells of 85 and, with a jitter of 0.25,
    tiles of 64.

    Args:
        images: (B, 3, H, W), any floating dtype.
        offsets: (B, grid^2, 2) vertical and horizontal offsets of the tiles in their cells, in
            [0, 1), cells row by row. 0 is the top or left end of the free space, values close to
            1 are the bottom or right end.
        grid: Cells per side, at least 1.
        jitter: Share of the side of a cell that is free, in [0, 1).
        size: Side of the returned tiles in pixels, at least 1. Tiles of another side are resized
            bilinearly with antialiasing.

    Returns:
        (B, grid^2, 3, size, size) tiles, row by row.

    Raises:
        ValueError: An argument is out of its range, the shapes do not fit, or an image has fewer
            pixels than the grid has cells.

    Examples:
        Cells of 2x2 pixels and tiles of one pixel.

        >>> image = torch.arange(16.0).view(1, 1, 4, 4).expand(1, 3, 4, 4)
        >>> tiles = cut_tiles(image, torch.zeros(1, 4, 2), grid=2, jitter=0.5, size=1)
        >>> tiles[0, :, 0, 0, 0].tolist()
        [0.0, 2.0, 8.0, 10.0]
    """
    _require_tiling(images, offsets, grid, jitter, size)
    height, width = images.shape[-2:]
    square = min(height, width)
    cell = square // grid
    if cell < 1:
        raise ValueError(f"images of {height}x{width} pixels are too small for {grid}x{grid} cells")
    tile = cell - math.floor(cell * jitter)
    # (B, T, 2): an offset just below 1 may be rounded up to the free side plus 1
    shift = (offsets * (cell - tile + 1)).long().clamp(max=cell - tile)
    step = torch.arange(grid, device=images.device) * cell
    corner = shift + torch.cartesian_prod(step, step).view(-1, 2)
    # (B, T, 1) + (tile,) -> (B, T, tile), the rows and columns of every tile in the image
    side = torch.arange(tile, device=images.device)
    rows = corner[..., :1] + ((height - square) // 2 + side)
    columns = corner[..., 1:] + ((width - square) // 2 + side)
    which = torch.arange(len(images), device=images.device)[:, None, None, None]
    # (B, H, W, 3) -> (B, T, tile, tile, 3) -> (B, T, 3, tile, tile)
    tiles = images.permute(0, 2, 3, 1)[which, rows[..., :, None], columns[..., None, :]]
    tiles = tiles.movedim(-1, 2).contiguous()
    if tile == size:
        return tiles
    resized = F.interpolate(
        tiles.flatten(0, 1), (size, size), mode="bilinear", align_corners=False, antialias=True
    )
    return resized.view(*tiles.shape[:3], size, size)


def _require_tiling(images: Tensor, offsets: Tensor, grid: int, jitter: float, size: int) -> None:
    """Raise a ValueError for arguments of `cut_tiles` out of range, or shapes that do not fit."""
    for name, value in (("grid", grid), ("size", size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    if not 0 <= jitter < 1:
        raise ValueError(f"jitter must be in [0, 1), not {jitter}")
    if images.ndim != 4 or offsets.shape != (len(images), grid**2, 2):
        raise ValueError(
            f"images {tuple(images.shape)} and offsets {tuple(offsets.shape)} do not fit: expected "
            f"(B, 3, H, W) and (B, {grid**2}, 2)"
        )


def shuffle(tiles: Tensor, permutations: Tensor) -> Tensor:
    """Reorder tiles: tile t of the result is tile `permutations[b, t]` of image b.

    Args:
        tiles: (B, T, ...), any dtype.
        permutations: (B, T) int64, each row a permutation of 0 to T - 1.

    Returns:
        (B, T, ...) tiles in the new order.

    Raises:
        ValueError: The shapes do not fit.

    Examples:
        >>> shuffle(torch.tensor([[5, 6, 7]]), torch.tensor([[2, 0, 1]])).tolist()
        [[7, 5, 6]]
    """
    if permutations.ndim != 2 or tiles.shape[:2] != permutations.shape:
        raise ValueError(
            f"tiles {tuple(tiles.shape)} and permutations {tuple(permutations.shape)} do not fit: "
            "expected (B, T, ...) and (B, T)"
        )
    return tiles[torch.arange(len(tiles), device=tiles.device)[:, None], permutations]


def unshuffle(tiles: Tensor, permutations: Tensor) -> Tensor:
    """Undo `shuffle`: return tiles in the order they had before.

    Args:
        tiles: (B, T, ...) shuffled tiles, any dtype.
        permutations: (B, T) int64, the permutations that `shuffle` was given.

    Returns:
        (B, T, ...) tiles in their original order.

    Raises:
        ValueError: The shapes do not fit.

    Examples:
        >>> unshuffle(torch.tensor([[7, 5, 6]]), torch.tensor([[2, 0, 1]])).tolist()
        [[5, 6, 7]]
    """
    return shuffle(tiles, permutations.argsort(-1))
