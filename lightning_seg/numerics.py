"""Numerical conventions that losses and networks share: precision, shapes, means over valid pixels.

This module imports torch only, so that losses and networks need not import each other.
"""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Return values of less than 32 bits as float32, and all others unchanged.

    Logarithms, exponentials and sums over pixels lose too many digits in half precision.

    Args:
        values: Any shape and dtype.

    Returns:
        The same shape; float32, or the dtype of `values` where that is wider.

    Examples:
        >>> at_least_float32(torch.zeros(2, dtype=torch.bfloat16)).dtype
        torch.float32
        >>> at_least_float32(torch.zeros(2, dtype=torch.float64)).dtype
        torch.float64
    """
    if torch.promote_types(values.dtype, torch.float32) != values.dtype:
        return values.float()
    return values


def require_fit(logits: Tensor, target: Tensor) -> None:
    """Raise an error unless a target has one class id per pixel of the logits.

    Args:
        logits: Expected to be (B, C, H, W).
        target: Expected to be (B, H, W).

    Raises:
        ValueError: The shapes do not fit; the message names both.
    """
    if logits.ndim != 4 or target.shape != logits.shape[:1] + logits.shape[2:]:
        raise ValueError(
            f"logits {tuple(logits.shape)} and target {tuple(target.shape)} do not fit: expected "
            "(B, C, H, W) and (B, H, W)"
        )


def masked_mean(values: Tensor, valid: Tensor | None) -> Tensor:
    """Return the mean of the valid values.

    The sum is over `values * valid`, so values that are not valid must be finite as well.

    Args:
        values: Any shape, finite.
        valid: Bool, the shape of `values`, False for values to leave out; None counts all.

    Returns:
        A scalar; 0 with a zero gradient where no value is valid.

    Raises:
        ValueError: `valid` has another shape than `values`.

    Examples:
        >>> masked_mean(torch.tensor([1.0, 3.0, 99.0]), torch.tensor([True, True, False])).item()
        2.0
    """
    if valid is None:
        return values.mean()
    require_mask(values, valid)
    return (values * valid).sum() / valid.sum().clamp(min=1)


def require_mask(values: Tensor, valid: Tensor) -> None:
    """Raise an error unless a mask has the shape of the values, so that nothing is broadcast.

    Args:
        values: Any shape.
        valid: Expected to have the same shape.

    Raises:
        ValueError: The shapes differ; the message names both.
    """
    if valid.shape != values.shape:
        raise ValueError(
            f"a mask of {tuple(valid.shape)} does not fit values of {tuple(values.shape)}"
        )
