"""Cross-entropies of logits that are smaller than the labels, some rows at a time.

The logits are upsampled bilinearly (`align_corners=False`), and softmax, losses and gradients are
computed while a block of rows is near the processor. Only the gradient at the size of the logits is
kept: full-size logits and probabilities, (B, C, H, W), never exist.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, ParamSpec

import torch
from torch import Tensor

from lightning_seg.errors import SetupError
from lightning_seg.losses.upsampled_rows import UpsampledRows, groups_of_images
from lightning_seg.numerics import resize

P = ParamSpec("P")

FEW = 4
"""Number of classes up to which logits are upsampled as a whole."""
SMALL = 2**23
"""Number of pixels times squared number of classes up to which logits are upsampled as a whole.

Blocks cost about the same for every row of an image, and save time in proportion to its classes: on
one CPU thread they break even at 20,000 pixels of 21 classes and at 130,000 pixels of 8 classes.
"""


def is_smaller(logits: Tensor, target: Tensor) -> bool:
    """Return whether (B, C, h, w) logits are smaller than (B, H, W) labels, and none is larger.

    Raises:
        ValueError: The shapes do not fit; the message names both.
    """
    fits = logits.ndim == 4 and target.ndim == 3 and len(logits) == len(target)
    if fits and logits.shape[2:] == target.shape[1:]:
        return False
    if not fits or any(a > b for a, b in zip(logits.shape[2:], target.shape[1:], strict=True)):
        raise ValueError(
            f"logits {tuple(logits.shape)} and target {tuple(target.shape)} do not fit: expected "
            "(B, C, h, w), with h and w at most H and W, and (B, H, W)"
        )
    return 0 not in logits.shape and target.numel() > 0


def fitting(logits: Tensor, target: Tensor) -> tuple[Tensor, bool]:
    """Return logits for a loss, and whether they are to be upsampled block by block.

    Logits are upsampled here where the result is small, or where the classes are few: blocks would
    then cost more time than they save, and little memory.

    Args:
        logits: (B, C, h, w), float32 or wider.
        target: (B, H, W).

    Returns:
        (B, C, h, w) and True, or (B, C, H, W) and False.

    Raises:
        ValueError: The shapes do not fit; the message names both.
    """
    if not is_smaller(logits, target):
        return logits, False
    if blocks_pay(logits, target.shape[1:]):
        return logits, True
    return resize(logits, target.shape[1:]), False


def blocks_pay(logits: Tensor, size: Sequence[int]) -> bool:
    """Return whether (B, C, h, w) logits are better upsampled block by block to a size (H, W)."""
    images, classes = logits.shape[:2]
    return classes > FEW and images * math.prod(size) * classes**2 > SMALL


def refuse_second_derivative() -> None:
    """Raise an error in a backward pass whose result is to be differentiated.

    Raises:
        SetupError: It is.
    """
    if torch.is_grad_enabled():
        raise SetupError(
            "losses of logits smaller than the labels have no second derivative: upsample the "
            "logits to the size of the labels first"
        )


class Constants(NamedTuple):
    """What the loss of a pixel depends on besides its logits and label."""

    class_weights: Tensor | None = None
    """(C,) weights of the classes; None weighs all by 1."""
    label_smoothing: float = 0.0
    """Share of the target distribution that is spread evenly over all classes."""


_PLAIN = Constants()


def not_compiled(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Keep `torch.compile` from unrolling the loop over blocks, which would take it minutes."""
    kept: Callable[P, Tensor] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return kept


@torch.no_grad()
@not_compiled
def block_losses(
    logits: Tensor, target: Tensor, valid: Tensor, constants: Constants = _PLAIN
) -> Tensor:
    """Return the cross-entropy of every pixel, without gradient.

    Args:
        logits: (B, C, h, w), float32 or wider.
        target: (B, H, W) int64 class ids in [0, C) where valid.
        valid: (B, H, W) bool, False at pixels without a label, whose loss is 0.
        constants: Class weights and label smoothing.

    Returns:
        (B, H, W), the dtype of `logits`.
    """
    losses = logits.new_empty(target.shape)
    _visit(logits, target, valid, None, constants, losses, False)
    return losses


@not_compiled
def block_cross_entropy(
    logits: Tensor,
    target: Tensor,
    valid: Tensor,
    weights: Tensor | None = None,
    constants: Constants = _PLAIN,
) -> Tensor:
    """Return the sum of the cross-entropies of all pixels, each times its weight.

    Args:
        logits: (B, C, h, w), float32 or wider.
        target: (B, H, W) int64 class ids in [0, C) where valid.
        valid: (B, H, W) bool, False at pixels without a label, which do not count.
        weights: (B, H, W) weights without gradient; None weighs all pixels by 1.
        constants: Class weights and label smoothing.

    Returns:
        A scalar, of which one gradient can be taken and no gradient of that gradient.

    Raises:
        IndexError: On CPUs, a class id of a valid pixel is not in [0, C).
    """
    differentiate = torch.is_grad_enabled() and logits.requires_grad
    total: Tensor = _BlockSum.apply(logits, target, valid, weights, constants, differentiate)
    return total


