"""The edge kernel of both directions on bands of rows, as sums of shifted one-dimensional slices.

A band is a flattened (rows, C, W + 2r) buffer with replicated columns, r = (size - 1) / 2, and r
zeros at both ends. The neighbour of a value in the next row is `stride` = C (W + 2r) places further
and that in the next column one place further. Every tap is therefore one slice of the whole band.
The margins, the first and the last r rows with the zeros beside them, have no result. The slices
are made once and serve all bands of the same number of rows.

A stencil gives two maps (a, b), of which the gradients in both directions are a mixture M (a, b).
At sizes 5 and 7 they are the gradients themselves. At size 3 the kernel is a box of 2x2 pixels and
then a diagonal difference: with the sums q(y, x) of the values at (y, x), (y, x+1), (y+1, x) and
(y+1, x+1),

    a(y, x) = q(y, x) - q(y-1, x-1)        b(y, x) = q(y-1, x) - q(y, x-1)
    K_x * P = (a + b) / 2                  K_y * P = (a - b) / 2

for K[0, 1] = 1. Both directions then take 4 sums, and 10 without the box.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_seg.losses.label_gradients import EdgeKernel


class Stencil:
    """The constants of a kernel.

    Args:
        kernel: The kernel of both directions.
    """

    def __init__(self, kernel: EdgeKernel) -> None:
        self.reach = kernel.size // 2
        """r."""
        value = kernel.value[0].view(kernel.size, kernel.size).double()
        quarter = value[self.reach :, self.reach + 1 :].T  # [dx - 1][dy]
        factor = float(quarter[0, 0])
        self.taps: list[list[float]] = (quarter / factor).tolist()
        """The taps right of and below the centre at [dx - 1][dy], for K[0, 1] = 1."""
        mixture = [[0.5, 0.5], [0.5, -0.5]] if self.reach == 1 else [[1.0, 0.0], [0.0, 1.0]]
        self.mixture = kernel.value.new_tensor(mixture) * factor
        """(2, 2), M. The sum of squares of the gradients is `norm` (a^2 + b^2)."""
        self.norm = factor**2 * (0.5 if self.reach == 1 else 1.0)


class _Sum(NamedTuple):
    """One step: into = first + factor * second."""

    first: Tensor
    second: Tensor
    factor: float
    into: Tensor


class Band:
    """The buffers of a band, and what is computed from one to the next.

    Args:
        stencil: The constants of the kernel.
        buffers: (5, at least L), shared by all bands.
        count: Number of rows of the band without 2r rows at both ends.
        classes: Number of maps C.
        columns: The width W.
    """

    def __init__(
        self, stencil: Stencil, buffers: Tensor, count: int, classes: int, columns: int
    ) -> None:
        reach = stencil.reach
        wide = columns + 2 * reach
        self.stencil, self.stride = stencil, classes * wide
        self.length = (count + 4 * reach) * self.stride + 2 * reach
        self.margin = reach * (self.stride + 1)
        buffers = buffers[:, : self.length]
        self.values, self.maps, self.weighted = buffers[0], buffers[1:3], buffers[3:]
        # (L,) -> (n + 4r, C, W + 2r)
        rows = [buffer[reach : self.length - reach].view(-1, classes, wide) for buffer in buffers]
        self.probabilities, self.padded = rows[0], rows[1]
        self.found = rows[3] if reach == 1 else rows[1]
        """(n + 4r, C, W + 2r), where `adjoint` writes its result."""
        # (n, C, W + 2r)
        self.own_found, self.own_probabilities, self.own_products = (
            each[2 * reach : -2 * reach] for each in (self.found, rows[0], rows[2])
        )
        # (2, L) -> (2, n + 2r, C, W + 2r), without the margins
        inner = slice(self.margin, self.length - self.margin)
        shape = (2, count + 2 * reach, classes, wide)
        self.inner_maps, self.inner_weighted = (
            each[:, inner].view(shape) for each in (self.maps, self.weighted)
        )
        border = reach * self.stride
        own = slice(inner.start + border, inner.stop - border)
        self.pairs = [
            (each[own], other[own]) for each, other in zip(self.maps, self.weighted, strict=True)
        ]
        """The maps and their weighted values at the n rows, as pairs of (n C (W + 2r),)."""
        self._margins = [self.weighted[:, : inner.start], self.weighted[:, inner.stop :]]
        self._zeros = self.values[self.length - reach :]
        self._slopes, self._adjoint = self._box() if reach == 1 else self._shifts()

    def slopes(self) -> None:
        """Write the maps (a, b) of the values into `maps`, except in the margins."""
        self._zeros.zero_()  # a longer band may have written there
        _run(self._slopes)

    def clear_margins(self) -> None:
        """Set the margins of `weighted` to 0."""
        for margin in self._margins:
            margin.zero_()

    def adjoint(self) -> None:
        """Write the adjoint of `slopes` at `weighted` into `found`; `maps` is overwritten."""
        _run(self._adjoint)

    def _box(self) -> tuple[list[_Sum], list[_Sum]]:
        """Return the steps of the slopes and of the adjoint at size 3."""
        stride, length = self.stride, self.length
        # the places of the 2x2 boxes, and those outside the margins
        boxes, inside = length - stride - 1, slice(self.margin, length - self.margin)
        values, (a, b), (pairs, box) = self.values, self.maps, self.weighted
        slopes = [
            _Sum(values[:-stride], values[stride:], 1.0, pairs[:-stride]),
            _Sum(pairs[:boxes], pairs[1 : boxes + 1], 1.0, box[:boxes]),
            _Sum(box[inside], box[: boxes - stride - 1], -1.0, a[inside]),
            _Sum(box[1 : boxes - stride], box[stride : boxes - 1], -1.0, b[inside]),
        ]
        # a box counts in a and in b at two places each
        a, b = self.weighted
        box, pairs = self.maps
        inner = box[:boxes]
        adjoint = [
            _Sum(a[:boxes], a[stride + 1 :], -1.0, inner),
            _Sum(inner, b[stride:-1], 1.0, inner),
            _Sum(inner, b[1:-stride], -1.0, inner),
            _Sum(inner[1:], inner[:-1], 1.0, pairs[1:boxes]),
            _Sum(pairs[stride + 1 : boxes], pairs[1 : boxes - stride], 1.0, a[inside]),
        ]
        return slopes, adjoint

    def _shifts(self) -> tuple[list[_Sum], list[_Sum]]:
        """Return the steps of the slopes and of the adjoint at sizes 5 and 7."""
        slopes, adjoint = [], []
        for vertical in (False, True):
            slopes += self._correlation(
                self.values, vertical, self.maps[int(vertical)], self.weighted[0], True
            )
            # The kernel is odd: the adjoint of a correlation with it is the negative correlation.
            adjoint += self._correlation(
                self.weighted[int(vertical)], vertical, self.maps[0], self.maps[1], not vertical, -1
            )
        return slopes, adjoint

    def _correlation(
        self,
        values: Tensor,
        vertical: bool,
        into: Tensor,
        scratch: Tensor,
        overwrite: bool,
        sign: int = 1,
    ) -> list[_Sum]:
        """Return the steps of a cross-correlation with the kernel of one direction.

        Args:
            values: (L,), a band.
            vertical: Whether values are compared along the height.
            into: (L,), overwritten or added to, except in the margins.
            scratch: (L,), overwritten.
            overwrite: Whether `into` is overwritten.
            sign: 1, or -1 for the negative correlation.
        """
        across, along = (self.stride, 1) if vertical else (1, self.stride)
        low, high = self.stencil.reach * across, self.length - self.stencil.reach * across
        found, steps = into[self.margin : self.length - self.margin], []
        for dx, column in enumerate(self.stencil.taps, start=1):
            # each column of taps takes one difference
            shift = dx * across * sign
            plus, minus = (values[low + each : high + each] for each in (shift, -shift))
            steps.append(_Sum(plus, minus, -1.0, scratch[low:high]))
            terms = [
                (scratch[self.margin + place : self.margin + place + len(found)], tap)
                for dy, tap in enumerate(column)
                for place in sorted({dy * along, -dy * along})
            ]
            before = found
            if overwrite and dx == 1:  # the first tap is 1
                before, terms = terms[0][0], terms[1:]
            for term, tap in terms:
                steps.append(_Sum(before, term, tap, found))
                before = found
        return steps


def _run(steps: list[_Sum]) -> None:
    """Do the steps one after the other."""
    for step in steps:
        torch.add(step.first, step.second, alpha=step.factor, out=step.into)
