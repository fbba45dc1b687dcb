"""Colour spaces: sRGB to hue and chroma, to CIE Lab and back, and to a given grey value.

Hue is that of HSV. Lab follows CIE 1976 for sRGB (IEC 61966-2-1) with the white point D65. Colours
are in the last dimension of a tensor, so that any number of dimensions may precede it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_seg.numerics import at_least_float32

# Linear sRGB -> XYZ under D65. The sum of a row is that coordinate of white.
_XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
_KNEE = 6 / 29  # of Lab: smaller cube roots are replaced by a line


def hue_chroma(rgb: Tensor) -> tuple[Tensor, Tensor]:
    """Return the hue of HSV and the chroma max(R, G, B) - min(R, G, B).

    Args:
        rgb: (..., 3) sRGB in [0, 1], any floating dtype; computed in float32 or wider.

    Returns:
        Hue in [0, 1) and chroma in [0, 1], both (...). The hue of grey is 0.

    Examples:
        Dark blue and a grey.

        >>> hue, chroma = hue_chroma(torch.tensor([[0.0, 0.0, 0.5], [0.3, 0.3, 0.3]]))
        >>> [round(each, 4) for each in hue.tolist()], chroma.tolist()
        ([0.6667, 0.0], [0.5, 0.0])
    """
    red, green, blue = at_least_float32(rgb).unbind(-1)  # (..., 3) -> three of (...)
    high = red.maximum(green).maximum(blue)
    chroma = high - red.minimum(green).minimum(blue)
    # Six times hue times chroma. Which formula applies depends on the largest channel.
    sixth = (red - green + 4 * chroma).where(high > green, blue - red + 2 * chroma)
    sixth = (green - blue).where(high == red, sixth)
    hue = (sixth / (6 * chroma).where(chroma > 0, 1)).remainder(1)
    # The remainder of a tiny negative number is rounded to 1.
    return hue.where(hue < 1, 0), chroma


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """Convert sRGB to CIE Lab under the white point D65.

    Args:
        rgb: (..., 3) sRGB in [0, 1], any floating dtype; computed in float32 or wider.

    Returns:
        (..., 3): L in [0, 100], a and b, which lie in about [-108, 99].

    Examples:
        >>> [round(each) for each in rgb_to_lab(torch.tensor([0.0, 0.0, 1.0])).tolist()]
        [32, 79, -108]
    """
    rgb = at_least_float32(rgb)
    linear = (((rgb + 0.055) / 1.055) ** 2.4).where(rgb > 0.04045, rgb / 12.92)
    matrix = _xyz_matrix(rgb)
    # (..., 3) linear RGB -> (..., 3) XYZ as shares of white
    share = apply_matrix(matrix / matrix.sum(1, keepdim=True), linear)
    line = share / (3 * _KNEE**2) + 4 / 29
    x, y, z = share.pow(1 / 3).where(share > _KNEE**3, line).unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Convert CIE Lab to sRGB, the inverse of `rgb_to_lab`.

    Args:
        lab: (..., 3) L, a and b, any floating dtype; computed in float32 or wider.

    Returns:
        (..., 3) sRGB. Channels of colours outside sRGB are clamped to [0, 1].

    Examples:
        >>> [round(each, 3) for each in lab_to_rgb(torch.tensor([50.0, 0.0, 0.0])).tolist()]
        [0.466, 0.466, 0.466]
    """
    light, a, b = at_least_float32(lab).unbind(-1)
    y = (light + 16) / 116
    root = torch.stack([y + a / 500, y, y - b / 200], -1)
    share = root.pow(3).where(root > _KNEE, (root - 4 / 29) * (3 * _KNEE**2))
    matrix = _xyz_matrix(share)
    # (..., 3) XYZ as shares of white -> (..., 3) linear RGB
    inverse = (matrix / matrix.sum(1, keepdim=True)).inverse()
    linear = apply_matrix(inverse, share).clamp(0, 1)
    return (1.055 * linear.pow(1 / 2.4) - 0.055).where(linear > 0.0031308, 12.92 * linear)


def with_gray(gray: Tensor, rgb: Tensor) -> Tensor:
    """Return colours of the given grey values with the hues of others.

    The grey value of a colour is (R + G + B) / 3. A tint that leaves the RGB cube at its new grey
    value is scaled down until it fits: the colour loses chroma and keeps its hue.

    Args:
        gray: (N,) grey values in [0, 1].
        rgb: (N, 3) colours that give the tints, the dtype of `gray`.

    Returns:
        (N, 3) sRGB in [0, 1] whose means are `gray`.

    Examples:
        A pure red at grey value 1/3 fits; at 2/3 only half of its tint does.

        >>> red = torch.tensor([[1.0, 0.0, 0.0]])
        >>> [round(each, 3) for each in with_gray(torch.tensor([2 / 3]), red)[0].tolist()]
        [1.0, 0.5, 0.5]
    """
    tint = rgb - rgb.mean(1, keepdim=True)  # (N, 3), sum 0
    # (N, 3): how far each channel may move from the grey value until it reaches 0 or 1
    room = (1 - gray[:, None]).where(tint > 0, gray[:, None])
    # (N, 1): the largest share of the tint that all three channels have room for
    most = (room / tint.abs().clamp(min=torch.finfo(tint.dtype).tiny)).amin(1, keepdim=True)
    return (gray[:, None] + most.clamp(max=1) * tint).clamp(0, 1)


def apply_matrix(matrix: Tensor, vectors: Tensor) -> Tensor:
    """Multiply a matrix and vectors in the dtype of the vectors.

    The operator `@` would run in half precision under autocast.

    Args:
        matrix: (n, m).
        vectors: (..., m).

    Returns:
        (..., n) products.

    Examples:
        >>> apply_matrix(torch.tensor([[1.0, 2.0]]), torch.tensor([3.0, 4.0])).tolist()
        [11.0]
    """
    return (vectors[..., None, :] * matrix).sum(-1)


def _xyz_matrix(like: Tensor) -> Tensor:
    """Return the (3, 3) matrix from linear sRGB to XYZ, with the dtype and device of a tensor."""
    return torch.tensor(_XYZ, dtype=like.dtype, device=like.device)
