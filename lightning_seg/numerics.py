"""What losses ask of their input, and how they leave void out."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(logits: Tensor) -> Tensor:
    """Return logits of less than 32 bits as float32, others as they are."""
    if torch.promote_types(logits.dtype, torch.float32) != logits.dtype:
        return logits.float()
    return logits


def require_fit(logits: Tensor, target: Tensor) -> None:
    """Refuse logits that are not (B, C, H, W) or a target that is not (B, H, W).

    Raises:
        ValueError: With both shapes.
    """
    if logits.ndim != 4 or target.shape != logits.shape[:1] + logits.shape[2:]:
        raise ValueError(
            f"logits {tuple(logits.shape)} and target {tuple(target.shape)} do not fit: expected "
            "(B, C, H, W) and (B, H, W)"
        )


def masked_mean(values: Tensor, valid: Tensor | None) -> Tensor:
    """Return the mean of the values that are valid, 0 where none is.

    Args:
        values: Any shape; finite.
        valid: Bool of the same shape; None takes all.

    Raises:
        ValueError: Of another shape.
    """
    if valid is None:
        return values.mean()
    require_mask(values, valid)
    return (values * valid).sum() / valid.sum().clamp(min=1)


def require_mask(values: Tensor, valid: Tensor) -> None:
    """Refuse a mask that would be spread over values of another shape.

    Raises:
        ValueError: With both shapes.
    """
    if valid.shape != values.shape:
        raise ValueError(
            f"a mask of {tuple(valid.shape)} does not fit values of {tuple(values.shape)}"
        )
