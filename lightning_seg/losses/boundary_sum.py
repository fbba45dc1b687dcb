"""The sum of squares over the entries of the probability gradient loss, and its gradient.

Only the pixels in a window of an entry are visited. See `lightning_seg.losses.probability_gradient`
for the loss and `lightning_seg.losses.label_gradients` for the entries.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_seg.losses.label_gradients import EdgeKernel, Entries
from lightning_seg.losses.picked_pixels import PickedPixels


class BoundarySum(torch.autograd.Function):
    """The sum of squares over the entries, from the logits of the S pixels in their windows."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, entries: Entries, kernel: EdgeKernel, size: tuple[int, int]
    ) -> Tensor:
        """Return the sum, a scalar; the gradient is computed at once and kept for S pixels.

        Args:
            ctx: The context of autograd.
            logits: (B, C, h, w); logits smaller than `size` are upsampled at the S pixels.
            entries: The entries of the sum.
            kernel: The kernel of both directions.
            size: (H, W) of the labels.
        """
        images, (rows, columns) = logits.shape[0], size
        windows = _windows(entries.pixels, rows, columns, kernel.size // 2)  # (T, N)
        # (B H W,), True at the S pixels in a window of any entry
        touched = torch.zeros(images * rows * columns, dtype=torch.bool, device=logits.device)
        touched[windows.flatten()] = True
        places = [torch.nonzero(part)[:, 0] for part in touched.view(images, -1)]
        # (B H W,) positions of the pixels among the S pixels
        compact = touched.cumsum(0) - 1
        # (B, C, h, w) -> (C, S)
        picked = PickedPixels(logits, size, places)
        probabilities = picked.values().softmax(0)
        # (T, N) -> (T, E) positions in the flattened (C, S)
        index = compact[windows][:, entries.at]
        index += entries.classes * probabilities.shape[1]
        # (2, T) @ (T, E) -> (2, E)
        error = kernel.value @ probabilities.flatten()[index] - entries.slopes
        error *= entries.masks
        if ctx.needs_input_grad[0]:
            # (T, 2) @ (2, E) -> (T, E), added up at each of (C, S)
            gradient = torch.zeros_like(probabilities)
            gradient.view(-1).index_add_(
                0, index.flatten(), (kernel.value.T @ (2 * error)).flatten()
            )
            # through the softmax: p (g - sum_c p_c g_c)
            gradient *= probabilities
            gradient -= probabilities * gradient.sum(0)
            ctx.save_for_backward(gradient)
            ctx.picked = picked
        return error.square().sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient of the logits, from that of the S pixels."""
        (compact,) = ctx.saved_tensors
        gradient: Tensor = ctx.picked.gradient(compact * outputs[0])
        return gradient, None, None, None


def _windows(pixels: Tensor, rows: int, columns: int, reach: int) -> Tensor:
    """Return (T, N) positions of the taps of each pixel's window, with replicated borders.

    Args:
        pixels: (N,) positions of the pixels in the flattened (B, H, W).
        rows: The height H.
        columns: The width W.
        reach: Half of the side of the window, rounded down.
    """
    line, column = pixels // columns, pixels % columns  # (N,) each
    row = line % rows
    step = torch.arange(-reach, reach + 1, device=pixels.device)[:, None]
    high = ((row + step).clamp(0, rows - 1) + (line - row)) * columns
    wide = (column + step).clamp(0, columns - 1)
    return (high[:, None] + wide).flatten(0, 1)  # (size, 1, N) + (size, N) -> (T, N)
