"""Numerical conventions that losses and networks share: precision, shapes, means over valid pixels.

This module imports no loss and no network, so that these need not import each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from lightning_seg.processes import world_size


def at_least_float32(values: Tensor) -> Tensor:
    """Return values of less than 32 bits as float32, and all others unchanged.

    Logarithms, exponentials and sums over pixels lose too many digits in half precision.

    Args:
        values: Any shape and dtype.

    Returns:
        The same shape; float32, or the dtype of `values` where that is wider.

    Examples:
        >>> at_least_float32(torch.zeros(2, dtype=torch.bfloat16)).dtype
        torch.float32
        >>> at_least_float32(torch.zeros(2, dtype=torch.float64)).dtype
        torch.float64
    """
    if torch.promote_types(values.dtype, torch.float32) != values.dtype:
        return values.float()
    return values


def require_fit(logits: Tensor, target: Tensor) -> None:
    """Raise an error unless a target has one class id per pixel of the logits.

    Args:
        logits: Expected to be (B, C, H, W).
        target: Expected to be (B, H, W).

    Raises:
        ValueError: The shapes do not fit; the message names both.
    """
    if logits.ndim != 4 or target.shape != logits.shape[:1] + logits.shape[2:]:
        raise ValueError(
            f"logits {tuple(logits.shape)} and target {tuple(target.shape)} do not fit: expected "
            "(B, C, H, W) and (B, H, W)"
        )


def resize(value: Tensor, size: Sequence[int]) -> Tensor:
    """Resize feature maps or logits bilinearly with `align_corners=False`.

    Args:
        value: (B, C, h, w), any floating dtype.
        size: Height and width of the result in pixels.

    Returns:
        (B, C, *size); `value` itself where it has that size.
    """
    size = tuple(size)
    # an exported network takes other sizes, too
    if tuple(value.shape[-2:]) == size and not torch.compiler.is_exporting():
        return value
    return F.interpolate(value, size=size, mode="bilinear", align_corners=False)


def masked_mean(values: Tensor, valid: Tensor | None, across_ranks: bool = False) -> Tensor:
    """Return the mean of the valid values.

    The sum is over `values * valid`, so values that are not valid must be finite as well.

    Args:
        values: Any shape, finite.
        valid: Bool, the shape of `values`, False for values to leave out; None counts all.
        across_ranks: Take the mean over the values of all processes; see `mean_of`.

    Returns:
        A scalar; 0 with a zero gradient where no value is valid.

    Raises:
        ValueError: `valid` has another shape than `values`.

    Examples:
        >>> masked_mean(torch.tensor([1.0, 3.0, 99.0]), torch.tensor([True, True, False])).item()
        2.0
    """
    if valid is None and not across_ranks:
        return values.mean()
    if valid is None:
        count = torch.full((), values.numel(), device=values.device)
        return mean_of(values.sum(), count, across_ranks)
    require_mask(values, valid)
    return mean_of((values * valid).sum(), valid.sum(), across_ranks)


def mean_of(total: Tensor, count: Tensor, across_ranks: bool = False, least: float = 1.0) -> Tensor:
    """Return the mean of values whose sum and number are given, here or over all processes.

    DDP averages the gradients of the processes. A mean of each process then weighs a process with
    few labelled pixels like one with many. With `across_ranks` the gradient of process r is that of
    R total_r / sum_r count_r for R processes, and the average of the gradients is the gradient of
    the mean over the values of all processes. The value is that mean. All processes must call this
    function the same number of times; they exchange two numbers, and no device is waited for.

    Args:
        total: The sum of the values, a scalar, or several sums of one shape.
        count: The number of values or the sum of their weights, without gradient; as `total`.
        across_ranks: Whether the mean is over the values of all processes.
        least: Smallest divisor, above 0: 1 for numbers, less for weights.

    Returns:
        The shape of `total`; 0 with a zero gradient where `total` and `count` are 0.

    Examples:
        >>> mean_of(torch.tensor(6.0), torch.tensor(4)).item()
        1.5
    """
    if not across_ranks or world_size() == 1:
        return total / count.to(total.dtype).clamp(min=least)
    summed = torch.stack([total.detach().double(), count.double()])
    dist.all_reduce(summed)
    everything = summed[1].clamp(min=least)
    own = total * (world_size() / everything).to(total.dtype)
    return own + ((summed[0] / everything).to(total.dtype) - own).detach()


def mean_factors(counts: Tensor, dtype: torch.dtype, across_ranks: bool = False) -> Tensor:
    """Return the factors that turn the sums of this process into means, before the sums are known.

    With `across_ranks` and R processes the factor is R / sum_r count_r. The average over the
    processes of their sums times the factor, `mean_of(total * factor, 1, across_ranks)`, is the
    mean over the values of all processes. All processes must call this function the same number of
    times.

    Args:
        counts: Numbers of values of this process, any shape.
        dtype: The dtype of the factors.
        across_ranks: Whether the means are over the values of all processes.

    Returns:
        The shape of `counts`, in `dtype`; 1 for a number of 0.

    Examples:
        >>> mean_factors(torch.tensor([4, 0]), torch.float32).tolist()
        [0.25, 1.0]
    """
    if not across_ranks or world_size() == 1:
        return 1 / counts.to(dtype).clamp(min=1)
    summed = counts.to(torch.float64, copy=True)
    dist.all_reduce(summed)
    return (world_size() / summed.clamp(min=1)).to(dtype)


def require_mask(values: Tensor, valid: Tensor) -> None:
    """Raise an error unless a mask has the shape of the values, so that nothing is broadcast.

    Args:
        values: Any shape.
        valid: Expected to have the same shape.

    Raises:
        ValueError: The shapes differ; the message names both.
    """
    if valid.shape != values.shape:
        raise ValueError(
            f"a mask of {tuple(valid.shape)} does not fit values of {tuple(values.shape)}"
        )
