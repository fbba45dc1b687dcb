"""Test-time augmentation: the mean over mirrored and scaled copies of an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_seg.numerics import at_least_float32


def augmented_probabilities(
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
) -> Tensor:
    """Return the mean of a network's class probabilities over copies of images.

    Logits of a copy are mirrored and resized (bilinearly) to the size of the image before the
    softmax.

    Args:
        network: Returns the (B, C, h, w) logits of (B, channels, h, w) images.
        image: (B, channels, H, W), uint8 in 0..255 or floating point in [0, 1]. A scaled copy is in
            [0, 1].
        flip: Whether each copy is also mirrored from left to right.
        scales: Factors of the copies' sides, above 0.

    Returns:
        (B, C, H, W) probabilities, of at least 32 bits.
    """
    size = image.shape[-2:]
    total: Tensor | None = None
    for scale in scales:
        copy = image if scale == 1 else _scaled(image, scale)
        for mirrored in (False, True) if flip else (False,):
            logits = network(copy.flip(-1) if mirrored else copy)
            logits = at_least_float32(logits.flip(-1) if mirrored else logits)
            if logits.shape[-2:] != size:
                logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
            found = logits.softmax(1)  # (B, C, H, W)
            total = found if total is None else total.add_(found)
    assert total is not None
    return total / (len(scales) * (1 + flip))


def log_probabilities(probabilities: Tensor) -> Tensor:
    """Return finite logits whose softmax are probabilities.

    Args:
        probabilities: Any shape, in [0, 1].

    Examples:
        >>> [round(each, 4) for each in log_probabilities(torch.tensor([0.0, 1.0])).tolist()]
        [-87.3365, 0.0]
    """
    return probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()


def _scaled(image: Tensor, scale: float) -> Tensor:
    """Return images of another size, in [0, 1]."""
    height, width = (max(1, round(side * scale)) for side in image.shape[-2:])
    image = image if image.is_floating_point() else image.float() / 255
    return F.interpolate(
        image, (height, width), mode="bilinear", align_corners=False, antialias=scale < 1
    )