class _BlockSum(torch.autograd.Function):
    """The weighted sum, whose gradient is computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        valid: Tensor,
        weights: Tensor | None,
        constants: Constants,
        differentiate: bool,
    ) -> Tensor:
        """Return the sum, and keep its gradient, (B, C, h, w)."""
        total, gradient = _visit(logits, target, valid, weights, constants, None, differentiate)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the logits times the upstream gradient."""
        refuse_second_derivative()
        (gradient,) = ctx.saved_tensors
        return gradient * outputs[0], None, None, None, None, None


def _visit(
    logits: Tensor,
    target: Tensor,
    valid: Tensor,
    weights: Tensor | None,
    constants: Constants,
    losses: Tensor | None,
    differentiate: bool,
    clear_void: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Visit all blocks of rows.

    Args:
        logits: (B, C, h, w).
        target: (B, H, W) class ids.
        valid: (B, H, W) bool.
        weights: (B, H, W); None weighs all pixels by 1.
        constants: Class weights and label smoothing.
        losses: (B, H, W), gets the weighted loss of every pixel; None only sums.
        differentiate: Whether the gradient is computed.
        clear_void: Whether the logits of void pixels, which may be infinite or NaN, become 0. On
            CPUs they do so only after a sum that is not finite, which saves a pass over all logits
            in the usual case.

    Returns:
        The weighted sum, and its gradient (B, C, h, w) or None.
    """
    logits = logits.detach()
    _require_classes(target, valid, logits.shape[1])
    clear_void = clear_void or logits.device.type != "cpu"  # asking would make a GPU wait
    weight = valid.to(logits.dtype) if weights is None else weights.to(logits.dtype) * valid
    ids = target.where(valid, 0)
    total = logits.new_zeros(())
    gradients = []
    for images in groups_of_images(logits, ids.shape[2]):
        rows = UpsampledRows(logits[images], (ids.shape[1], ids.shape[2]))
        for first, last in rows.blocks():
            values = rows.rows(first, last)  # (B, C, n, W)
            if clear_void:
                values.masked_fill_(~valid[images, None, first:last], 0)
            block = _Block(
                values,
                ids[images, None, first:last],
                weight[images, None, first:last],
                constants,
            )
            total += block.losses.sum()
            if losses is not None:
                losses[images, first:last] = block.losses[:, 0]
            if differentiate:
                rows.add_gradient(first, block.gradient())
        if differentiate:
            gradients.append(rows.finish())
    if not clear_void and not bool(total.isfinite()):
        return _visit(
            logits, target, valid, weights, constants, losses, differentiate, clear_void=True
        )
    return total, torch.cat(gradients) if gradients else None


class _Block:
    """Some rows of full-size logits, their losses and the gradient of these.

    With logits z, classes y, class weights w and smoothing s, the loss of a pixel with weight g is

        g ((1 - s) w_y (L - z_y) + s / C sum_c w_c (L - z_c)),   L = log sum_c exp z_c

    Args:
        logits: (B, C, n, W), overwritten by the gradient.
        target: (B, 1, n, W) class ids.
        weights: (B, 1, n, W), g.
        constants: Class weights and label smoothing.
    """

    def __init__(
        self, logits: Tensor, target: Tensor, weights: Tensor, constants: Constants
    ) -> None:
        self.values, self.target = logits, target
        share = constants.label_smoothing
        # (B, 1, n, W), the factor of the loss of the label
        self.own = weights * (1 - share) if share else weights
        if constants.class_weights is not None:
            self.own = self.own * constants.class_weights[target]
        own = logits.gather(1, target)
        # (C,), the factors of the losses of all classes
        self.spread: Tensor | None = None
        if share:
            classes = logits.shape[1]
            every = constants.class_weights
            every = logits.new_ones(classes) if every is None else every.to(logits.dtype)
            self.spread = (every * (share / classes))[:, None, None]
            self.weights = weights
            smooth = (logits * self.spread).sum(1, keepdim=True)
        largest = logits.amax(1, keepdim=True)
        self.sums = logits.sub_(largest).exp_().sum(1, keepdim=True)
        log_sum = self.sums.log().add_(largest)
        self.losses = (log_sum - own).mul_(self.own)
        """(B, 1, n, W), the weighted losses."""
        if self.spread is not None:
            self.losses += weights * (log_sum * self.spread.sum() - smooth)

    def gradient(self) -> Tensor:
        """Return the gradient of the sum of the losses, (B, C, n, W)."""
        factor = self.own
        if self.spread is not None:
            factor = factor + self.weights * self.spread.sum()
        values = self.values.mul_(factor / self.sums)
        if self.spread is not None:
            values -= self.weights * self.spread
        return values.scatter_(1, self.target, values.gather(1, self.target) - self.own)


def _require_classes(target: Tensor, valid: Tensor, classes: int) -> None:
    """Raise an error for class ids out of range, on CPUs; reading them would make a GPU wait."""
    if target.device.type != "cpu":
        return
    low, high = torch.aminmax(target.where(valid, 0))
    if low < 0 or high >= classes:
        raise IndexError(f"target holds {int(low)}..{int(high)}; expected 0..{classes - 1}")
