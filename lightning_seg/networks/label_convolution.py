"""A convolution of labels: what a layer returns for one-hot vectors, computed from class ids.

A one-hot vector selects one column of a kernel, so that the convolution of a label map is a sum of
kernel slices: one for each place of the kernel. On CPUs the sum takes a fifth of the time of the
convolution at 21 classes, and its cost does not depend on the number of classes.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lightning_seg.numerics import at_least_float32


def label_convolution(labels: Tensor, layer: nn.Conv2d) -> Tensor:
    """Return the output of a convolution for the one-hot vectors of labels.

    On CPUs the result is a sum of kernel slices. On other devices, under autocast, in compiled code
    and for layers with groups, dilation, hooks or a padding that is not zero, one-hot vectors are
    made and the layer is called.

    Args:
        labels: (B, H, W) int64 class ids in [0, C] for a layer of C input channels. The id C stands
            for void pixels, whose vector is zero.
        layer: The convolution.

    Returns:
        (B, O, h, w), the shape and dtype that the layer returns for (B, C, H, W) one-hot vectors.

    Raises:
        IndexError: On CPUs, a class id is not in [0, C].

    Examples:
        A kernel of one pixel returns its slice of the class, and the bias alone for void.

        >>> layer = nn.Conv2d(2, 1, 1)
        >>> _ = layer.weight.data.copy_(torch.tensor([3.0, 5.0]).view(1, 2, 1, 1))
        >>> _ = layer.bias.data.fill_(0.5)
        >>> label_convolution(torch.tensor([[[0, 1, 2]]]), layer).tolist()
        [[[[3.5, 5.5, 0.5]]]]
    """
    if not _can_gather(labels, layer):
        return cast(Tensor, layer(_one_hot(labels, layer)))
    low, high = labels.aminmax()
    if low < 0 or high > layer.in_channels:
        raise IndexError(
            f"class ids are in [{int(low)}, {int(high)}]; expected [0, {layer.in_channels}]"
        )
    found: Tensor = _LabelConvolution.apply(
        labels, layer.weight, layer.bias, layer.stride, layer.padding
    )
    return found


def _can_gather(labels: Tensor, layer: nn.Conv2d) -> bool:
    plain = type(layer) is nn.Conv2d and not layer._forward_pre_hooks and not layer._forward_hooks
    zeros = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    whole = layer.groups == 1 and layer.dilation == (1, 1)
    here = labels.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    return plain and zeros and whole and here and not torch.compiler.is_compiling()


def _one_hot(labels: Tensor, layer: nn.Conv2d) -> Tensor:
    """Return the (B, C, H, W) one-hot vectors of (B, H, W) class ids, zero for the id C."""
    known = (labels < layer.in_channels)[:, None]
    shape = (labels.shape[0], layer.in_channels, *labels.shape[1:])
    maps = torch.zeros(shape, dtype=layer.weight.dtype, device=labels.device)
    return maps.scatter_(1, labels[:, None].where(known, 0), known.to(maps.dtype))


class _LabelConvolution(torch.autograd.Function):
    """The sum of kernel slices, and the sums of output gradients that fall on each slice."""

    @staticmethod
    def forward(
        ctx: Any,
        labels: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> Tensor:
        out, classes, *kernel = weight.shape
        slices = _slices(labels, classes, kernel, stride, padding)  # (B, h, w, K)
        # (O, C, kh, kw) -> (K (C + 1), O), with a slice of zeros for void
        table = F.pad(weight, (0, 0, 0, 0, 0, 1)).permute(2, 3, 1, 0).reshape(-1, out).contiguous()
        flat = slices.flatten(0, 2)
        found = F.embedding_bag(flat, at_least_float32(table), mode="sum").to(weight.dtype)
        if bias is not None:
            found += bias
        ctx.save_for_backward(flat)
        ctx.shape, ctx.dtype, ctx.has_bias = weight.shape, weight.dtype, bias is not None
        # (B h w, O) -> (B, O, h, w) channels-last; no view, because a ReLU in place may follow
        shown = found.view(*slices.shape[:3], out).permute(0, 3, 1, 2)
        return found.new_empty(0).set_(
            found.untyped_storage(),
            0,
            shown.shape,
            shown.stride(),
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (flat,) = ctx.saved_tensors
        out, classes, *kernel = ctx.shape
        # (B, O, h, w) -> (B h w, O)
        gradient = at_least_float32(gradient.permute(0, 2, 3, 1).reshape(-1, out))
        of_weight = of_bias = None
        if ctx.needs_input_grad[1]:
            sums = _sums(flat, gradient, classes + 1).view(*kernel, classes + 1, out)
            of_weight = sums[:, :, :classes].permute(3, 2, 0, 1).to(ctx.dtype).contiguous()
        if ctx.has_bias and ctx.needs_input_grad[2]:
            of_bias = gradient.sum(0).to(ctx.dtype)
        return None, of_weight, of_bias, None, None


def _slices(
    labels: Tensor,
    classes: int,
    kernel: list[int],
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Tensor:
    """Return the numbers of the kernel slices below every output, (B, h, w, K) int32.

    The slice of place k and class c has the number k (C + 1) + c.
    """
    padded = F.pad(labels.int(), (padding[1], padding[1], padding[0], padding[0]), value=classes)
    windows = padded.unfold(1, kernel[0], stride[0]).unfold(2, kernel[1], stride[1])
    places = torch.arange(kernel[0] * kernel[1], dtype=torch.int32) * (classes + 1)
    slices = torch.empty(windows.shape, dtype=torch.int32)
    return torch.add(windows, places.view(*kernel), out=slices).flatten(3)


def _sums(flat: Tensor, gradient: Tensor, ids: int) -> Tensor:
    """Return the sum of the output gradients of every slice, (K ids, O).

    Most windows of a label map hold one class only. Their gradients are added up once for all
    places of the kernel, and only the others once for each place.

    Args:
        flat: (N, K) numbers of the slices below every output.
        gradient: (N, O) gradients of the outputs.
        ids: Number of class ids, void included.
    """
    places, out = flat.shape[1], gradient.shape[1]
    uniform = (flat[:, 1:] - flat[:, :-1] == ids).all(1)
    # the last id is void, and nobody needs its sum
    shared = gradient.new_zeros(ids, out)
    shared.index_add_(0, flat[:, 0].where(uniform, ids - 1), gradient)
    shared[ids - 1] = 0
    sums = shared.repeat(places, 1)
    mixed = (~uniform).nonzero()[:, 0]
    rows, flat = gradient[mixed], flat[mixed]
    for place in range(places):
        sums.index_add_(0, flat[:, place], rows)
    return sums
