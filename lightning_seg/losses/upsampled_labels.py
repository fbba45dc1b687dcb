"""The most probable classes of upsampled logits, some rows at a time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_seg.losses.upsampled_rows import UpsampledRows, groups_of_images
from lightning_seg.numerics import at_least_float32


class Predicted(NamedTuple):
    """The most probable class of every pixel."""

    labels: Tensor
    """(B, H, W) int64 class ids."""
    confidence: Tensor | None = None
    """(B, H, W) probabilities of these classes in [0, 1]; None where they were not asked for."""


@torch.no_grad()
def most_probable(logits: Tensor, size: tuple[int, int], confidence: bool = False) -> Predicted:
    """Return the classes of the largest logits, after bilinear upsampling to a size.

    Logits smaller than the image are upsampled some rows at a time (`align_corners=False`), so that
    full-size logits are never in memory.

    Args:
        logits: (B, C, h, w), any floating dtype.
        size: (H, W), at least (h, w).
        confidence: Whether the probabilities of these classes are computed.

    Examples:
        Four columns between the logits 0 and 1 of class 1 get 0, 1/4, 3/4 and 1. Class 0 has 1/2.

        >>> logits = torch.tensor([[0.5, 0.5], [0.0, 1.0]])[None, :, None]
        >>> most_probable(logits, (1, 4)).labels.tolist()
        [[[0, 0, 1, 1]]]
    """
    logits = at_least_float32(logits)
    if tuple(logits.shape[2:]) == tuple(size):
        return _of_block(logits, confidence)
    parts = []
    for images in groups_of_images(logits, size[1]):
        rows = UpsampledRows(logits[images], size)
        blocks = [_of_block(rows.rows(*each), confidence) for each in rows.blocks()]
        shares = [each.confidence for each in blocks if each.confidence is not None]
        whole = torch.cat(shares, 1) if shares else None
        parts.append(Predicted(torch.cat([each.labels for each in blocks], 1), whole))
    shares = [each.confidence for each in parts if each.confidence is not None]
    whole = torch.cat(shares) if shares else None
    return Predicted(torch.cat([each.labels for each in parts]), whole)


def _of_block(logits: Tensor, confidence: bool) -> Predicted:
    """Return the classes of (B, C, n, W) logits."""
    largest, labels = logits.max(dim=1)  # argmax(1) takes ten times as long on CPUs
    if not confidence:
        return Predicted(labels)
    # p of the largest logit: exp(z - log sum exp z)
    return Predicted(labels, (largest - torch.logsumexp(logits, 1)).exp())
