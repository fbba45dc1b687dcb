"""Where the spatial gradient of one-hot labels is not 0, in integer arithmetic.

The probability gradient loss sums over entries: pairs of a pixel and a class whose label map
changes within the window of the pixel. See `lightning_seg.losses.probability_gradient`.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

VoidRule = Literal["strict", "reference", "nearest"]
VOID = -1
"""The class id of void pixels in labels that `prepare_labels` returns."""


class EdgeKernel(NamedTuple):
    """The kernel K of both directions; the taps of its window are flattened row by row."""

    size: int
    """Side of the window in pixels."""
    value: Tensor
    """(2, size^2) values of the horizontal and the vertical direction."""
    integer: Tensor
    """(2, size^2) values times their smallest common denominator: integers of at most 780."""

    @staticmethod
    def of(size: int, normalize: bool, like: Tensor) -> EdgeKernel:
        """Return the kernel of a size, with the dtype and device of `like`."""
        reach = range(-(size // 2), size // 2 + 1)
        # K[dy, dx] = dx / squares[dy][dx]. `whole` is the least common multiple of the
        # denominators of all reduced fractions.
        squares = [[dx * dx + dy * dy for dx in reach] for dy in reach]
        whole = math.lcm(
            *(
                square // math.gcd(square, dx)
                for row in squares
                for square, dx in zip(row, reach, strict=True)
                if square
            )
        )
        across = [
            dx * whole // square if square else 0
            for row in squares
            for square, dx in zip(row, reach, strict=True)
        ]
        integer = torch.tensor(across, device=like.device).view(size, size)
        integer = torch.stack([integer, integer.T]).flatten(1)  # (size, size) -> (2, size^2)
        scale = integer[0].clamp(min=0).sum() if normalize else whole
        integer = integer.to(like.dtype)
        return EdgeKernel(size, integer / scale, integer)


def prepare_labels(
    target: Tensor, void: VoidRule, ignore_index: int, reach: int
) -> tuple[Tensor, Tensor | None]:
    """Return the (B, H, W) labels with -1 for void, and the pixels that may have entries.

    The pixels are a (B, H, W) bool tensor, or None for all pixels without void in their window.
    """
    valid = target != ignore_index
    labels = torch.where(valid, target, VOID)
    if void == "strict":
        return labels, None
    return (_fill(labels, reach) if void == "nearest" else labels), valid


def _fill(labels: Tensor, reach: int) -> Tensor:
    """Give void pixels the label of the nearest labelled pixel.

    Only void pixels in the window of a labelled pixel are filled. Among labels at one distance the
    smallest is taken, so that the result does not depend on a direction.

    Args:
        labels: (B, H, W), void as -1.
        reach: Half of the side of the window, rounded down.

    Returns:
        (B, H, W) labels.
    """
    rows, columns = labels.shape[1:]
    image, row, column = torch.nonzero(labels == VOID).unbind(1)  # (V,) each
    # Offsets (dy, dx) by squared distance, up to the corner of a window.
    by_distance: dict[int, list[tuple[int, int]]] = {}
    for dy in range(-2 * reach, 2 * reach + 1):
        for dx in range(-2 * reach, 2 * reach + 1):
            if 0 < dy * dy + dx * dx <= 2 * reach * reach:
                by_distance.setdefault(dy * dy + dx * dx, []).append((dy, dx))
    filling = torch.full_like(row, VOID)  # (V,)
    none = torch.iinfo(labels.dtype).max
    for distance in sorted(by_distance):
        nearest = torch.full_like(row, none)  # (V,) smallest label at this distance
        for dy, dx in by_distance[distance]:
            y, x = row + dy, column + dx  # (V,) each
            inside = (y >= 0) & (y < rows) & (x >= 0) & (x < columns)
            label = labels[image, y.clamp(0, rows - 1), x.clamp(0, columns - 1)]
            nearest = torch.where(inside & (label >= 0) & (label < nearest), label, nearest)
        filling = torch.where((filling == VOID) & (nearest < none), nearest, filling)
    # (V,) -> (B, H, W)
    filled = labels.clone()
    filled[image, row, column] = filling
    return filled


def window_max(values: Tensor, size: int) -> Tensor:
    """Return (B, H, W), the largest of (B, H, W) values in the window around each pixel."""
    along = F.max_pool2d(values[:, None], (1, size), 1, (0, size // 2))
    return F.max_pool2d(along, (size, 1), 1, (size // 2, 0))[:, 0]


class Entries(NamedTuple):
    """The entries of the sum: E pairs of one of N pixels and a class, for both directions."""

    pixels: Tensor
    """(N,) positions of the pixels in the flattened (B, H, W)."""
    windows: Tensor
    """(T, N) positions of the T taps of each pixel's window."""
    at: Tensor
    """(E,) indices of the pairs' pixels, 0 to N - 1."""
    classes: Tensor
    """(E,) class ids of the pairs."""
    truth: Tensor
    """(T, E), 1 where a tap has the class of the pair and 0 elsewhere."""
    masks: Tensor
    """(2, E), 1 where the gradient of the labels in a direction is not 0."""
    counts: Tensor
    """(E,) number of directions in which the gradient of the labels is not 0."""


