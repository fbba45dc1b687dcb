"""Images of any size in networks that take some sizes only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def fill_up(image: Tensor, multiple: tuple[int, int]) -> Tensor:
    """Return images whose sides are multiples of some numbers, filled up with their border pixels.

    Args:
        image: (B, C, H, W).
        multiple: Numbers for height and width, each at least 1.

    Returns:
        (B, C, H', W') for the next multiples; `image` itself where nothing is missing.
    """
    if torch.compiler.is_exporting():  # `Segmenter` has done so, in terms of the size
        return image
    height, width = image.shape[-2:]
    border = (0, -width % multiple[1], 0, -height % multiple[0])
    return F.pad(image, border, mode="replicate") if any(border) else image


def takes(model: Any, shape: Sequence[int]) -> bool:
    """Return whether a model takes images of a shape; its state does not change."""
    was_training = model.training
    weight = next(model.parameters())
    image = torch.zeros(tuple(shape), device=weight.device, dtype=weight.dtype)
    try:
        with torch.no_grad():
            model.eval()(image)
    except (AssertionError, RuntimeError, ValueError, IndexError):
        return False
    finally:
        model.train(was_training)
    return True
