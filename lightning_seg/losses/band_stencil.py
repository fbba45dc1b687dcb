"""The edge kernel of both directions on bands of rows, as sums of shifted one-dimensional slices.

A band is a flattened (rows, C, W + 2r) buffer with replicated columns, r = (size - 1) / 2, and r
zeros at both ends. The neighbour of a value in the next row is `stride` = C (W + 2r) places further
and that in the next column one place further. Every tap is therefore one slice of the whole band.
The margins, the first and the last r rows with the zeros beside them, have no result.

A stencil gives two maps (a, b), of which the gradients in both directions are a mixture M (a, b).
At sizes 5 and 7 they are the gradients themselves. At size 3 the kernel is a box of 2x2 pixels and
then a diagonal difference: with the sums q(y, x) of the values at (y, x), (y, x+1), (y+1, x) and
(y+1, x+1),

    a(y, x) = q(y, x) - q(y-1, x-1)        b(y, x) = q(y-1, x) - q(y, x-1)
    K_x * P = (a + b) / 2                  K_y * P = (a - b) / 2

for K[0, 1] = 1. Both directions then take 4 sums, and 10 without the box.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_seg.losses.label_gradients import EdgeKernel


class Stencil:
    """Gradients of the maps of a band, and the adjoint.

    Args:
        kernel: The kernel of both directions.
        stride: Distance of two rows in the flattened band.
    """

    def __init__(self, kernel: EdgeKernel, stride: int) -> None:
        self.reach = kernel.size // 2
        self.stride = stride
        self.margin = self.reach * (stride + 1)
        """Length of a margin: r rows and r zeros."""
        value = kernel.value[0].view(kernel.size, kernel.size).double()
        quarter = value[self.reach :, self.reach + 1 :].T  # [dx - 1][dy]
        self.factor = float(quarter[0, 0])
        self.taps: list[list[float]] = (quarter / quarter[0, 0]).tolist()
        mixture = [[0.5, 0.5], [0.5, -0.5]] if self.reach == 1 else [[1.0, 0.0], [0.0, 1.0]]
        self.mixture = kernel.value.new_tensor(mixture) * self.factor
        """(2, 2), M. The sum of squares of the gradients is `norm` (a^2 + b^2)."""
        self.norm = self.factor**2 * (0.5 if self.reach == 1 else 1.0)

    def slopes(self, values: Tensor, into: Tensor, scratch: Tensor) -> None:
        """Write the maps (a, b) of values, 0 in the margins.

        Args:
            values: (L,), a band.
            into: (2, L), overwritten.
            scratch: (2, L), overwritten.
        """
        if self.reach > 1:
            into.zero_()
            self._correlate(values, False, into[0], scratch[0], 1.0)
            self._correlate(values, True, into[1], scratch[0], 1.0)
            return
        into[:, : self.margin] = 0
        into[:, -self.margin :] = 0
        stride, length = self.stride, len(values)
        inside = slice(self.margin, length - self.margin)
        pairs, box = scratch
        torch.add(values[:-stride], values[stride:], out=pairs[:-stride])
        torch.add(pairs[: -stride - 1], pairs[1:-stride], out=box[: -stride - 1])
        torch.sub(box[inside], box[: -2 * stride - 2], out=into[0, inside])
        torch.sub(box[1 : -2 * stride - 1], box[stride : -stride - 2], out=into[1, inside])

    def adjoint(self, maps: Tensor, scratch: Tensor) -> Tensor:
        """Return (L,), the adjoint of `slopes` except in the margins.

        Args:
            maps: (2, L), 0 in the margins and the replicated columns; overwritten, and the result
                may lie in it.
            scratch: (2, L), overwritten.
        """
        if self.reach > 1:
            # The kernel is odd: the adjoint of a correlation with it is the negative correlation.
            scratch[0].zero_()
            self._correlate(maps[0], False, scratch[0], scratch[1], -1.0)
            self._correlate(maps[1], True, scratch[0], scratch[1], -1.0)
            return scratch[0]
        stride = self.stride
        box, pairs = scratch
        inner = box[: -stride - 1]  # a sum of 2x2 values counts in a and b at two places each
        torch.sub(maps[0, : -stride - 1], maps[0, stride + 1 :], out=inner)
        inner += maps[1, stride:-1]
        inner -= maps[1, 1:-stride]
        torch.add(inner[1:], inner[:-1], out=pairs[1 : -stride - 1])
        found: Tensor = maps[0]
        torch.add(
            pairs[stride + 1 : -stride - 1],
            pairs[1 : -2 * stride - 1],
            out=found[stride + 1 : -stride - 1],
        )
        return found

    def _correlate(
        self, values: Tensor, vertical: bool, into: Tensor, scratch: Tensor, sign: float
    ) -> None:
        """Add the cross-correlation with the kernel of one direction, times a sign.

        Args:
            values: (L,), a band.
            vertical: Whether values are compared along the height.
            into: (L,), added to except in the margins.
            scratch: (L,), overwritten.
            sign: 1 or -1.
        """
        across, along = (self.stride, 1) if vertical else (1, self.stride)
        length = len(values)
        border = self.reach * across
        found = into[self.margin : length - self.margin]
        for dx, column in enumerate(self.taps, start=1):
            # each column of taps takes one difference
            shift = dx * across
            torch.sub(
                values[border + shift : length - border + shift],
                values[border - shift : length - border - shift],
                out=scratch[border : length - border],
            )
            for dy, tap in enumerate(column):
                for place in {dy * along, -dy * along}:
                    start = self.margin + place
                    found.add_(scratch[start : start + len(found)], alpha=sign * tap)