def find_entries(labels: Tensor, candidates: Tensor | None, kernel: EdgeKernel) -> Entries:
    """Pair each pixel whose window holds several labels with each class in its window.

    Args:
        labels: (B, H, W), void as -1.
        candidates: (B, H, W) bool, the pixels that may have entries; None stands for the pixels
            without void in their window.
        kernel: Its size is the side of a window.

    Returns:
        The entries of the sum.
    """
    reach = kernel.size // 2
    rows, columns = labels.shape[1:]
    labels = labels.to(torch.int32)
    values = labels.to(torch.float32)
    # (B, H, W) largest and smallest label in the window of each pixel
    highest, lowest = window_max(values, kernel.size), -window_max(-values, kernel.size)
    several = (highest != lowest) & ((lowest > VOID) if candidates is None else candidates)
    pixels = torch.nonzero(several.flatten())[:, 0]  # (B, H, W) -> (N,)
    # (N,) each: the coordinates of the pixels
    image, row = pixels // (rows * columns), pixels // columns % rows
    column = pixels % columns
    step = torch.arange(-reach, reach + 1, device=labels.device)[:, None]
    high = (row + step).clamp(0, rows - 1) * columns + image * (rows * columns)
    wide = (column + step).clamp(0, columns - 1)
    # (size, 1, N) + (size, N) -> (T, N), borders replicated
    windows = (high[:, None] + wide).flatten(0, 1)
    held = labels.flatten()[windows]  # (T, N) labels
    # Find the classes of each window in rising order. Few windows hold more than two, so the
    # loop goes on with ever fewer windows.
    top = highest.flatten()[pixels].to(torch.int32)
    which = torch.arange(len(pixels), device=labels.device)
    last, rest = torch.full_like(top, VOID), held  # (N,) and (T, N)
    none = torch.iinfo(torch.int32).max
    pairs = [(which[:0], last[:0])]
    while len(which):
        last = torch.where(rest > last, rest, none).amin(0)
        pairs.append((which, last))
        more = last < top[which]
        if not bool(more.all()):
            which, last, rest = which[more], last[more], rest[:, more]
    at, classes = (torch.cat(parts) for parts in zip(*pairs, strict=True))  # (E,) each
    truth = (held[:, at] == classes).to(kernel.integer.dtype)  # (T, N) -> (T, E)
    masks = (kernel.integer @ truth != 0).to(kernel.integer.dtype)  # (2, T) @ (T, E) -> (2, E)
    return Entries(pixels, windows, at, classes.long(), truth, masks, masks.sum(0))
