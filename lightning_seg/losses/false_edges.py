"""The probability gradient loss and the term against false edges in one pass over the image.

The term is the squared gradient of class probabilities at the pixels where no label changes. It is
not part of the paper on the probability gradient loss. That loss looks at the boundaries of the
labels alone, and where its weight is large a network also draws outlines that are not there. See
`lightning_seg.losses.probability_gradient` for the kernel.

The image is worked on in bands of rows that stay in the cache. The gradients of a band serve both
terms: they are set to 0 where they do not count, the differences to the labels are put at the
entries, and the adjoint of the kernel and of the softmax gives the gradient of the logits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_seg.losses.band_stencil import Band, Stencil
from lightning_seg.losses.label_gradients import EdgeKernel, Entries
from lightning_seg.losses.upsampled_rows import UpsampledRows

_BLOCK = 2**19  # probabilities of a band for each thread, over r, which stay near the processor
_ROWS = 24  # least rows of a band; 4r more rows are worked on than have results


class FoundLabels(NamedTuple):
    """What the labels say about the pixels."""

    flat: Tensor
    """(B, H, W) bool, the pixels that may have an entry and have none."""
    known: Tensor | None
    """(B, H, W) bool, False at pixels in no window that counts, whose logits may be NaN; None where
    all logits count."""
    entries: Entries
    """The entries of the sum over boundaries."""


class EdgeMeans(torch.autograd.Function):
    """The means over the entries and over the flat pixels, with one gradient for both.

    The gradient is computed in the forward pass for upstream gradients in the ratio of 1 to
    `weight`, and given away in the first backward pass. Where the upstream gradients have another
    ratio, or in a second backward pass through the same graph, it is computed again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        labels: FoundLabels,
        kernel: EdgeKernel,
        factors: Tensor,
        weight: float,
    ) -> Tensor:
        """Return (2,), the sums of squares over the entries and the flat pixels, times factors.

        Args:
            ctx: The context of autograd.
            logits: (B, C, h, w), float32 or wider; upsampled by bands where they are smaller than
                the labels.
            labels: What the labels say about the pixels.
            kernel: The kernel of both directions.
            factors: (2,) factors of the sums, the reciprocals of their numbers of values.
            weight: Weight of the second mean in the loss relative to the first, above 0.
        """
        weights = factors.new_tensor([1.0, weight])
        sweep = _Sweep(logits, labels, kernel, factors * weights, ctx.needs_input_grad[0])
        ctx.gradient = sweep.gradient
        ctx.save_for_backward(logits, factors, labels.flat, labels.known, *labels.entries)
        ctx.rest = kernel, weight
        return sweep.sums / weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Return the gradient of the logits, (B, C, h, w)."""
        kernel, weight = ctx.rest
        (upstream,) = outputs  # (2,)
        gradient: Tensor | None
        gradient, ctx.gradient = ctx.gradient, None
        rounding = 8 * torch.finfo(upstream.dtype).eps
        if gradient is not None and bool(
            torch.isclose(upstream[1], upstream[0] * weight, rtol=rounding, atol=0.0)
        ):
            if upstream[0] != 1:
                gradient *= upstream[0]
            return gradient, None, None, None, None
        logits, factors, flat, known, *entries = ctx.saved_tensors
        labels = FoundLabels(flat, known, Entries(*entries))
        del gradient
        sweep = _Sweep(logits, labels, kernel, factors * upstream, True)
        assert sweep.gradient is not None
        return sweep.gradient, None, None, None, None


class _Sweep:
    """One pass over all bands: the scaled sums of squares, and the gradient of their sum.

    Args:
        logits: (B, C, h, w), float32 or wider.
        labels: What the labels say about the pixels.
        kernel: The kernel of both directions.
        scales: (2,) factors of the sums over the entries and over the flat pixels.
        differentiate: Whether the gradient is computed.
    """

    def __init__(
        self,
        logits: Tensor,
        labels: FoundLabels,
        kernel: EdgeKernel,
        scales: Tensor,
        differentiate: bool,
    ) -> None:
        self.logits, self.labels, self.scales = logits, labels, scales
        self.sums = scales.new_zeros(2)
        """(2,), the sums of squares times `scales`."""
        self.gradient = (
            torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
            if differentiate
            else None
        )
        """(B, C, h, w), the gradient of the sum of `sums`."""
        images, classes = logits.shape[:2]
        rows, columns = self.size = (labels.flat.shape[1], labels.flat.shape[2])
        self.resized = logits.shape[2:] != self.size
        self.stencil = Stencil(kernel)
        reach = self.stencil.reach
        wide = columns + 2 * reach
        # (B, H + 4r, W + 2r), the factors of each pixel's gradients, 0 outside the image
        weights = labels.flat * (2 * self.stencil.norm * scales[1])
        self.weights = F.pad(weights, [reach, reach, 2 * reach, 2 * reach])
        self._place(classes * wide)
        on_cpu = logits.device.type == "cpu"
        space = _BLOCK * torch.get_num_threads() // reach if on_cpu else classes * rows * columns
        step = max(_ROWS, space // max(1, classes * wide) - 4 * reach)
        step = max(1, min(step, rows))
        buffers = logits.new_zeros(5, (step + 4 * reach) * classes * wide + 2 * reach)
        bands = {
            count: Band(self.stencil, buffers, count, classes, columns)
            for count in {step, rows % step} - {0}
        }
        for image in range(images):
            if self.resized:
                self.upsampled = UpsampledRows(logits[image : image + 1], self.size)
            for first in range(0, rows, step):
                last = min(rows, first + step)
                self._visit(bands[last - first], image, first, last)
            if self.resized and self.gradient is not None:
                self.gradient[image] = self.upsampled.finish()[0]

    def _place(self, stride: int) -> None:
        """Find the places of the entries in a band, and the numbers of entries before each line.

        The places are those in a band whose first row is the first row of the first image. Void
        pixels have rows and columns instead.
        """
        entries, reach = self.labels.entries, self.stencil.reach
        images, (rows, columns) = len(self.logits), self.size
        pixels = entries.pixels[entries.at]  # (E,), rising
        lines = pixels // columns
        every = torch.arange(images * rows + 1, device=lines.device)
        self.places = pixels + entries.classes * (columns + 2 * reach) + 2 * reach
        self.places += lines * (stride - columns)
        self.starts: list[int] = torch.searchsorted(lines, every).tolist()
        self.void: tuple[Tensor, Tensor] | None = None
        if self.labels.known is not None:
            line, column = torch.nonzero(~self.labels.known.flatten(0, 1)).unbind(1)  # (V,) each
            self.void = line, column + reach
            self.void_starts: list[int] = torch.searchsorted(line, every).tolist()

    def _visit(self, band: Band, image: int, first: int, last: int) -> None:
        """Add the sums of rows first to last - 1 of an image, and write their gradient."""
        reach = self.stencil.reach
        self._softmax(band, image, first, last)
        band.slopes()
        weights = self.weights[image, first + reach : last + 3 * reach, None]
        torch.mul(band.inner_maps, weights, out=band.inner_weighted)
        band.clear_margins()
        for each, other in band.pairs:
            self.sums[1] += torch.dot(each, other) / 2
        self._add_entries(band, image, first, last)
        if self.gradient is not None:
            band.adjoint()
            ends = first == 0, last == self.size[0]
            if not self.resized:
                into = self.gradient[image, :, first:last]  # (C, n, W)
                self._through_softmax(band, ends, into.movedim(0, 1))
                return
            classes = self.gradient.shape[1]
            into = self.gradient.new_empty(classes, last - first, self.size[1])
            self._through_softmax(band, ends, into.movedim(0, 1))
            self.upsampled.add_gradient(first, into[None])

    def _softmax(self, band: Band, image: int, first: int, last: int) -> None:
        """Write the probabilities of a band, with replicated borders."""
        reach, (rows, columns) = self.stencil.reach, self.size
        above, below = max(first - 2 * reach, 0), min(last + 2 * reach, rows)
        start = above - first + 2 * reach
        stop = start + below - above
        padded = band.padded  # (n + 4r, C, W + 2r)
        inside = padded[start:stop, :, reach : reach + columns]
        if self.resized:
            logits = self.upsampled.rows(above, below)[0]  # (C, n, W)
        else:
            logits = self.logits[image, :, above:below]
        inside.copy_(logits.movedim(0, 1))
        if self.void is not None:
            low, high = (self.void_starts[image * rows + line] for line in (above, below))
            if low < high:
                line, column = (each[low:high] for each in self.void)
                # (n, C, W + 2r) -> (n, W + 2r, C)
                padded.movedim(1, 2)[line + (start - above - image * rows), column] = 0
        padded[start:stop, :, :reach] = inside[:, :, :1]
        padded[start:stop, :, reach + columns :] = inside[:, :, -1:]
        if start > 0:
            padded[:start] = padded[start]
        if stop < len(padded):
            padded[stop:] = padded[stop - 1]
        torch.softmax(padded, 1, out=band.probabilities)

    def _add_entries(self, band: Band, image: int, first: int, last: int) -> None:
        """Add the errors at the entries of a band to the sum and to the weighted maps."""
        reach, rows = self.stencil.reach, self.size[0]
        lines = (max(first - reach, 0), first, last, min(last + reach, rows))
        start, low, high, stop = (self.starts[image * rows + line] for line in lines)
        if start == stop:
            return
        entries, mixture = self.labels.entries, self.stencil.mixture
        places = self.places[start:stop] + (2 * reach - first - image * rows) * band.stride
        # (2, 2) @ (2, n)
        error = mixture @ torch.stack([each[places] for each in band.maps])
        error -= entries.slopes[:, start:stop]
        error *= entries.masks[:, start:stop]
        self.sums[0] += self.scales[0] * error[:, low - start : high - start].square().sum()
        changes = (2 * self.scales[0] * mixture.T) @ error
        for each, change in zip(band.weighted, changes, strict=True):
            each.index_add_(0, places, change)

    def _through_softmax(self, band: Band, ends: tuple[bool, bool], into: Tensor) -> None:
        """Turn the gradient of a band's probabilities into that of its logits.

        Args:
            band: The band, of which the adjoint was taken.
            ends: Whether the band holds the first row of the image, and the last one.
            into: (n, C, W), overwritten with the result.
        """
        reach, columns = self.stencil.reach, into.shape[2]
        found, own = band.found, band.own_found  # (n + 4r, C, W + 2r), (n, C, W + 2r)
        # what fell on the replicated borders belongs to the pixels that were replicated
        if ends[0]:
            own[0] += found[reach : 2 * reach].sum(0)
        if ends[1]:
            own[-1] += found[-2 * reach : -reach].sum(0)
        own[:, :, reach] += own[:, :, :reach].sum(2)
        own[:, :, -reach - 1] += own[:, :, -reach:].sum(2)
        # p (g - sum_c p_c g_c)
        torch.mul(own, band.own_probabilities, out=band.own_products)
        total = band.own_products.sum(1, keepdim=True)  # (n, 1, W + 2r)
        inside = slice(reach, reach + columns)
        parts = (each[:, :, inside] for each in (band.own_products, band.own_probabilities, total))
        torch.addcmul(*parts, value=-1, out=into)
