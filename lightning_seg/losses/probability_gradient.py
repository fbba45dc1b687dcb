"""Convolution-based probability gradients: class probabilities change where the labels do.

Convolution-based Probability Gradient Loss for Semantic Segmentation (2024, arXiv 2404.06704). With
class probabilities P, one-hot labels Y, and an edge kernel K and its transpose as two directions d,

    L = mean over entries (class c, direction d, pixel x) with (K_d * Y_c)(x) != 0
        of ((K_d * P_c)(x) - (K_d * Y_c)(x))^2
    K[dy, dx] = dx / (dx^2 + dy^2), K[0, 0] = 0

in cross-correlation with replicated borders; size 3 is half of Sobel's operator. Which entries
count is decided by integer arithmetic on the labels: the authors' test `!= 0` in floating point
takes rounding for edges at sizes 5 and 7. Without an edge the loss is 0, where theirs is NaN.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lightning_seg.errors import SetupError
from lightning_seg.numerics import at_least_float32, require_fit
from lightning_seg.processes import world_size

VoidRule = Literal["strict", "reference", "nearest"]
_VOID = -1


def probability_gradient_loss(
    logits: Tensor,
    target: Tensor,
    kernel_size: int = 3,
    void: VoidRule = "strict",
    ignore_index: int = 255,
    normalize: bool = False,
    across_ranks: bool = False,
    form: Literal["auto", "sparse", "dense"] = "auto",
) -> Tensor:
    """Mean squared difference of the gradients of probabilities and labels at label boundaries.

    Args:
        logits: (B, C, H, W), any floating dtype; computed in float32 at least.
        target: (B, H, W) int64 class ids in [0, C), or `ignore_index`.
        kernel_size: 3, 5 or 7.
        void: `strict` leaves out every pixel whose window holds a void pixel; `reference` lets
            void pixels be of no class, which makes edges around them, as the authors' code does;
            `nearest` gives them the nearest label (Euclidean, of equally near ones the
            smallest) and leaves out only themselves.
        ignore_index: The id of void pixels.
        normalize: Divide the kernel by the sum of its positive values (2, 4.2 and 6.436), so that
            gradients lie in [-1, 1] and one loss weight serves all sizes.
        across_ranks: Average over the entries of all processes; averaging the processes'
            gradients, as DDP does, gives that of one process with all images.
        form: `sparse` visits only the entries that count, `dense` convolves everything and is
            deterministic on GPUs; `auto` takes `sparse` on CPUs.

    Returns:
        A scalar, at least 0; 0 with a zero gradient where there is no boundary.

    Raises:
        ValueError: Another kernel size or void rule, or shapes that do not fit.
        IndexError: On CPUs, a target that is no class.

    Example:
        A straight edge and uniform probabilities: label gradients are 2 and -2, those of the
        probabilities 0.

        >>> target = torch.tensor([[[0, 0, 1, 1]] * 4])
        >>> probability_gradient_loss(torch.zeros(1, 2, 4, 4), target)
        tensor(4.)
    """
    require_fit(logits, target)
    _require(kernel_size, void)
    logits = at_least_float32(logits)
    _require_classes(target, logits.shape[1], ignore_index)
    kernel = _Kernel.of(kernel_size, normalize, logits)
    labels, centre = _prepare(target, void, ignore_index, kernel_size // 2)
    with torch.autocast(logits.device.type, enabled=False):
        if form == "sparse" or (form == "auto" and logits.device.type == "cpu"):
            entries = _find_entries(labels, centre, kernel)
            total: Tensor = _SparseSum.apply(logits, entries, kernel.value)
            count = entries.counts.sum()
        else:
            total, count = _dense_sum(logits, labels, centre, kernel)
    if not across_ranks or world_size() == 1:
        return total / count.clamp(min=1)
    everything = torch.stack([total.detach().double(), count.double()])
    dist.all_reduce(everything)
    count = everything[1].clamp(min=1)
    mine = total * (dist.get_world_size() / count).to(total.dtype)
    return mine + ((everything[0] / count).to(total.dtype) - mine).detach()


def boundary_pixels(
    target: Tensor, kernel_size: int = 3, void: VoidRule = "strict", ignore_index: int = 255
) -> Tensor:
    """Return (B, H, W) bool: where `probability_gradient_loss` has at least one entry.

    Args:
        target: (B, H, W) int64 class ids, or `ignore_index`.
        kernel_size: 3, 5 or 7.
        void: See `probability_gradient_loss`.
        ignore_index: The id of void pixels.
    """
    _require(kernel_size, void)
    kernel = _Kernel.of(kernel_size, False, torch.empty(0, device=target.device))
    labels, centre = _prepare(target, void, ignore_index, kernel_size // 2)
    entries = _find_entries(labels, centre, kernel)
    found = torch.zeros(target.numel(), dtype=torch.bool, device=target.device)
    found[entries.pixels[entries.at[entries.counts > 0]]] = True
    return found.view_as(target)


class _Kernel(NamedTuple):
    """K for both directions, over the taps of its window row by row."""

    size: int
    value: Tensor
    """(2, size^2)."""
    integer: Tensor
    """The same times a number that makes all of it whole, at most 780."""

    @staticmethod
    def of(size: int, normalize: bool, like: Tensor) -> _Kernel:
        """Return the kernel of a size, for tensors like this one."""
        reach = range(-(size // 2), size // 2 + 1)
        squares = [[dx * dx + dy * dy for dx in reach] for dy in reach]
        whole = math.lcm(
            *(
                square // math.gcd(square, dx)
                for row in squares
                for square, dx in zip(row, reach, strict=True)
                if square
            )
        )
        across = [
            dx * whole // square if square else 0
            for row in squares
            for square, dx in zip(row, reach, strict=True)
        ]
        integer = torch.tensor(across, device=like.device).view(size, size)
        integer = torch.stack([integer, integer.T]).flatten(1)
        scale = integer[0].clamp(min=0).sum() if normalize else whole
        integer = integer.to(like.dtype)
        return _Kernel(size, integer / scale, integer)


def _require(kernel_size: int, void: str) -> None:
    if kernel_size not in (3, 5, 7):
        raise SetupError(f"kernel_size must be 3, 5 or 7, not {kernel_size}")
    if void not in ("strict", "reference", "nearest"):
        raise SetupError(f"void must be strict, reference or nearest, not {void!r}")


def _require_classes(target: Tensor, classes: int, ignore_index: int) -> None:
    """Refuse what is no class, where looking costs no waiting for a device."""
    if target.device.type != "cpu" or target.numel() == 0:
        return
    low, high = torch.aminmax(torch.where(target == ignore_index, 0, target))
    if low < 0 or high >= classes:
        raise IndexError(
            f"target holds {int(low)}..{int(high)}; expected 0..{classes - 1} or {ignore_index}"
        )


def _prepare(
    target: Tensor, void: VoidRule, ignore_index: int, reach: int
) -> tuple[Tensor, Tensor | None]:
    """Return labels with void as -1, and the pixels that may count.

    None stands for the pixels that have no void in their window.
    """
    valid = target != ignore_index
    labels = torch.where(valid, target, _VOID)
    if void == "strict":
        return labels, None
    return (_fill(labels, reach) if void == "nearest" else labels), valid


def _fill(labels: Tensor, reach: int) -> Tensor:
    """Give void pixels that a valid pixel's window reaches the nearest label.

    Of labels at one distance the smallest is taken, so that nothing depends on a direction.
    """
    rows, columns = labels.shape[1:]
    at = torch.nonzero(labels == _VOID)
    image, row, column = at.unbind(1)
    by_distance: dict[int, list[tuple[int, int]]] = {}
    for dy in range(-2 * reach, 2 * reach + 1):
        for dx in range(-2 * reach, 2 * reach + 1):
            # the corner of the window is the farthest that a valid pixel may be
            if 0 < dy * dy + dx * dx <= 2 * reach * reach:
                by_distance.setdefault(dy * dy + dx * dx, []).append((dy, dx))
    found = torch.full_like(row, _VOID)
    none = torch.iinfo(labels.dtype).max
    for distance in sorted(by_distance):
        nearest = torch.full_like(row, none)
        for dy, dx in by_distance[distance]:
            y, x = row + dy, column + dx
            inside = (y >= 0) & (y < rows) & (x >= 0) & (x < columns)
            label = labels[image, y.clamp(0, rows - 1), x.clamp(0, columns - 1)]
            nearest = torch.where(inside & (label >= 0) & (label < nearest), label, nearest)
        found = torch.where((found == _VOID) & (nearest < none), nearest, found)
    filled = labels.clone()
    filled[image, row, column] = found
    return filled


def _window_max(values: Tensor, size: int) -> Tensor:
    """Return the largest of (B, H, W) values in the window around each pixel."""
    along = F.max_pool2d(values[:, None], (1, size), 1, (0, size // 2))
    return F.max_pool2d(along, (size, 1), 1, (size // 2, 0))[:, 0]


class _Entries(NamedTuple):
    """What counts: E pairs of one of N pixels and a class, with one gradient per direction."""

    pixels: Tensor
    """(N,) positions in the flattened (B, H, W)."""
    windows: Tensor
    """(T, N) positions of the T taps of each pixel's window."""
    at: Tensor
    """(E,) which of the pixels."""
    classes: Tensor
    """(E,) class ids."""
    truth: Tensor
    """(T, E), 1 where a tap has the class."""
    masks: Tensor
    """(2, E), 1 where the label's gradient in a direction is not 0."""
    counts: Tensor
    """(E,) number of these."""


