"""Colour spaces: hue and chroma, CIE Lab, and colours of a given grey value."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_seg.numerics import at_least_float32

# linear sRGB to XYZ under D65; a row's sum is that coordinate of white
_XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
_KNEE = 6 / 29  # where Lab's cube root goes over into a line


def hue_chroma(rgb: Tensor) -> tuple[Tensor, Tensor]:
    """Return HSV's hue in [0, 1) and the chroma max - min in [0, 1], float32 at least.

    Args:
        rgb: (..., 3) in [0, 1].

    Returns:
        Two of (...); the hue of greys is 0.

    Example:
        >>> hue, chroma = hue_chroma(torch.tensor([[0.0, 0.0, 0.5], [0.3, 0.3, 0.3]]))
        >>> [round(each, 4) for each in hue.tolist()], chroma.tolist()
        ([0.6667, 0.0], [0.5, 0.0])
    """
    red, green, blue = at_least_float32(rgb).unbind(-1)
    high = red.maximum(green).maximum(blue)
    chroma = high - red.minimum(green).minimum(blue)
    sixth = (red - green + 4 * chroma).where(high > green, blue - red + 2 * chroma)
    sixth = (green - blue).where(high == red, sixth)
    hue = (sixth / (6 * chroma).where(chroma > 0, 1)).remainder(1)
    # the remainder of a tiny negative number is rounded to 1
    return hue.where(hue < 1, 0), chroma


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """Return CIE L in [0, 100], a and b of sRGB under its white D65, float32 at least.

    Args:
        rgb: (..., 3) in [0, 1].

    Example:
        >>> [round(each) for each in rgb_to_lab(torch.tensor([0.0, 0.0, 1.0])).tolist()]
        [32, 79, -108]
    """
    rgb = at_least_float32(rgb)
    linear = (((rgb + 0.055) / 1.055) ** 2.4).where(rgb > 0.04045, rgb / 12.92)
    matrix = _matrix(rgb)
    share = apply_matrix(matrix / matrix.sum(1, keepdim=True), linear)
    line = share / (3 * _KNEE**2) + 4 / 29
    x, y, z = share.pow(1 / 3).where(share > _KNEE**3, line).unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Return sRGB of (..., 3) Lab colours, channels clamped to [0, 1]; undoes `rgb_to_lab`.

    Example:
        >>> [round(each, 3) for each in lab_to_rgb(torch.tensor([50.0, 0.0, 0.0])).tolist()]
        [0.466, 0.466, 0.466]
    """
    light, a, b = at_least_float32(lab).unbind(-1)
    y = (light + 16) / 116
    root = torch.stack([y + a / 500, y, y - b / 200], -1)
    share = root.pow(3).where(root > _KNEE, (root - 4 / 29) * (3 * _KNEE**2))
    matrix = _matrix(share)
    linear = apply_matrix((matrix / matrix.sum(1, keepdim=True)).inverse(), share).clamp(0, 1)
    return (1.055 * linear.pow(1 / 2.4) - 0.055).where(linear > 0.0031308, 12.92 * linear)


def _matrix(like: Tensor) -> Tensor:
    return torch.tensor(_XYZ, dtype=like.dtype, device=like.device)


def apply_matrix(matrix: Tensor, vectors: Tensor) -> Tensor:
    """Return (..., n) products of an (n, m) matrix and (..., m) vectors, in the vectors' dtype.

    `matrix @ vector` would run in half precision under autocast.
    """
    return (vectors[..., None, :] * matrix).sum(-1)


def with_gray(gray: Tensor, rgb: Tensor) -> Tensor:
    """Return (N, 3) colours whose mean is (N,) `gray`, with as much of the tint as the cube has."""
    tint = rgb - rgb.mean(1, keepdim=True)
    room = (1 - gray[:, None]).where(tint > 0, gray[:, None])
    most = (room / tint.abs().clamp(min=torch.finfo(tint.dtype).tiny)).amin(1, keepdim=True)
    return (gray[:, None] + most.clamp(max=1) * tint).clamp(0, 1)
