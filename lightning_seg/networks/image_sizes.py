"""Images of any size in networks that take some sizes only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def fill_up(image: Tensor, multiple: tuple[int, int]) -> Tensor:
    """Return images whose sides are multiples of some numbers, filled up with their border pixels.

    Args:
        image: (B, C, H, W).
        multiple: Numbers for height and width, each at least 1.

    Returns:
        (B, C, H', W') for the next multiples; `image` itself where nothing is missing.
    """
    if torch.compiler.is_exporting():  # `Segmenter` has done so, in terms of the size
        return image
    height, width = image.shape[-2:]
    border = (0, -width % multiple[1], 0, -height % multiple[0])
    return F.pad(image, border, mode="replicate") if any(border) else image


def takes(model: Any, shape: Sequence[int]) -> bool:
    """Return whether a model takes images of a shape; its state does not change."""
    was_training = model.training
    weight = next(model.parameters())
    image = torch.zeros(tuple(shape), device=weight.device, dtype=weight.dtype)
    try:
        with torch.no_grad():
            model.eval()(image)
    except (AssertionError, RuntimeError, ValueError, IndexError):
        return False
    finally:
        model.train(was_training)
    return True


def same_padding(x: Any, kernel_size: int, stride: int, dilation: int) -> Any:
    """Return the padding of an axis with which a convolution returns ceil(x / stride) pixels.

    The result is that of timm's `get_same_padding`, in a formula that names the size twice instead
    of four times. A size that `torch.export` keeps open is a formula itself, and each convolution
    nests it once more.

    Args:
        x: Number of pixels along the axis, also one that is kept open.
        kernel_size: Number of weights along the axis.
        stride: Step of the kernel.
        dilation: Distance of the weights.

    Examples:
        >>> same_padding(5, 3, 2, 1), same_padding(6, 3, 2, 1), same_padding(6, 1, 2, 1)
        (2, 1, 0)
    """
    reach = (kernel_size - 1) * dilation + 1
    padding = reach - stride + -x % stride
    return padding if reach >= stride else max(padding, 0)


@contextlib.contextmanager
def short_formulas() -> Iterator[None]:
    """Let timm's convolutions with padding as in TensorFlow use `same_padding`.

    With timm's own formula, `torch.export` takes minutes for an EfficientNet of TensorFlow.
    """
    from timm.layers import padding

    before = padding.get_same_padding
    padding.get_same_padding = same_padding
    try:
        yield
    finally:
        padding.get_same_padding = before
