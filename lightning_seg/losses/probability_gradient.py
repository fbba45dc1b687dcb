"""The convolution-based probability gradient loss: probabilities change where the labels do.

With class probabilities P, one-hot labels Y, and an edge kernel K and its transpose as the two
directions d,

    L = mean over entries (class c, direction d, pixel x) with (K_d * Y_c)(x) != 0
        of ((K_d * P_c)(x) - (K_d * Y_c)(x))^2
    K[dy, dx] = dx / (dx^2 + dy^2), K[0, 0] = 0

where * is cross-correlation with replicated borders. K of size 3 is half of Sobel's operator.

Beyond the paper, a term against false edges can be added: with the mean over the labelled pixels x
at which no label changes,

    L + w mean_x sum_c,d (K_d * P_c)(x)^2

Convolution-based Probability Gradient Loss for Semantic Segmentation (2024, arXiv 2404.06704).

Differences from the authors' code: the test (K_d * Y_c)(x) != 0 is computed in integers, because in
floating point rounding errors pass it at sizes 5 and 7. Where no entry exists the loss is 0, and
NaN in the authors' code.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_seg.errors import SetupError, require_one_of, require_range
from lightning_seg.losses.block_cross_entropy import fitting
from lightning_seg.losses.boundary_sum import BoundarySum
from lightning_seg.losses.false_edges import EdgeMeans, FoundLabels
from lightning_seg.losses.label_gradients import (
    EdgeKernel,
    VoidRule,
    find_entries,
    prepare_labels,
    without_void,
)
from lightning_seg.numerics import at_least_float32, mean_factors, mean_of, resize


def probability_gradient_loss(
    logits: Tensor,
    target: Tensor,
    kernel_size: int = 3,
    void: VoidRule = "strict",
    ignore_index: int = 255,
    normalize: bool = False,
    across_ranks: bool = False,
    form: Literal["auto", "sparse", "dense"] = "auto",
    false_edges: float = 0.0,
) -> Tensor:
    """Return the mean squared difference of the gradients of probabilities and labels.

    Logits may be smaller than the labels, which are then those of bilinear upsampling with
    `align_corners=False`. The sparse form upsamples only the pixels near boundaries, or with
    `false_edges` some rows at a time.

    Args:
        logits: (B, C, h, w) with h <= H and w <= W, any floating dtype; computed in float32 or
            wider.
        target: (B, H, W) int64 class ids in [0, C), or `ignore_index`.
        kernel_size: Side of the kernel in pixels: 3, 5 or 7.
        void: How void pixels count. `strict` leaves out every pixel whose window holds a void
            pixel. `reference` treats void pixels as pixels of no class, which makes edges around
            them, as in the authors' code. `nearest` gives void pixels the label of the nearest
            labelled pixel (Euclidean; the smallest class id among equally near ones) and leaves
            out only the void pixels themselves.
        ignore_index: The class id of void pixels.
        normalize: Divide the kernel by the sum of its positive values (2, 4.2 and 6.436 for the
            three sizes). Gradients then lie in [-1, 1], and one loss weight serves all sizes.
        across_ranks: Average over the entries of all processes. The average of the processes'
            gradients, which DDP takes, is then the gradient of one process with all images.
        form: `sparse` visits only the entries of the sum, `dense` convolves all pixels and is
            deterministic on GPUs, `auto` is `sparse` on CPUs and `dense` elsewhere.
        false_edges: Weight w of the term against false edges, at least 0. The term is not the
            paper's: it is the mean, over the labelled pixels without an entry, of the squared
            gradients of all class probabilities. The pixels are those that `void` lets count.

    Returns:
        A scalar, at least 0; 0 with a zero gradient where no label changes and `false_edges` is 0.

    Raises:
        SetupError: `kernel_size` or `void` is none of the choices, or `false_edges` is negative.
        ValueError: The shapes do not fit.
        IndexError: On CPUs, a class id is neither in [0, C) nor `ignore_index`.

    Examples:
        A straight edge in 2x2 labels. Across the edge the labels of the two classes have the
        gradients 2 and -2 (1/2 + 1 + 1/2); uniform probabilities have the gradient 0.

        >>> target = torch.tensor([[[0, 1], [0, 1]]])
        >>> probability_gradient_loss(torch.zeros(1, 2, 2, 2), target)
        tensor(4.)

        Probabilities of 1/2 that rise to almost 1 where the labels stay the same, in one row. The
        gradients of both classes are 2 (1 - 1/2) and -1 at two of the four pixels: the mean over
        the pixels is (1 + 1) 2 / 4.

        >>> logits = torch.zeros(1, 2, 1, 4)
        >>> logits[0, 0, 0, 2:] = 99
        >>> flat = torch.zeros(1, 1, 4, dtype=torch.int64)
        >>> probability_gradient_loss(logits, flat, false_edges=1.0)
        tensor(1.)
    """
    edges, false = probability_gradient_terms(
        logits, target, kernel_size, void, ignore_index, normalize, across_ranks, form, false_edges
    )
    return edges if false is None else edges + false_edges * false


def probability_gradient_terms(
    logits: Tensor,
    target: Tensor,
    kernel_size: int = 3,
    void: VoidRule = "strict",
    ignore_index: int = 255,
    normalize: bool = False,
    across_ranks: bool = False,
    form: Literal["auto", "sparse", "dense"] = "auto",
    false_edges: float = 0.0,
) -> tuple[Tensor, Tensor | None]:
    """Return the loss of the paper, and the term against false edges without its weight.

    The arguments are those of `probability_gradient_loss`. The second value is None where
    `false_edges` is 0. Both values may be weighted freely. The backward pass is fastest for the
    first value plus `false_edges` times the second, times any number: the sparse form computes the
    gradient for this ratio in the forward pass, and again for another ratio.
    """
    _require(kernel_size, void)
    require_range(0, math.inf, false_edges=false_edges)
    logits, by_blocks = fitting(at_least_float32(logits), target)
    sparse = form == "sparse" or (form == "auto" and logits.device.type == "cpu")
    if by_blocks and not sparse:
        logits = resize(logits, target.shape[1:])
    _require_classes(target, logits.shape[1], ignore_index)
    kernel = EdgeKernel.of(kernel_size, normalize, logits)
    # (B, H, W) labels with -1 for void, and the pixels that may have entries
    labels, candidates = prepare_labels(target, void, ignore_index, kernel_size // 2)
    with torch.autocast(logits.device.type, enabled=False):
        if sparse:
            entries = find_entries(labels, candidates, kernel)
            if false_edges > 0:
                known = labels >= 0 if candidates is None else None
                found = FoundLabels(entries.candidates & ~entries.boundary(), known, entries)
                return _both_means(logits, found, kernel, false_edges, across_ranks)
            # scalars: the sum of squares over all entries, and the number of entries
            size = (target.shape[1], target.shape[2])
            total: Tensor = BoundarySum.apply(logits, entries, kernel, size)
            return mean_of(total, entries.counts.sum(), across_ranks), None
        squares, masks, flat = _dense_squares(logits, labels, candidates, kernel)
        edges = mean_of((squares * masks).sum(), masks.sum(), across_ranks)
        if false_edges == 0:
            return edges, None
        # where no label changes, the difference of gradients is that of the probabilities
        return edges, mean_of((squares * flat[:, None, None]).sum(), flat.sum(), across_ranks)


def _both_means(
    logits: Tensor, found: FoundLabels, kernel: EdgeKernel, weight: float, across_ranks: bool
) -> tuple[Tensor, Tensor]:
    """Return the mean over the entries and the mean over the flat pixels, in one pass."""
    counts = torch.stack([found.entries.counts.sum(), found.flat.sum()])  # (2,)
    factors = mean_factors(counts, logits.dtype, across_ranks)
    own = EdgeMeans.apply(logits, found, kernel, factors, weight)  # (2,)
    edges, false = mean_of(own, torch.ones_like(counts), across_ranks)
    return edges, false


def boundary_pixels(
    target: Tensor, kernel_size: int = 3, void: VoidRule = "strict", ignore_index: int = 255
) -> Tensor:
    """Return the pixels that have at least one entry in `probability_gradient_loss`.

    Args:
        target: (B, H, W) int64 class ids, or `ignore_index`.
        kernel_size: Side of the kernel in pixels: 3, 5 or 7.
        void: How void pixels count: `strict`, `reference` or `nearest`; see
            `probability_gradient_loss`.
        ignore_index: The class id of void pixels.

    Returns:
        (B, H, W) bool.

    Raises:
        SetupError: `kernel_size` or `void` is none of the choices.

    Examples:
        >>> boundary_pixels(torch.tensor([[[0, 0, 0, 1]] * 2])).int().tolist()
        [[[0, 0, 1, 1], [0, 0, 1, 1]]]
    """
    _require(kernel_size, void)
    kernel = EdgeKernel.of(kernel_size, False, torch.empty(0, device=target.device))
    labels, candidates = prepare_labels(target, void, ignore_index, kernel_size // 2)
    with torch.autocast(target.device.type, enabled=False):  # which would round the integers
        return find_entries(labels, candidates, kernel).boundary()


def _require(kernel_size: int, void: str) -> None:
    """Raise an error for a kernel size or a void rule that is none of the choices."""
    if kernel_size not in (3, 5, 7):
        raise SetupError(f"kernel_size must be 3, 5 or 7, not {kernel_size}", option="kernel_size")
    require_one_of("strict", "reference", "nearest", void=void)


def _require_classes(target: Tensor, classes: int, ignore_index: int) -> None:
    """Raise an error for class ids out of range, on CPUs; reading them would make a GPU wait."""
    if target.device.type != "cpu" or target.numel() == 0:
        return
    low, high = torch.aminmax(torch.where(target == ignore_index, 0, target))
    if low < 0 or high >= classes:
        raise IndexError(
            f"target holds {int(low)}..{int(high)}; expected 0..{classes - 1} or {ignore_index}"
        )


def _dense_squares(
    logits: Tensor, labels: Tensor, candidates: Tensor | None, kernel: EdgeKernel
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the squared differences of all gradients, by convolution of all class maps.

    Returns:
        (B, C, 2, H, W) squares, bool of that shape where an entry is, and (B, H, W) bool where a
        pixel may have an entry and has none.
    """
    classes = logits.shape[1]
    if candidates is None:
        # Void pixels are in no window that counts. Zeros keep NaN in their logits from spreading.
        logits = torch.where((labels >= 0)[:, None], logits, 0)
        candidates = without_void(labels, kernel.size)
    # (B, H, W) -> (B, C, H, W), zero vectors at void pixels
    truth = F.one_hot(labels.clamp(min=0), classes).movedim(-1, 1).to(logits.dtype)
    truth = truth * (labels >= 0)[:, None]
    with torch.no_grad():  # (B, C, 2, H, W)
        masks = (_convolve(truth, kernel.integer, kernel.size) != 0) & candidates[:, None, None]
    gradient = _convolve(logits.softmax(1) - truth, kernel.value, kernel.size)
    return gradient.square(), masks, candidates & ~masks.any(2).any(1)


