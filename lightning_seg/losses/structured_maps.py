"""Structured maps with channels: class ids as one-hot vectors, depths, surface normals.

A structured map is what a network predicts of an image: classes, depth or normals. The structure
analyzer takes such maps; see `lightning_seg.losses.structure_matching`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_seg.losses.block_cross_entropy import blocks_pay
from lightning_seg.losses.upsampled_probabilities import upsampled_probabilities
from lightning_seg.numerics import at_least_float32, resize


def one_hot_map(target: Tensor, num_classes: int, ignore_index: int = 255) -> Tensor:
    """Return class ids as one-hot vectors, and void pixels as zero vectors.

    Args:
        target: (B, H, W) int64 class ids in [0, C), or `ignore_index`.
        num_classes: Number of classes C, at least 1.
        ignore_index: The class id of void pixels.

    Returns:
        (B, C, H, W) float32 of 0 and 1.

    Examples:
        2x2 pixels of two classes, one of them void.

        >>> one_hot_map(torch.tensor([[[1, 0], [1, 255]]]), num_classes=2).tolist()
        [[[[0.0, 1.0], [0.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]]]]
    """
    valid = (target != ignore_index)[:, None]  # (B, H, W) -> (B, 1, H, W)
    shape = (target.shape[0], num_classes, *target.shape[1:])
    maps = torch.zeros(shape, device=target.device)
    return maps.scatter_(1, target[:, None].where(valid, 0), valid.to(maps.dtype))


def class_probabilities(logits: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Return the softmax over the classes, in the memory order of the logits.

    `softmax(1)` of PyTorch copies channels-last logits to another order, which takes as long again
    on CPUs.

    Args:
        logits: (B, C, h, w), any floating dtype; computed in float32 or wider.
        size: (H, W), at least (h, w), to which smaller logits are upsampled bilinearly
            (`align_corners=False`), some rows at a time where that is faster; None keeps
            the size of the logits.

    Returns:
        (B, C, H, W) probabilities.

    Examples:
        >>> class_probabilities(torch.zeros(1, 2, 1, 1)).flatten().tolist()
        [0.5, 0.5]
    """
    logits = at_least_float32(logits)
    if size is not None and tuple(logits.shape[2:]) != tuple(size):
        if blocks_pay(logits, size):
            return upsampled_probabilities(logits, size)
        logits = resize(logits, size)
    # (B, C, H, W) -> (B, H, W, C): contiguous where the logits are channels-last
    last = logits.movedim(1, -1)
    if last.is_contiguous():
        return last.softmax(-1).movedim(-1, 1)
    return logits.softmax(1)


def log_depth(depth: Tensor, smallest: float = 1e-2) -> Tensor:
    """Return the logarithm of depths.

    Args:
        depth: Depths in metres, any shape and floating dtype; computed in float32 or wider.
        smallest: Smaller depths are raised to this value, in metres, above 0. The default is that
            of the authors of adversarial structure matching.

    Returns:
        `log(max(depth, smallest))`, the shape of `depth`.

    Examples:
        >>> log_depth(torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
        tensor([[-4.6052,  0.0000],
                [-4.6052,  0.0000]])
    """
    return at_least_float32(depth).clamp(min=smallest).log()


def unit_vectors(vectors: Tensor) -> Tensor:
    """Scale vectors, such as surface normals or embeddings, to length 1.

    The vector v becomes `v / max(|v|, 1e-6)`, so that zero vectors stay zero.

    Args:
        vectors: (B, K, ...) vectors of K components, any floating dtype; computed in float32 or
            wider.

    Returns:
        (B, K, ...) vectors of length 1 or 0.

    Examples:
        >>> unit_vectors(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    vectors = at_least_float32(vectors)
    return vectors * vectors.square().sum(1, keepdim=True).clamp(min=1e-12).rsqrt()
