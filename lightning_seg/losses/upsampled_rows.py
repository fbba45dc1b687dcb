"""Bilinearly upsampled maps block by block, so that no map of the full size is ever in memory.

Networks give logits at a half to a thirty-second of the image's size. Upsampled to (B, C, H, W),
they are the largest tensors of a training, and each pass over them is a walk through main memory.
A block of rows stays near the processor. The rows between two rows of the logits differ in one
factor alone: such a row is (1 - t) top + t bottom, with both rows already upsampled in width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

_ON_CPU = 2**18  # values of a block for each thread: 1 MiB of float32
_ON_DEVICE = 2**25


class UpsampledRows:
    """The rows of maps upsampled with `align_corners=False`, and the adjoint of upsampling.

    Rows are fastest when they are asked for from top to bottom, and so are gradients.

    Args:
        maps: (B, C, h, w), float32 or float64.
        size: (H, W) of the upsampled maps.
    """

    def __init__(self, maps: Tensor, size: tuple[int, int]) -> None:
        self.maps = maps.detach().contiguous()
        self.size = size
        height = maps.shape[2]
        # as in F.interpolate: (y + 1/2) h / H - 1/2, at least 0
        places = (torch.arange(size[0], dtype=torch.float64) + 0.5) * (height / size[0]) - 0.5
        places = places.clamp(min=0)
        tops = places.floor().clamp(max=height - 1)
        self._shares = (places - tops).to(maps)[:, None]  # (H, 1), t of every row
        self._tops: list[int] = tops.long().tolist()
        self._bottoms = [min(top + 1, height - 1) for top in self._tops]
        self._wide: dict[int, Tensor] = {}
        self._gathered: dict[int, Tensor] = {}
        self.gradient = torch.zeros_like(self.maps)
        """(B, C, h, w), complete after `finish`."""
        self._narrowing: Tensor | None = None

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Yield the first row of each block and the row after its last one, from top to bottom."""
        device = self.maps.device.type
        values = _ON_CPU * torch.get_num_threads() if device == "cpu" else _ON_DEVICE
        images, classes = self.maps.shape[:2]
        most = max(1, values // max(1, images * classes * self.size[1]))
        for first in range(0, self.size[0], most):
            yield first, min(first + most, self.size[0])

    def _runs(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Yield the parts of rows first to last - 1 that lie between the same two rows."""
        start = first
        for row in range(first + 1, last + 1):
            if row == last or self._tops[row] != self._tops[start]:
                yield start, row
                start = row

    def rows(self, first: int, last: int, into: Tensor | None = None) -> Tensor:
        """Return rows first to last - 1 of the upsampled maps, (B, C, last - first, W).

        Args:
            first: The first row.
            last: The row after the last one.
            into: Gets the rows; None makes a new tensor.
        """
        if into is None:
            images, classes = self.maps.shape[:2]
            into = self.maps.new_empty(images, classes, last - first, self.size[1])
        for known in [row for row in self._wide if row < self._tops[first]]:
            del self._wide[known]
        for start, stop in self._runs(first, last):
            top, bottom = self._wide_row(self._tops[start]), self._wide_row(self._bottoms[start])
            part = into[:, :, start - first : stop - first]
            torch.lerp(top, bottom, self._shares[start:stop], out=part)
        return into

    def _wide_row(self, row: int) -> Tensor:
        """Return a row of the maps at the full width, (B, C, 1, W)."""
        if row not in self._wide:
            narrow = self.maps[:, :, row : row + 1]
            self._wide[row] = F.interpolate(
                narrow, size=(1, self.size[1]), mode="bilinear", align_corners=False
            )
        return self._wide[row]

    def add_gradient(self, first: int, gradient: Tensor) -> None:
        """Add what the gradient of some rows gives to that of the maps.

        Args:
            first: The first of the rows.
            gradient: (B, C, n, W) gradient of n rows, overwritten.
        """
        for known in [row for row in self._gathered if row < self._tops[first]]:
            self._put(known)
        for start, stop in self._runs(first, first + gradient.shape[2]):
            part = gradient[:, :, start - first : stop - first]
            # (B, C, n, W) -> (B, C, 1, W)
            both = part.sum(2, keepdim=True)
            lower = part.mul_(self._shares[start:stop]).sum(2, keepdim=True)
            self._gather(self._tops[start], both.sub_(lower))
            self._gather(self._bottoms[start], lower)

    def _gather(self, row: int, gradient: Tensor) -> None:
        """Add the gradient (B, C, 1, W) of a row at the full width."""
        if row in self._gathered:
            self._gathered[row] += gradient
        else:
            self._gathered[row] = gradient

    def _put(self, row: int) -> None:
        """Add the gradient of a row at the full width to that of the maps."""
        wide, width = self._gathered.pop(row), self.maps.shape[3]
        if wide.is_cuda and not torch.are_deterministic_algorithms_enabled():
            narrow = torch.ops.aten.upsample_bilinear2d_backward(
                wide, (1, self.size[1]), (*wide.shape[:2], 1, width), False
            )
            self.gradient[:, :, row] += narrow[:, :, 0]
            return
        if self._narrowing is None:
            self._narrowing = self._matrix(width)
        narrow = wide.flatten(0, 2).to(self._narrowing.dtype) @ self._narrowing
        self.gradient[:, :, row] += narrow.view(*wide.shape[:2], width)

    def _matrix(self, width: int) -> Tensor:
        """Return (W, w), the upsampling of a row as a matrix, in a type whose products are exact.

        The option `float32_matmul_precision` lets products of float32 lose digits.
        """
        rounded = self.maps.is_cuda or torch.get_float32_matmul_precision() != "highest"
        unit = torch.eye(width, dtype=self.maps.dtype, device=self.maps.device)
        wide = F.interpolate(
            unit[None, :, None], size=(1, self.size[1]), mode="bilinear", align_corners=False
        )
        matrix = wide[0, :, 0].T.contiguous()  # (1, w, 1, W) -> (W, w)
        return matrix.double() if rounded else matrix

    def finish(self) -> Tensor:
        """Return (B, C, h, w), the gradient of the maps for all gradients that were added."""
        for row in list(self._gathered):
            self._put(row)
        return self.gradient


def groups_of_images(maps: Tensor, width: int) -> Iterator[slice]:
    """Yield groups of images of which some rows at the full width fit into a block.

    Args:
        maps: (B, C, h, w).
        width: The full width W.
    """
    images, classes = maps.shape[:2]
    if maps.device.type != "cpu":
        yield slice(0, images)
        return
    rows = 4  # of a block, at least
    most = max(1, _ON_CPU * torch.get_num_threads() // max(1, rows * classes * width))
    for first in range(0, images, most):
        yield slice(first, min(first + most, images))
