"""Where the spatial gradient of one-hot labels is not 0, in integer arithmetic.

The probability gradient loss sums over entries: pairs of a pixel and a class whose label map
changes within the window of the pixel. See `lightning_seg.losses.probability_gradient`.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
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
    """(2, size^2) values times `scale`: integers of at most 780."""
    scale: int
    """The smallest common denominator of the values, or the sum of positive integers."""

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
        integer = torch.tensor(across, dtype=like.dtype, device=like.device).view(size, size)
        integer = torch.stack([integer, integer.T]).flatten(1)  # (size, size) -> (2, size^2)
        scale = sum(max(each, 0) for each in across) if normalize else whole
        return EdgeKernel(size, integer / scale, integer, scale)


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


def without_void(labels: Tensor, size: int) -> Tensor:
    """Return (B, H, W) bool, the pixels without void (-1) in their window of (B, H, W) labels."""
    return _extremes(_padded(labels.to(torch.int32), size // 2), size)[0] > VOID


class Entries(NamedTuple):
    """The entries of the sum: E pairs of one of N pixels and a class, for both directions."""

    pixels: Tensor
    """(N,) positions of the pixels in the flattened (B, H, W), rising."""
    at: Tensor
    """(E,) indices of the pairs' pixels, 0 to N - 1, rising."""
    classes: Tensor
    """(E,) class ids of the pairs."""
    slopes: Tensor
    """(2, E) gradients of the labels."""
    masks: Tensor
    """(2, E), 1 where the gradient of the labels in a direction is not 0."""
    counts: Tensor
    """(E,) number of directions in which the gradient of the labels is not 0."""
    candidates: Tensor
    """(B, H, W) bool, the pixels that may have entries."""

    def boundary(self) -> Tensor:
        """Return (B, H, W) bool, the pixels that have an entry."""
        found = torch.zeros_like(self.candidates)
        found.view(-1)[self.pixels[self.at[self.counts > 0]]] = True
        return found


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
    size, reach = kernel.size, kernel.size // 2
    rows, columns = labels.shape[1:]
    padded = _padded(labels.to(torch.int32), reach)  # (B, H + 2r, W + 2r)
    lowest, highest = _extremes(padded, size)  # (B, H, W) each
    counted = lowest > VOID if candidates is None else candidates
    # (B, H, W) -> (N,)
    pixels = torch.nonzero(((lowest != highest) & counted).flatten())[:, 0]
    low, high = (each.flatten()[pixels] for each in (lowest, highest))  # (N,) each
    # (N,) positions of the first taps of the windows in the flattened padded labels
    line, wide = pixels // columns, columns + 2 * reach
    first = pixels + 2 * reach * line + line // rows * (2 * reach * wide)
    taps = [row * wide + column for row in range(size) for column in range(size)]
    flat = padded.flatten()
    held = torch.stack([flat[tap:].index_select(0, first) for tap in taps])  # (T, N) labels
    if candidates is not None:  # void is no class
        low = torch.where(held > VOID, held, high).amin(0)
    groups = _classes_held(held, low, high)
    # Each pixel has its pairs side by side: (N,) numbers of pairs and positions of the first ones.
    number = torch.ones_like(pixels)
    for which, _ in groups[1:]:
        number[which] += 1
    start = number.cumsum(0) - number
    total = sum(len(found) for _, found in groups)
    at = torch.repeat_interleave(number, output_size=total)  # (E,)
    classes = torch.empty_like(at)
    whole = kernel.integer.new_empty(2, total)  # (2, E) gradients times the denominator
    for which, found in groups:
        places = start[which]
        start[which] += 1
        classes[places] = found.long()
        truth = (held[:, which] == found).to(whole.dtype)  # (T, n)
        whole[:, places] = kernel.integer @ truth  # (2, T) @ (T, n) -> (2, n)
    masks = (whole != 0).to(whole.dtype)
    return Entries(pixels, at, classes, whole / kernel.scale, masks, masks.sum(0), counted)


def _classes_held(held: Tensor, low: Tensor, high: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the classes of each window as groups of pixels and one class of each pixel.

    Args:
        held: (T, N) labels of the taps of N windows, void as -1.
        low: (N,) smallest classes.
        high: (N,) largest classes.

    Returns:
        Pairs of (n,) indices of pixels and (n,) class ids. The first holds all pixels.
    """
    groups = [(torch.arange(len(low), device=low.device), low)]
    which = torch.nonzero(high > low)[:, 0]
    groups.append((which, high[which]))
    # Few windows hold a third class, so that the search goes on with ever fewer windows.
    which = torch.nonzero(((held > low) & (held < high)).any(0))[:, 0]
    last, top, rest = low[which], high[which], held[:, which]
    while len(which):
        last = torch.where(rest > last, rest, top).amin(0)  # (n,) the next class in rising order
        more = last < top
        which, last, top, rest = which[more], last[more], top[more], rest[:, more]
        groups.append((which, last))
    return groups


def _padded(labels: Tensor, reach: int) -> Tensor:
    """Return (B, H + 2r, W + 2r), the (B, H, W) labels with replicated borders."""
    images, rows, columns = labels.shape
    padded = labels.new_empty(images, rows + 2 * reach, columns + 2 * reach)
    padded[:, reach : reach + rows, reach : reach + columns] = labels
    padded[:, :, :reach] = padded[:, :, reach : reach + 1]
    padded[:, :, reach + columns :] = padded[:, :, reach + columns - 1 : reach + columns]
    padded[:, :reach] = padded[:, reach : reach + 1]
    padded[:, reach + rows :] = padded[:, reach + rows - 1 : reach + rows]
    return padded


def _extremes(padded: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return (B, H, W) smallest and largest values in windows, from (B, H + 2r, W + 2r) values."""
    found = []
    for extreme in (torch.minimum, torch.maximum):
        values = padded
        for dim in (1, 2):
            length = padded.shape[dim] - size + 1
            slices = [values.narrow(dim, offset, length) for offset in range(size)]
            values = extreme(slices[0], slices[1])
            for each in slices[2:]:
                extreme(values, each, out=values)
        found.append(values)
    return found[0], found[1]