def _convolve(maps: Tensor, kernel: Tensor, size: int) -> Tensor:
    """Cross-correlate every class map with the kernel of both directions.

    Args:
        maps: (B, C, H, W).
        kernel: (2, size^2).
        size: Side of the kernel.

    Returns:
        (B, C, 2, H, W).
    """
    images, classes, rows, columns = maps.shape
    padded = F.pad(maps, [size // 2] * 4, mode="replicate")
    weight = kernel.view(2, 1, size, size).repeat(classes, 1, 1, 1)
    # TensorFloat-32 would lose the digits of small differences.
    with torch.backends.cudnn.flags(allow_tf32=False):
        gradients = F.conv2d(padded, weight, groups=classes)
    return gradients.view(images, classes, 2, rows, columns)


class ProbabilityGradientLoss(nn.Module):
    """`probability_gradient_loss` as a module that holds the constants.

    Args:
        kernel_size: Side of the kernel in pixels: 3, 5 or 7.
        void: How void pixels count. `strict` leaves out every pixel whose window holds a void
            pixel. `reference` treats void pixels as pixels of no class, as in the authors' code.
            `nearest` gives void pixels the label of the nearest labelled pixel and leaves out only
            the void pixels themselves.
        ignore_index: The class id of void pixels.
        normalize: Divide the kernel by the sum of its positive values. Gradients then lie in
            [-1, 1], and one loss weight serves all sizes.
        across_ranks: In training mode, average over the entries of all processes.
        form: `sparse` visits only the entries of the sum, `dense` convolves all pixels and is
            deterministic on GPUs, `auto` is `sparse` on CPUs and `dense` elsewhere.
        false_edges: Weight of the term against false edges, at least 0, which is not the paper's:
            the mean, over the labelled pixels at which no label changes, of the squared gradients
            of all class probabilities.

    Raises:
        SetupError: `kernel_size` or `void` is none of the choices, or `false_edges` is negative.

    Shape:
        (B, C, H, W) logits and (B, H, W) class ids -> a scalar.

    Examples:
        >>> loss = ProbabilityGradientLoss(kernel_size=3)
        >>> loss(torch.zeros(1, 2, 2, 2), torch.tensor([[[0, 1], [0, 1]]]))
        tensor(4.)
    """

    takes_smaller_logits = True

    def __init__(
        self,
        kernel_size: int = 3,
        void: VoidRule = "strict",
        ignore_index: int = 255,
        normalize: bool = False,
        across_ranks: bool = False,
        form: Literal["auto", "sparse", "dense"] = "auto",
        false_edges: float = 0.0,
    ) -> None:
        super().__init__()
        _require(kernel_size, void)
        require_range(0, math.inf, false_edges=false_edges)
        self.kernel_size = kernel_size
        self.void: VoidRule = void
        self.ignore_index = ignore_index
        self.normalize = normalize
        self.across_ranks = across_ranks
        self.form: Literal["auto", "sparse", "dense"] = form
        self.false_edges = false_edges

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss; see `probability_gradient_loss`.

        Args:
            logits: (B, C, H, W), any floating dtype.
            target: (B, H, W) int64 class ids in [0, C), or `ignore_index`.

        Returns:
            A scalar, at least 0.
        """
        edges, false = self.terms(logits, target)
        return edges if false is None else edges + self.false_edges * false

    def terms(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the loss of the paper, and the term against false edges without its weight.

        Args:
            logits: (B, C, H, W), any floating dtype.
            target: (B, H, W) int64 class ids in [0, C), or `ignore_index`.

        Returns:
            Two scalars; the second is None where `false_edges` is 0. The backward pass is fastest
            where the second has `false_edges` times the weight of the first.
        """
        return probability_gradient_terms(
            logits,
            target,
            self.kernel_size,
            self.void,
            self.ignore_index,
            self.normalize,
            self.across_ranks and self.training,
            self.form,
            self.false_edges,
        )

    def boundary(self, target: Tensor) -> Tensor:
        """Return the pixels that have an entry in the loss; see `boundary_pixels`.

        Args:
            target: (B, H, W) int64 class ids, or `ignore_index`.

        Returns:
            (B, H, W) bool.
        """
        return boundary_pixels(target, self.kernel_size, self.void, self.ignore_index)

    @torch.no_grad()
    def gradient_sizes(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sizes of the gradients of labels and of probabilities, to look at.

        The size is the length of the vector of a pixel's gradients, over classes and directions. It
        is divided by that of a straight horizontal edge between two classes, which therefore has 1.
        The classes are visited one by one, so that memory does not grow with their number.

        Args:
            logits: (B, C, H, W), any floating dtype.
            target: (B, H, W) int64 class ids in [0, C), or `ignore_index`.

        Returns:
            Two times (B, H, W), NaN at pixels that have no entry because of void.
        """
        kernel = EdgeKernel.of(self.kernel_size, self.normalize, at_least_float32(logits))
        reach = self.kernel_size // 2
        labels, counted = prepare_labels(target, self.void, self.ignore_index, reach)
        if counted is None:
            counted = without_void(labels, self.kernel_size)
        maps = at_least_float32(logits).softmax(1)
        squares = maps.new_zeros(2, *target.shape)
        for index in range(maps.shape[1]):
            # (B, 2, H, W) labels and probabilities of a class -> (B, 2, 2, H, W) gradients
            pair = torch.stack([(labels == index).to(maps.dtype), maps[:, index]], 1)
            with torch.autocast(maps.device.type, enabled=False):
                gradients = _convolve(pair, kernel.value, kernel.size)
            squares += gradients.square().sum(2).movedim(1, 0)
        edge = math.sqrt(2) * kernel.value[0].clamp(min=0).sum()
        truth, predicted = (squares.sqrt() / edge).where(counted, math.nan)
        return truth, predicted
