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
    """
    if valid is None:
        return values.mean()
    return (values * valid).sum() / valid.sum().clamp(min=1)