def _find_entries(labels: Tensor, centre: Tensor | None, kernel: _Kernel) -> _Entries:
    """List the pixels whose window holds several labels with each class that it holds.

    Args:
        labels: (B, H, W), void as -1.
        centre: (B, H, W) bool, the pixels that may count; None for those without void around.
        kernel: Says how large a window is.
    """
    reach = kernel.size // 2
    rows, columns = labels.shape[1:]
    labels = labels.to(torch.int32)
    values = labels.to(torch.float32)
    highest, lowest = _window_max(values, kernel.size), -_window_max(-values, kernel.size)
    several = (highest != lowest) & ((lowest > _VOID) if centre is None else centre)
    pixels = torch.nonzero(several.flatten())[:, 0]
    image, row = pixels // (rows * columns), pixels // columns % rows
    column = pixels % columns
    step = torch.arange(-reach, reach + 1, device=labels.device)[:, None]
    high = (row + step).clamp(0, rows - 1) * columns + image * (rows * columns)
    wide = (column + step).clamp(0, columns - 1)
    windows = (high[:, None] + wide).flatten(0, 1)
    held = labels.flatten()[windows]
    # the classes of each window in rising order; few windows hold more than two
    top = highest.flatten()[pixels].to(torch.int32)
    which = torch.arange(len(pixels), device=labels.device)
    last, rest = torch.full_like(top, _VOID), held
    none = torch.iinfo(torch.int32).max
    found = [(which[:0], last[:0])]
    while len(which):
        last = torch.where(rest > last, rest, none).amin(0)
        found.append((which, last))
        more = last < top[which]
        if not bool(more.all()):
            which, last, rest = which[more], last[more], rest[:, more]
    at, classes = (torch.cat(parts) for parts in zip(*found, strict=True))
    truth = (held[:, at] == classes).to(kernel.integer.dtype)
    masks = (kernel.integer @ truth != 0).to(kernel.integer.dtype)
    return _Entries(pixels, windows, at, classes.long(), truth, masks, masks.sum(0))


