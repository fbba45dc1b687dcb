"""The squared gradient of class probabilities at the pixels where no label changes.

This term is not part of the paper on the probability gradient loss. That loss looks at the
boundaries of the labels alone, and where its weight is large a network also draws outlines that are
not there. See `lightning_seg.losses.probability_gradient` for the kernel.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_seg.losses.label_gradients import EdgeKernel, Entries, window_max

_BLOCK = 2**18  # probabilities that are worked on at a time, so that they stay in the cache


def flat_pixels(
    labels: Tensor, candidates: Tensor | None, entries: Entries, kernel: EdgeKernel
) -> Tensor:
    """Return the pixels that may have an entry and have none.

    Args:
        labels: (B, H, W) labels as `prepare_labels` returns them, void as -1.
        candidates: (B, H, W) bool, the pixels that may have entries; None stands for the pixels
            without void in their window.
        entries: The entries of the sum over boundaries.
        kernel: Its size is the side of a window.

    Returns:
        (B, H, W) bool.
    """
    if candidates is None:
        candidates = window_max((labels < 0).float(), kernel.size) == 0
    flat = candidates.clone().flatten()
    flat[entries.pixels[entries.at[entries.counts > 0]]] = False
    return flat.view_as(labels)


class FlatSum(torch.autograd.Function):
    """The sum over the flat pixels of sum_c,d (K_d * P_c)^2, block by block.

    Only probabilities of one block of classes are convolved at a time, and the gradient of the
    logits, which is computed at once, is all that is kept.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, flat: Tensor, known: Tensor | None, kernel: EdgeKernel
    ) -> Tensor:
        """Return the sum, a scalar.

        Args:
            ctx: The context of autograd.
            logits: (B, C, H, W), float32 or wider.
            flat: (B, H, W) bool, the pixels to add up.
            known: (B, H, W) bool, False at pixels that are in no window of a flat pixel, whose
                logits may be NaN; None where all logits count.
            kernel: The kernel of both directions.
        """
        total, weights = logits.new_zeros(()), flat.to(logits.dtype)
        gradient = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        step = max(1, _BLOCK // max(1, flat[0].numel()))
        for image, (values, weight) in enumerate(zip(logits, weights, strict=True)):
            if known is not None:
                values = torch.where(known[image], values, 0)
            probabilities = values.softmax(0)  # (C, H, W)
            into, inner = gradient[image], torch.zeros_like(weight)
            for first in range(0, len(values), step):
                part = slice(first, first + step)
                total += _squares(probabilities[part], weight, kernel, into[part])
                inner += (probabilities[part] * into[part]).sum(0)
            into.sub_(inner).mul_(probabilities)  # through the softmax: p (g - sum_c p_c g_c)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient of the logits, (B, C, H, W)."""
        (gradient,) = ctx.saved_tensors
        return gradient * outputs[0], None, None, None


def _squares(maps: Tensor, weight: Tensor, kernel: EdgeKernel, into: Tensor) -> Tensor:
    """Return the sum of squared gradients of maps; write its gradient.

    Args:
        maps: (N, H, W).
        weight: (H, W), 1 at the pixels that count and 0 elsewhere.
        kernel: The kernel of both directions.
        into: (N, H, W), overwritten with the gradient.

    Returns:
        A scalar.
    """
    reach = kernel.size // 2
    # the kernel's factor is left out until the end, so that its first tap is 1
    taps, factor = _taps(kernel)
    padded = F.pad(maps[None], [reach] * 4, mode="replicate")[0]  # (N, H + 2r, W + 2r)
    # slopes with a border of zeros, twice as wide, because the adjoint reaches into the border
    slopes = F.pad(torch.empty_like(maps), [2 * reach] * 4)
    inside = slopes[:, 2 * reach : -2 * reach, 2 * reach : -2 * reach]  # (N, H, W)
    total, adjoints = maps.new_zeros(()), []
    for vertical in (False, True):
        slope = _correlate(padded, taps, vertical).mul_(weight)  # (N, H, W)
        total += torch.linalg.vector_norm(slope).square()
        inside.copy_(slope)
        # The kernel is odd: the adjoint of a correlation with it is the negative correlation.
        adjoints.append(_correlate(slopes, taps, vertical))
    back = adjoints[0].add_(adjoints[1])  # (N, H + 2r, W + 2r)
    # what fell on the replicated borders belongs to the pixels that were replicated
    for dim in (1, 2):
        size = maps.shape[dim]
        middle = back.narrow(dim, reach, size)
        first, last = middle.narrow(dim, 0, 1), middle.narrow(dim, size - 1, 1)
        first += back.narrow(dim, 0, reach).sum(dim, keepdim=True)
        last += back.narrow(dim, reach + size, reach).sum(dim, keepdim=True)
        back = middle
    torch.mul(back, -2 * factor**2, out=into)
    return total * factor**2


def _taps(kernel: EdgeKernel) -> tuple[list[list[float]], float]:
    """Return the taps of a quarter of the kernel, divided by the first one, and the first one.

    The kernel is odd across its edge and even along it. The taps are at [dx - 1][dy].
    """
    reach = kernel.size // 2
    value = kernel.value[0].view(kernel.size, kernel.size).double()
    quarter = value[reach:, reach + 1 :].T
    return (quarter / quarter[0, 0]).tolist(), float(quarter[0, 0])


def _correlate(maps: Tensor, taps: list[list[float]], vertical: bool) -> Tensor:
    """Cross-correlate maps with the kernel of one direction by sums of slices.

    Args:
        maps: (N, H + 2r, W + 2r).
        taps: The taps of a quarter of the kernel, from `_taps`.
        vertical: Whether values are compared along the height.

    Returns:
        (N, H, W).
    """
    across, along, reach = (1, 2, len(taps)) if vertical else (2, 1, len(taps))
    size, length = (maps.shape[dim] - 2 * reach for dim in (across, along))
    found: Tensor | None = None
    for dx, (first, *others) in enumerate(taps, start=1):
        # (N, H + 2r, W) or (N, H, W + 2r): each column of taps takes one difference
        difference = maps.narrow(across, reach + dx, size) - maps.narrow(across, reach - dx, size)
        middle = difference.narrow(along, reach, length)
        found = middle if found is None else found.add_(middle, alpha=first)
        for dy, tap in enumerate(others, start=1):
            above = difference.narrow(along, reach + dy, length)
            pair = above + difference.narrow(along, reach - dy, length)
            # the first sum makes a tensor of its own, which the others are added to
            found = (
                torch.add(found, pair, alpha=tap)
                if found is middle
                else found.add_(pair, alpha=tap)
            )
    assert found is not None
    return found
