"""Where the boundaries of class maps are, and the pixels of every class near them.

A distance is that of a square window (Chebyshev): a pixel y lies within d pixels of x where y is in
the (2d + 1) x (2d + 1) window around x. This is the distance of d erosions or dilations with a 3x3
element. Void pixels make no boundary: a pixel lies at a boundary only where a pixel of another
class is in its window, and void is no class.

Costs do not depend on the number of classes. The window of a class map holds two classes where its
maximum and minimum differ, and both take 2 log2(2d + 1) passes over maps of one byte a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_seg.errors import SetupError, require_range


def near_other_class(labels: Tensor, valid: Tensor, distance: int) -> Tensor:
    """Return where a pixel of another class lies within a distance.

    Args:
        labels: (B, H, W) integer class ids of at least 0; those of void pixels do not matter.
        valid: (B, H, W) bool, False where a pixel is void.
        distance: The distance in pixels, at least 1.

    Returns:
        (B, H, W) bool, False where void.

    Examples:
        A row of two classes with a void pixel between others of one class:

        >>> labels = torch.tensor([[[0, 0, 0, 1, 1, 9, 1]]])
        >>> near_other_class(labels, labels != 9, 1).int().tolist()
        [[[0, 0, 1, 1, 0, 0, 0]]]
    """
    if labels.dtype != torch.uint8:
        labels = labels.to(torch.int16)
    largest = torch.iinfo(labels.dtype).max
    # Void changes neither the maximum as 0 nor the minimum as the largest value of the type.
    # Products of one type are ten times faster than `masked_fill` on CPUs.
    one = valid.to(labels.dtype)
    labels = labels * one
    low = over_windows(labels + (1 - one) * largest, distance, torch.minimum, largest)
    high = over_windows(labels, distance, torch.maximum, 0)
    return (low != high) & valid


def with_border(near: Tensor, valid: Tensor, distance: int) -> Tensor:
    """Return where the outside of the image, or something else, lies within a distance.

    Args:
        near: (B, H, W) bool, where something else does.
        valid: (B, H, W) bool, False where a pixel is void.
        distance: The distance in pixels, at least 1.

    Returns:
        (B, H, W) bool, False where void.
    """
    near = near.clone()
    for side in (
        (..., slice(distance), slice(None)),
        (..., slice(-distance, None), slice(None)),
        (..., slice(distance)),
        (..., slice(-distance, None)),
    ):
        near[side] = valid[side]
    return near


def over_windows(
    values: Tensor, distance: int, combine: Callable[[Tensor, Tensor], Tensor], fill: int
) -> Tensor:
    """Combine the values in the square window around every pixel, (B, H, W) -> (B, H, W).

    Args:
        values: (B, H, W).
        distance: Half the side of the window without its centre.
        combine: An operation that may take a value twice, such as the maximum.
        fill: The value outside of the image.
    """
    for dim, pad in ((2, (distance, distance)), (1, (0, 0, distance, distance))):
        values = F.pad(values, pad, value=fill)
        side, covered = 2 * distance + 1, 1
        while covered < side:
            # two windows of `covered` values, shifted so that they cover up to `side` ones
            shift = min(covered, side - covered)
            length = values.shape[dim] - shift
            values = combine(values.narrow(dim, 0, length), values.narrow(dim, shift, length))
            covered += shift
    return values


def boundary_distance(dilation: int | float, height: int, width: int) -> int:
    """Return a distance in pixels, at least 1.

    Args:
        dilation: A number of pixels where an integer, else a share of the image's diagonal.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
    """
    if isinstance(dilation, int):
        return dilation
    return max(1, round(dilation * math.hypot(height, width)))


def require_dilation(**settings: int | float) -> None:
    """Raise an error for every distance that is neither whole pixels nor a share of the diagonal.

    Args:
        settings: Distances by the names of their options.

    Raises:
        SetupError: An integer is below 1, or a float is outside (0, 1).
    """
    for name, value in settings.items():
        if isinstance(value, int) and not isinstance(value, bool):
            require_range(1, math.inf, error=SetupError, **{name: value})
        elif isinstance(value, bool) or not 0 < value < 1:
            raise SetupError(
                f"{name} must be an integer of at least 1 (pixels) or a float between 0 and 1 "
                f"(share of the image's diagonal), not {value}",
                option=name,
            )
