"""Where the windows of an image lie, and what share each has in the pixels that it covers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Blend = Literal["gaussian", "flat"]
_NARROW = 8
"""Standard deviations of a Gaussian window's weight in its side, as nnU-Net has them."""


def starts(length: int, side: int, overlap: float) -> list[int]:
    """Return where windows begin along one axis, at even distances, from 0 to `length - side`.

    Args:
        length: Pixels of the image along the axis.
        side: Pixels of a window along the axis, at most `length`.
        overlap: Smallest share of a window that the next window covers, in [0, 1).

    Examples:
        >>> starts(10, 4, 0.5)
        [0, 2, 4, 6]
        >>> starts(10, 4, 0)
        [0, 3, 6]
    """
    step = max(1, int(side * (1 - overlap)))
    gaps = -(-(length - side) // step)
    return [(number * (length - side) + gaps // 2) // max(1, gaps) for number in range(gaps + 1)]


def shares(begins: list[int], side: int, blend: Blend) -> list[Tensor]:
    """Return each window's shares in the pixels along one axis; those of a pixel sum to 1.

    Args:
        begins: Where the windows begin, as `starts` returns them.
        side: Pixels of a window.
        blend: `gaussian` weighs a pixel by its distance from the middle of a window, `flat` takes
            the mean over the windows.

    Returns:
        For every window (side,) float64 shares in (0, 1].
    """
    profile = torch.ones(side, dtype=torch.float64)
    if blend == "gaussian":
        distance = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
        profile = (-0.5 * (distance * _NARROW / side) ** 2).exp()
    total = torch.zeros(begins[-1] + side, dtype=torch.float64)
    for begin in begins:
        total[begin : begin + side] += profile
    return [profile / total[begin : begin + side] for begin in begins]


class Grid:
    """The windows of one image, in reading order.

    Args:
        size: Height and width of the image in pixels.
        window: Height and width of a window in pixels; a longer side is cut to that of the image.
        overlap: Smallest share of a window that its neighbour covers, in [0, 1).
        blend: How windows are mixed where they overlap; see `shares`.

    Attributes:
        window: Height and width of every window.
        tops: First rows of the windows.
        lefts: First columns of the windows.
    """

    def __init__(
        self, size: tuple[int, int], window: tuple[int, int], overlap: float, blend: Blend
    ) -> None:
        self.size = size
        self.window = min(size[0], window[0]), min(size[1], window[1])
        self.tops = starts(size[0], self.window[0], overlap)
        self.lefts = starts(size[1], self.window[1], overlap)
        self._down = shares(self.tops, self.window[0], blend)
        self._across = shares(self.lefts, self.window[1], blend)

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    def share(self, row: int, column: int, like: Tensor) -> Tensor:
        """Return the (h, w) shares of a window in its pixels, in the dtype of a tensor."""
        down, across = (each.to(like) for each in (self._down[row], self._across[column]))
        return down[:, None] * across

    def advance(self, row: int, column: int) -> tuple[int, int]:
        """Return how many rows and columns of a window no later window covers."""
        height, width = self.window
        tops, lefts = [*self.tops, self.tops[-1] + height], [*self.lefts, self.lefts[-1] + width]
        return tops[row + 1] - tops[row], lefts[column + 1] - lefts[column]


class Block(NamedTuple):
    """A part of an image that no later window changes."""

    top: int
    """First row of the part."""
    left: int
    """First column of the part."""
    values: Tensor
    """(C, h, w) values of its pixels."""


def windows_of(
    grid: Grid, rows: Callable[[int, int], Tensor], batch_size: int
) -> Iterator[tuple[list[tuple[int, int]], Tensor]]:
    """Yield the windows of an image in batches.

    Args:
        grid: The windows.
        rows: Returns the (channels, bottom - top, W) pixels of the rows from `top` to `bottom`; it
            is called with growing numbers.
        batch_size: Largest number of windows in a batch, at least 1.

    Yields:
        The row and column of each window in the grid, and their (B, channels, h, w) pixels.
    """
    places: list[tuple[int, int]] = []
    seen: list[Tensor] = []
    height, width = grid.window
    for row, top in enumerate(grid.tops):
        strip = rows(top, top + height)  # (channels, h, W)
        for column, left in enumerate(grid.lefts):
            places.append((row, column))
            seen.append(strip[..., left : left + width])
            if len(seen) == batch_size:
                yield places, torch.stack(seen)
                places, seen = [], []
    if seen:
        yield places, torch.stack(seen)


def blended(grid: Grid, windows: Iterable[tuple[tuple[int, int], Tensor]]) -> Iterator[Block]:
    """Mix the values of windows where they overlap.

    Only what later windows change is kept: the lower part of a row of windows, and the right part
    of one window.

    Args:
        grid: The windows.
        windows: For every window of the grid, in reading order, its row and column, and its
            (C, h, w) values.

    Yields:
        One block for every window, in reading order.
    """
    height, _ = grid.window
    below = right = None
    for (row, column), values in windows:
        down, across = grid.advance(row, column)
        mixed = values * grid.share(row, column, values)  # (C, h, w)
        if column > 0 and right is not None:
            mixed[..., : right.shape[-1]] += right
        right = mixed[..., across:]
        done = mixed[..., :across]  # no later window of this row covers it
        top, left = grid.tops[row], grid.lefts[column]
        columns = slice(left, left + across)
        if below is None:
            kept = max(
                (height - grid.advance(each, 0)[0] for each in range(len(grid.tops) - 1)), default=0
            )
            below = values.new_zeros(values.shape[0], kept, grid.size[1])
        if row > 0:
            known = grid.tops[row - 1] + height - top
            done[:, :known] += below[:, :known, columns]
        if row + 1 < len(grid.tops):
            below[:, : height - down, columns] = done[:, down:]
        yield Block(top, left, done[:, :down])
