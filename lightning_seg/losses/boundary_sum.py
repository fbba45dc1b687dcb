"""The sum of squares over the entries of the probability gradient loss, and its gradient.

Only the pixels in a window of an entry are visited, some rows of an image at a time, so that their
probabilities stay near the processor. See `lightning_seg.losses.probability_gradient` for the loss
and `lightning_seg.losses.label_gradients` for the entries.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_seg.losses.label_gradients import EdgeKernel, Entries
from lightning_seg.losses.picked_pixels import PickedPixels, empty_gradient

_ON_CPU = 2**17  # probabilities of a part
_ON_DEVICE = 2**40  # of whole images: every part makes a GPU wait


class BoundarySum(torch.autograd.Function):
    """The sum of squares over the entries, from the logits of the pixels in their windows."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, entries: Entries, kernel: EdgeKernel, size: tuple[int, int]
    ) -> Tensor:
        """Return the sum, a scalar; the gradient is computed at once and kept for these pixels.

        Args:
            ctx: The context of autograd.
            logits: (B, C, h, w); logits smaller than `size` are upsampled at the pixels.
            entries: The entries of the sum.
            kernel: The kernel of both directions.
            size: (H, W) of the labels.
        """
        total = logits.new_zeros(())
        kept: list[tuple[int, PickedPixels]] = []
        gradients = []
        for image, part in _parts(entries, size, logits):
            windows = _windows(part.pixels - image * size[0] * size[1], *size, kernel.size // 2)
            picked, index = _picked(logits[image], windows, size)
            # (C, S) probabilities, (T, N) -> (T, E) positions in the flattened (C, S)
            probabilities = picked.values().softmax(0)
            index = index[:, part.at]
            index += part.classes * probabilities.shape[1]
            # (2, T) @ (T, E) -> (2, E)
            error = kernel.value @ probabilities.flatten()[index] - part.slopes
            error *= part.masks
            total += error.square().sum()
            if ctx.needs_input_grad[0]:
                # (T, 2) @ (2, E) -> (T, E), added up at each of (C, S)
                gradient = torch.zeros_like(probabilities)
                gradient.view(-1).index_add_(
                    0, index.flatten(), (kernel.value.T @ (2 * error)).flatten()
                )
                # through the softmax: p (g - sum_c p_c g_c)
                gradient *= probabilities
                gradient -= probabilities * gradient.sum(0)
                gradients.append(gradient)
                kept.append((image, picked))
        ctx.save_for_backward(logits, *gradients)
        ctx.kept = kept
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient of the logits, from that of the pixels."""
        logits, *gradients = ctx.saved_tensors
        resized = any(picked.corners is not None for _, picked in ctx.kept)
        whole = empty_gradient(logits, resized)
        for (image, picked), gradient in zip(ctx.kept, gradients, strict=True):
            picked.add_gradient(gradient * outputs[0], whole[image])
        return whole, None, None, None


def _parts(
    entries: Entries, size: tuple[int, int], logits: Tensor
) -> Iterator[tuple[int, Entries]]:
    """Yield the number of an image and some of its entries, with pixels of the whole batch."""
    images, classes = logits.shape[:2]
    most = (_ON_CPU if logits.device.type == "cpu" else _ON_DEVICE) // max(1, classes)
    starts = torch.arange(images + 1, device=logits.device) * (size[0] * size[1])
    ends: list[int] = torch.searchsorted(entries.pixels, starts).tolist()
    cuts = [
        (image, first, min(first + most, ends[image + 1]))
        for image in range(images)
        for first in range(ends[image], ends[image + 1], most)
    ]
    edges = torch.tensor([first for _, first, _ in cuts], device=logits.device)
    begins: list[int] = [*torch.searchsorted(entries.at, edges).tolist(), len(entries.at)]
    for place, (image, first, last) in enumerate(cuts):
        pairs = slice(begins[place], begins[place + 1])
        yield (
            image,
            entries._replace(
                pixels=entries.pixels[first:last],
                at=entries.at[pairs] - first,
                classes=entries.classes[pairs],
                slopes=entries.slopes[:, pairs],
                masks=entries.masks[:, pairs],
                counts=entries.counts[pairs],
            ),
        )


def _picked(maps: Tensor, windows: Tensor, size: tuple[int, int]) -> tuple[PickedPixels, Tensor]:
    """Return the S pixels in some windows, and the (T, N) positions of the taps among them.

    Args:
        maps: (C, h, w) logits of the image.
        windows: (T, N) positions of the taps in the flattened (H, W).
        size: (H, W).
    """
    low = windows.min()
    windows = windows - low
    # True at the S pixels, in the rows from the first to the last window
    touched = torch.zeros(int(windows.max()) + 1, dtype=torch.bool, device=maps.device)
    touched[windows.flatten()] = True
    places = torch.nonzero(touched)[:, 0] + low
    return PickedPixels(maps, size, places), (touched.cumsum(0) - 1)[windows]


def _windows(pixels: Tensor, rows: int, columns: int, reach: int) -> Tensor:
    """Return (T, N) positions of the taps of each pixel's window, with replicated borders.

    Args:
        pixels: (N,) positions of the pixels in the flattened (H, W).
        rows: The height H.
        columns: The width W.
        reach: Half of the side of the window, rounded down.
    """
    row, column = pixels // columns, pixels % columns  # (N,) each
    step = torch.arange(-reach, reach + 1, device=pixels.device)[:, None]
    high = (row + step).clamp(0, rows - 1) * columns
    wide = (column + step).clamp(0, columns - 1)
    return (high[:, None] + wide).flatten(0, 1)  # (size, 1, N) + (size, N) -> (T, N)