class _SparseSum(torch.autograd.Function):
    """The sum of squares over entries, on the probabilities of just the S pixels they touch."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, entries: _Entries, kernel: Tensor) -> Tensor:
        images, classes, rows, columns = logits.shape
        touched = torch.zeros(images * rows * columns, dtype=torch.bool, device=logits.device)
        touched[entries.windows.flatten()] = True
        places = [torch.nonzero(part)[:, 0] for part in touched.view(images, -1)]
        compact = touched.cumsum(0) - 1
        flat = logits.reshape(images, classes, -1)
        picked = [part.index_select(1, at) for part, at in zip(flat, places, strict=True)]
        probabilities = torch.cat(picked, 1).softmax(0)  # (C, S)
        index = compact[entries.windows][:, entries.at]
        index += entries.classes * probabilities.shape[1]
        difference = probabilities.flatten()[index] - entries.truth
        error = (kernel @ difference) * entries.masks
        if ctx.needs_input_grad[0]:
            gradient = torch.zeros_like(probabilities)
            gradient.view(-1).index_add_(0, index.flatten(), (kernel.T @ (2 * error)).flatten())
            gradient *= probabilities
            gradient -= probabilities * gradient.sum(0)
            ctx.save_for_backward(gradient, *places)
            ctx.shape = logits.shape
        return error.square().sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None]:
        compact, *places = ctx.saved_tensors
        images, classes, rows, columns = ctx.shape
        gradient = compact.new_zeros(images, classes, rows * columns)
        parts = (compact * outputs[0]).split([len(at) for at in places], 1)
        for image, at, part in zip(gradient, places, parts, strict=True):
            image.index_copy_(1, at, part)
        return gradient.view(ctx.shape), None, None


def _dense_sum(
    logits: Tensor, labels: Tensor, centre: Tensor | None, kernel: _Kernel
) -> tuple[Tensor, Tensor]:
    """Return the sum of squares and the number of entries, by convolution of all class maps."""
    classes = logits.shape[1]
    if centre is None:  # void pixels count nowhere, whatever their logits are
        logits = torch.where((labels >= 0)[:, None], logits, 0)
        centre = _window_max((labels < 0).float(), kernel.size) == 0
    truth = F.one_hot(labels.clamp(min=0), classes).movedim(-1, 1).to(logits.dtype)
    truth = truth * (labels >= 0)[:, None]
    with torch.no_grad():
        masks = (_convolve(truth, kernel.integer, kernel.size) != 0) & centre[:, None, None]
    gradient = _convolve(logits.softmax(1) - truth, kernel.value, kernel.size)
    return (gradient.square() * masks).sum(), masks.sum()


def _convolve(maps: Tensor, kernel: Tensor, size: int) -> Tensor:
    """Return (B, C, 2, H, W): every class map under the kernel of both directions."""
    images, classes, rows, columns = maps.shape
    padded = F.pad(maps, [size // 2] * 4, mode="replicate")
    weight = kernel.view(2, 1, size, size).repeat(classes, 1, 1, 1)
    # reduced precision would lose the digits of small differences
    with torch.backends.cudnn.flags(allow_tf32=False):
        found = F.conv2d(padded, weight, groups=classes)
    return found.view(images, classes, 2, rows, columns)


class ProbabilityGradientLoss(nn.Module):
    """`probability_gradient_loss` with its constants.

    Args:
        kernel_size: 3, 5 or 7.
        void: `strict`, `reference` or `nearest`: how void pixels in a window count.
        ignore_index: The id of void pixels.
        normalize: Bring the kernels of all sizes to one scale.
        across_ranks: Average over the entries of all processes, in training mode.
        form: `auto`, `sparse` or `dense`: how it is computed.
    """

    def __init__(
        self,
        kernel_size: int = 3,
        void: VoidRule = "strict",
        ignore_index: int = 255,
        normalize: bool = False,
        across_ranks: bool = False,
        form: Literal["auto", "sparse", "dense"] = "auto",
    ) -> None:
        super().__init__()
        _require(kernel_size, void)
        self.kernel_size = kernel_size
        self.void: VoidRule = void
        self.ignore_index = ignore_index
        self.normalize = normalize
        self.across_ranks = across_ranks
        self.form: Literal["auto", "sparse", "dense"] = form

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of (B, C, H, W) logits on a (B, H, W) target, a scalar."""
        return probability_gradient_loss(
            logits,
            target,
            self.kernel_size,
            self.void,
            self.ignore_index,
            self.normalize,
            self.across_ranks and self.training,
            self.form,
        )

    def boundary(self, target: Tensor) -> Tensor:
        """Return (B, H, W) bool, the pixels that the loss looks at."""
        return boundary_pixels(target, self.kernel_size, self.void, self.ignore_index)
