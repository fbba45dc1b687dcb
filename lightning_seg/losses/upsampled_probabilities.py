"""The softmax of logits that are smaller than the image, some rows at a time.

A discriminator and a structure analyzer take probabilities at the size of the image. These are
computed without the full-size logits and their gradient, each a tensor (B, C, H, W).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_seg.losses.block_cross_entropy import not_compiled, refuse_second_derivative
from lightning_seg.losses.upsampled_rows import UpsampledRows, groups_of_images


@not_compiled
def upsampled_probabilities(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the softmax over the classes of bilinearly upsampled logits.

    With p = softmax z, the gradient of the logits at the full size is p (g - sum_c p_c g_c), where
    g is the gradient of the probabilities.

    Args:
        logits: (B, C, h, w), float32 or wider.
        size: (H, W), at least (h, w).

    Returns:
        (B, C, H, W) probabilities, which have a gradient and no gradient of that gradient.
    """
    found: Tensor = _Probabilities.apply(logits, size)
    return found


class _Probabilities(torch.autograd.Function):
    """Upsampling and softmax in one pass over blocks of rows, and its gradient in another."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Return (B, C, H, W) probabilities, in the memory order of the logits."""
        by_pixel = logits.is_contiguous(memory_format=torch.channels_last)
        order = torch.channels_last if by_pixel else torch.contiguous_format
        shape = (*logits.shape[:2], *size)
        probabilities = torch.empty(
            shape, dtype=logits.dtype, device=logits.device, memory_format=order
        )
        for images in groups_of_images(logits, size[1]):
            rows = UpsampledRows(logits[images], size)
            for first, last in rows.blocks():
                # (B, C, n, W)
                values = rows.rows(first, last)
                values.sub_(values.amax(1, keepdim=True)).exp_()
                torch.div(
                    values, values.sum(1, keepdim=True), out=probabilities[images, :, first:last]
                )
        ctx.save_for_backward(logits, probabilities)
        return probabilities

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the logits, (B, C, h, w)."""
        refuse_second_derivative()
        logits, probabilities = ctx.saved_tensors
        (upstream,) = outputs
        size = (probabilities.shape[2], probabilities.shape[3])
        gradients = []
        for images in groups_of_images(logits, size[1]):
            rows = UpsampledRows(logits[images], size)
            for first, last in rows.blocks():
                share = probabilities[images, :, first:last]
                values = share * upstream[images, :, first:last]  # (B, C, n, W)
                values.addcmul_(share, values.sum(1, keepdim=True), value=-1)
                rows.add_gradient(first, values)
            gradients.append(rows.finish())
        return torch.cat(gradients), None
