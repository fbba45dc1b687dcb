"""Structured maps as networks see them: classes, depth and surface normals as channels."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_seg.numerics import at_least_float32


def one_hot_map(target: Tensor, num_classes: int, ignore_index: int = 255) -> Tensor:
    """Return labels as probabilities; void pixels are zero vectors.

    Args:
        target: (B, H, W) int64 class ids in [0, C), or `ignore_index`.
        num_classes: C.
        ignore_index: The id of pixels that have no class.

    Returns:
        (B, C, H, W) float32 of 0 and 1.

    Example:
        >>> one_hot_map(torch.tensor([[[1, 0, 255]]]), 2)[0, :, 0].tolist()
        [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    """
    valid = (target != ignore_index)[:, None]
    shape = (target.shape[0], num_classes, *target.shape[1:])
    maps = torch.zeros(shape, device=target.device)
    return maps.scatter_(1, target[:, None].where(valid, 0), valid.to(maps.dtype))


def log_depth(depth: Tensor, smallest: float = 1e-2) -> Tensor:
    """Return `log(max(depth, smallest))` of depths in metres, float32 at least.

    Example:
        >>> log_depth(torch.tensor([0.0, 1.0])).tolist()
        [-4.605170249938965, 0.0]
    """
    return at_least_float32(depth).clamp(min=smallest).log()


def unit_vectors(vectors: Tensor) -> Tensor:
    """Return (B, K, ...) vectors scaled to length 1 over K, float32 at least.

    For surface normals, and for features: `v / max(|v|, 1e-6)`, so that zero vectors stay zero.

    Example:
        >>> unit_vectors(torch.tensor([3.0, 0.0, 4.0]).view(1, 3, 1, 1)).flatten().tolist()
        [0.6000000238418579, 0.0, 0.800000011920929]
    """
    vectors = at_least_float32(vectors)
    return vectors * vectors.square().sum(1, keepdim=True).clamp(min=1e-12).rsqrt()
