"""Sparse hypercolumns: the feature maps of an encoder, read at single pixels of the image.

G. Larsson, M. Maire, G. Shakhnarovich: Colorization as a Proxy Task for Visual Understanding (CVPR
2017, arXiv 1703.04044).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_seg.numerics import at_least_float32


def read_at(maps: Sequence[Tensor], size: tuple[int, int], locations: Tensor) -> Tensor:
    """Read feature maps at pixels of the image that they were computed from.

    A map of H_i rows is read at row r H_i / H for row r of an image of H rows, bilinearly and not
    beyond its last row; columns follow the same rule. There is no shift by half a pixel, as in the
    Caffe layer of the authors.

    Args:
        maps: Feature maps, each (B, C_i, H_i, W_i), any floating dtype; read in float32 or wider.
        size: Height H and width W of the image in pixels, at least 1.
        locations: (B, K, 2) rows and columns in pixels of the image, integers or floats.

    Returns:
        (B, K, sum of C_i), the channels in the order of the maps.

    Raises:
        ValueError: There is no map, the shapes do not fit, or the size is below 1.

    Examples:
        A map of 2x2 for an image of 4x4: pixel (0, 1) is half way between two columns of the map.

        >>> maps = [torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])]
        >>> read_at(maps, (4, 4), torch.tensor([[[0, 0], [0, 1], [3, 3]]])).flatten().tolist()
        [1.0, 2.0, 7.0]
    """
    _require_fit(maps, size, locations)
    columns = []
    for each in maps:
        # In half precision the locations in a map of more than 256 columns would be inexact.
        each = at_least_float32(each)
        spots = locations.to(each.dtype)  # (B, K, 2)
        grid = []
        for axis in (1, 0):  # grid_sample expects columns before rows
            longest = each.shape[axis - 2]
            place = spots[..., axis] * (longest / size[axis])  # (B, K), in pixels of the map
            # grid_sample expects -1 for the first and 1 for the last pixel, and clamps. A map of a
            # single pixel has the same value everywhere.
            grid.append(2 * place / max(longest - 1, 1) - 1)
        # (B, C_i, H_i, W_i) at a grid of (B, 1, K, 2) -> (B, C_i, 1, K)
        read = F.grid_sample(
            each,
            torch.stack(grid, -1)[:, None],
            "bilinear",
            padding_mode="border",
            align_corners=True,
        )
        columns.append(read[:, :, 0])
    return torch.cat(columns, 1).transpose(1, 2)  # (B, C, K) -> (B, K, C)


def _require_fit(maps: Sequence[Tensor], size: tuple[int, int], locations: Tensor) -> None:
    """Raise a ValueError for arguments of `read_at` that do not fit."""
    if not maps:
        raise ValueError("there is no map to read")
    if min(size) < 1:
        raise ValueError(f"an image of {size[0]}x{size[1]} pixels has no pixel to read at")
    batch = locations.shape[0] if locations.ndim == 3 and locations.shape[2] == 2 else None
    for each in maps:
        if each.ndim != 4 or each.shape[0] != batch:
            raise ValueError(
                f"a map of {tuple(each.shape)} and locations {tuple(locations.shape)} do not fit: "
                "expected (B, C, H, W) and (B, K, 2)"
            )
