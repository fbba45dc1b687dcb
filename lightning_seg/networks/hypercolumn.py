"""Sparse hypercolumns: all of an encoder's maps, read at single pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_seg.numerics import at_least_float32


def read_at(maps: Sequence[Tensor], size: tuple[int, int], locations: Tensor) -> Tensor:
    """Return what maps hold at some pixels of the image they were made of.

    A map of H_i rows is read at row r H_i / H, bilinearly, without a shift by half a pixel and
    at most at its last row; columns likewise. That is the rule of the authors' Caffe layer
    (Larsson et al., arXiv 1703.04044).

    Args:
        maps: (B, C_i, H_i, W_i) each, any floating dtype.
        size: H and W of the image.
        locations: (B, K, 2) rows and columns in pixels of the image, integers or floats.

    Returns:
        (B, K, sum of C_i), float32 at least, maps in their order.

    Raises:
        ValueError: No map, shapes that do not fit, or a size below 1.

    Example:
        A map of half the size: pixel (0, 1) lies in the middle of its first two columns.

        >>> maps = [torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])]
        >>> read_at(maps, (4, 4), torch.tensor([[[0, 0], [0, 1], [3, 3]]])).flatten().tolist()
        [1.0, 2.0, 7.0]
    """
    _require_fit(maps, size, locations)
    found = []
    for each in maps:
        # in half precision the places of a map with more than 256 columns would not be exact
        each = at_least_float32(each)
        spots = locations.to(each.dtype)
        grid = []
        for axis in (1, 0):  # grid_sample wants columns first
            longest = each.shape[axis - 2]
            place = spots[..., axis] * (longest / size[axis])
            # and -1..1 from the first to the last, clamped; all of a single one is one
            grid.append(2 * place / max(longest - 1, 1) - 1)
        read = F.grid_sample(
            each,
            torch.stack(grid, -1)[:, None],
            "bilinear",
            padding_mode="border",
            align_corners=True,
        )
        found.append(read[:, :, 0])
    return torch.cat(found, 1).transpose(1, 2)


def _require_fit(maps: Sequence[Tensor], size: tuple[int, int], locations: Tensor) -> None:
    if not maps:
        raise ValueError("there is no map to read")
    if min(size) < 1:
        raise ValueError(f"an image of {size[0]}x{size[1]} pixels has none to read at")
    batch = locations.shape[0] if locations.ndim == 3 and locations.shape[2] == 2 else None
    for each in maps:
        if each.ndim != 4 or each.shape[0] != batch:
            raise ValueError(
                f"a map of {tuple(each.shape)} and locations {tuple(locations.shape)} do not fit: "
                "expected (B, C, H, W) and (B, K, 2)"
            )
