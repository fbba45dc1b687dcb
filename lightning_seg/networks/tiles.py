"""Tiles of an image, and the orders that a jigsaw puzzle puts them in."""

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
    """Return permutations that differ in as many places as possible, chosen one by one.

    Each has the largest minimum Hamming distance to those before it; of several such the largest
    sum of distances; of these one is drawn. The first `tiles` of them differ in all places: a
    Latin rectangle can always be given another row. 1000 of 9 tiles take about a second, once in
    a process.

    Args:
        count: How many, at least 2 and at most tiles!.
        tiles: 4 or 9: squares of 2 or 3.
        seed: Of the draws, at least 0; the global generators are not used.

    Returns:
        (count, tiles) int64 of 0 to tiles - 1, rows distinct, in the order they were chosen in:
        fewer are the first of more.

    Raises:
        ValueError: Numbers out of range.

    Example:
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
    every = np.array(list(itertools.permutations(range(tiles))), np.uint8)
    places = np.ascontiguousarray(every.T)
    generator = np.random.default_rng(seed)
    # of each candidate to those chosen; their sum would not fit into 8 bits
    nearest = np.full(len(every), tiles, np.uint8)
    total = np.zeros(len(every), np.int32)
    chosen = [int(generator.integers(len(every)))]
    while len(chosen) < count:
        distance = np.zeros(len(every), np.uint8)
        for place, taken in zip(places, every[chosen[-1]], strict=True):
            distance += place != taken
        np.minimum(nearest, distance, out=nearest)
        total += distance
        best = np.flatnonzero(nearest == nearest.max())
        best = best[total[best] == total[best].max()]
        chosen.append(int(best[generator.integers(len(best))]))
    return every[chosen]


def cut_tiles(
    images: Tensor, offsets: Tensor, grid: int = 3, jitter: float = 0.25, size: int = 64
) -> Tensor:
    """Cut the middle of images into cells, and from each a tile that is somewhat smaller.

    The largest square in the middle, of side S, has grid x grid cells of side S // grid; what is
    left over is on its right and at its bottom. Tiles have the side cell - floor(cell jitter). 255
    pixels give cells of 85 and, at a jitter of 0.25, tiles of 64.

    Args:
        images: (B, 3, H, W), floating.
        offsets: (B, grid^2, 2) in [0, 1): how far down and across in its cell each tile lies,
            cells row by row. 0 is the upper left corner, towards 1 the lower right one.
        grid: Cells per side.
        jitter: Share of a cell's side that a tile leaves free, in [0, 1).
        size: Side in pixels that tiles of another are resized to, bilinearly and antialiased.

    Returns:
        (B, grid^2, 3, size, size), tiles row by row.

    Raises:
        ValueError: Numbers out of range, shapes that do not fit, or images smaller than the grid.

    Example:
        >>> image = torch.arange(36.0).view(1, 1, 6, 6).expand(1, 3, 6, 6)
        >>> tiles = cut_tiles(image, torch.zeros(1, 9, 2), jitter=0.5, size=1)
        >>> tiles[0, :, 0, 0, 0].tolist()
        [0.0, 2.0, 4.0, 12.0, 14.0, 16.0, 24.0, 26.0, 28.0]
    """
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
    height, width = images.shape[-2:]
    square = min(height, width)
    cell = square // grid
    if cell < 1:
        raise ValueError(f"images of {height}x{width} pixels are too small for {grid}x{grid} cells")
    tile = cell - math.floor(cell * jitter)
    # an offset just below 1 may be rounded up to the free side plus 1
    shift = (offsets * (cell - tile + 1)).long().clamp(max=cell - tile)
    step = torch.arange(grid, device=images.device) * cell
    corner = shift + torch.cartesian_prod(step, step).view(-1, 2)
    side = torch.arange(tile, device=images.device)
    rows = corner[..., :1] + ((height - square) // 2 + side)
    columns = corner[..., 1:] + ((width - square) // 2 + side)
    which = torch.arange(len(images), device=images.device)[:, None, None, None]
    tiles = images.permute(0, 2, 3, 1)[which, rows[..., :, None], columns[..., None, :]]
    tiles = tiles.movedim(-1, 2).contiguous()
    if tile == size:
        return tiles
    resized = F.interpolate(
        tiles.flatten(0, 1), (size, size), mode="bilinear", align_corners=False, antialias=True
    )
    return resized.view(*tiles.shape[:3], size, size)


def shuffle(tiles: Tensor, permutations: Tensor) -> Tensor:
    """Return tiles in another order: tile t of a result is tile `permutations[b, t]` before.

    Args:
        tiles: (B, T, ...).
        permutations: (B, T) int64, each row one of 0 to T - 1.

    Raises:
        ValueError: Shapes that do not fit.

    Example:
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
    """Return tiles in the order they had before `shuffle` with the same permutations.

    Arguments and errors are those of `shuffle`.

    Example:
        >>> unshuffle(torch.tensor([[7, 5, 6]]), torch.tensor([[2, 0, 1]])).tolist()
        [[5, 6, 7]]
    """
    return shuffle(tiles, permutations.argsort(-1))
