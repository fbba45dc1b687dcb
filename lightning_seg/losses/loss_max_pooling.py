"""Loss max-pooling: the largest weighted sum of the pixel losses over a convex set of weights.

With n pixel losses l_i >= 0, 1/p + 1/q = 1 and m = ratio * n,

    L = max { sum_i w_i l_i : w >= 0, ||w||_p <= gamma, ||w||_inf <= tau }
    gamma = n^(-1/q)        the uniform weights 1/n are in the set
    tau = gamma m^(-1/p)    at least m pixels get weight

p = 1 gives the mean of the m largest losses, p = inf and ratio = 1 give the plain mean.
`lightning_seg.losses.pooling_weights` computes the maximum.

S. Rota Bulo, G. Neuhold, P. Kontschieder: Loss Max-Pooling for Semantic Image Segmentation (CVPR
2017, arXiv 1704.02966).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_seg.errors import require_range
from lightning_seg.losses.block_cross_entropy import (
    Constants,
    block_cross_entropy,
    block_losses,
    fitting,
)
from lightning_seg.losses.pooling_weights import pooling_weights, require_bounds
from lightning_seg.numerics import at_least_float32, mean_of
from lightning_seg.processes import world_size


class PooledLoss(NamedTuple):
    """A pooled loss with the losses and weights of the pixels."""

    loss: Tensor
    """A scalar, with gradient."""
    losses: Tensor
    """(B, H, W) losses of the pixels, without gradient; 0 at void pixels."""
    weights: Tensor
    """(B, H, W) weights w, without gradient; the uniform weight of n pooled pixels is 1 / n."""


def loss_max_pooling(
    logits: Tensor,
    target: Tensor,
    p: float = 1.7,
    ratio: float = 0.3,
    ignore_index: int = 255,
    per_image: bool = True,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    across_ranks: bool = False,
) -> Tensor:
    """Return the max-pooled cross-entropy of the labelled pixels.

    Logits may be smaller than the labels. They are then upsampled within the loss, bilinearly with
    `align_corners=False`, some rows at a time, once for the losses and once for the gradient.

    Args:
        logits: (B, C, h, w) with h <= H and w <= W, any floating dtype; computed in float32 or
            wider.
        target: (B, H, W) int64 class ids in [0, C), or `ignore_index`.
        p: Norm that bounds the weights, in [1, inf]. A smaller p concentrates the weight on fewer
            pixels; inf gives the plain mean. The paper illustrates 1.7.
        ratio: Smallest share m / n of the pixels that get weight, in (0, 1]; 1 gives the plain
            mean. The default is that of the implementation mpl.pytorch.
        ignore_index: The class id of pixels to leave out.
        per_image: Pool each image separately, and average over the images with a labelled pixel.
            False pools all pixels of the batch together.
        class_weights: (C,) factors of the pixel losses before pooling, at least 0; None weighs all
            classes by 1.
        label_smoothing: Share of the target distribution that is spread evenly over all classes,
            in [0, 1]; 0 keeps one-hot targets.
        across_ranks: Take the mean over the images of all processes; see `numerics.mean_of`.
            Without `per_image`, pool the batches of all processes together, which must have one
            shape. All processes get the same value; the average of their gradients, which DDP
            takes, is the gradient of one process with all images.

    Returns:
        A scalar, at least the mean loss, whose gradient with respect to the pixel losses is w; 0
        with a zero gradient where no pixel is labelled, NaN where the loss of a labelled pixel is
        NaN, infinite or negative.

    Raises:
        SetupError: `p`, `ratio` or `label_smoothing` is out of its range.
        ValueError: The shapes do not fit.
        IndexError: On CPUs, a class id is neither in [0, C) nor `ignore_index`.

    Examples:
        2x2 pixels, of which two are labelled, with the losses log 2 and log 4. p = 1 and
        ratio = 1/2 give the mean of the larger half, log 4. p = 2 gives the root of the mean
        square.

        >>> p_class_1 = torch.tensor([[0.5, 0.25], [0.9, 0.1]])
        >>> logits = torch.stack([1 - p_class_1, p_class_1])[None].log()
        >>> target = torch.tensor([[[0, 1], [255, 255]]])
        >>> round(loss_max_pooling(logits, target, p=1.0, ratio=0.5).item(), 4)
        1.3863
        >>> round(loss_max_pooling(logits, target, p=2.0, ratio=0.5).item(), 4)
        1.096
    """
    return _pooled(
        logits,
        target,
        p,
        ratio,
        ignore_index,
        per_image,
        class_weights,
        label_smoothing,
        across_ranks,
    ).loss


def _pooled(
    logits: Tensor,
    target: Tensor,
    p: float,
    ratio: float,
    ignore_index: int,
    per_image: bool,
    class_weights: Tensor | None,
    label_smoothing: float,
    across_ranks: bool,
) -> PooledLoss:
    """Return the pooled loss; the arguments are those of `loss_max_pooling`."""
    _require(p, ratio, label_smoothing)
    logits, by_blocks = fitting(at_least_float32(logits), target)
    valid = target != ignore_index
    if by_blocks:
        weights = None if class_weights is None else class_weights.to(logits.dtype)
        constants = Constants(weights, label_smoothing)
        losses = block_losses(logits, target, valid, constants)  # (B, H, W)
        weighted = partial(block_cross_entropy, logits, target, valid, constants=constants)
    else:
        losses = _pixel_losses(logits, target, valid, class_weights, label_smoothing)
        losses = torch.where(valid, losses, 0)  # (B, H, W)
        weighted = partial(_weighted_sum, losses)
    if across_ranks and not per_image:
        return _pooled_across_ranks(losses, weighted, valid, p, ratio)
    # (B, H, W) -> (B, H W), or (1, B H W): one row is pooled at a time
    shape = (len(losses), -1) if per_image else (1, -1)
    weights = pooling_weights(losses.detach().reshape(shape), valid.reshape(shape), p, ratio)
    weights = weights.view_as(losses)
    # Rows without a labelled pixel do not count in the mean over rows.
    groups = valid.reshape(shape).any(-1).sum()
    loss = mean_of(weighted(weights), groups, across_ranks)
    return PooledLoss(loss, losses.detach(), weights)


def _pixel_losses(
    logits: Tensor,
    target: Tensor,
    valid: Tensor,
    class_weights: Tensor | None,
    label_smoothing: float,
) -> Tensor:
    """Return (B, H, W) cross-entropies; those of void pixels are arbitrary.

    The gradient at void pixels is 0, also where their logits are infinite or NaN: such logits are
    replaced by 0. On CPUs they are replaced only where a loss is not finite, which saves a pass
    over all logits in the usual case.
    """
    weight = None if class_weights is None else class_weights.to(logits.dtype)
    some_class = target.where(valid, 0)
    can_ask = logits.device.type == "cpu" and not torch.compiler.is_compiling()
    if not can_ask:
        logits = torch.where(valid[:, None], logits, 0)
    losses = F.cross_entropy(
        logits, some_class, weight, reduction="none", label_smoothing=label_smoothing
    )
    if can_ask and not bool(losses.detach().sum().isfinite()):
        logits = torch.where(valid[:, None], logits, 0)
        losses = F.cross_entropy(
            logits, some_class, weight, reduction="none", label_smoothing=label_smoothing
        )
    return losses


def _weighted_sum(losses: Tensor, weights: Tensor) -> Tensor:
    return (weights * losses).sum()


def _pooled_across_ranks(
    losses: Tensor, weighted: Callable[[Tensor], Tensor], valid: Tensor, p: float, ratio: float
) -> PooledLoss:
    """Pool the pixels of all processes: each process computes all weights and keeps its own.

    Args:
        losses: (B, H, W) losses of the pixels.
        weighted: Returns the sum of the losses for (B, H, W) weights, with its gradient.
        valid: (B, H, W) bool, False at pixels that do not count.
        p: As for `loss_max_pooling`.
        ratio: As for `loss_max_pooling`.
    """
    rank, processes = 0, 1
    all_losses, all_valid = losses.detach().reshape(1, -1), valid.reshape(1, -1)
    if world_size() > 1:
        # (1, B H W) -> (1, processes B H W); booleans are gathered as uint8
        rank, processes = dist.get_rank(), dist.get_world_size()
        gathered = [torch.empty_like(all_losses) for _ in range(processes)]
        counted = [torch.empty_like(all_valid, dtype=torch.uint8) for _ in range(processes)]
        dist.all_gather(gathered, all_losses)
        dist.all_gather(counted, all_valid.to(torch.uint8))
        all_losses, all_valid = torch.cat(gathered, 1), torch.cat(counted, 1).bool()
    # (1, processes B H W) -> (B, H, W), the weights of this process
    every = pooling_weights(all_losses, all_valid, p, ratio)
    weights = every[0, rank * losses.numel() :][: losses.numel()].view_as(losses)
    # DDP averages gradients over processes: `own` has the gradient that averages to the whole. The
    # value is that of all processes together.
    own = processes * weighted(weights)
    value = (every * all_losses).sum()
    return PooledLoss(own + (value - own).detach(), losses.detach(), weights)


def _require(p: float, ratio: float, label_smoothing: float) -> None:
    """Raise an error for constants out of their ranges."""
    require_bounds(p, ratio)
    require_range(0, 1, label_smoothing=label_smoothing)


class LossMaxPooling(nn.Module):
    """`loss_max_pooling` as a module that holds the constants.

    Args:
        p: Norm that bounds the weights, in [1, inf]. A smaller p concentrates the weight on fewer
            pixels; inf gives the plain mean, also as the string `inf`, which YAML reads as no
            number. The paper illustrates 1.7.
        ratio: Smallest share m / n of the pixels that get weight, in (0, 1]; 1 gives the plain
            mean. The default is that of the implementation mpl.pytorch.
        ignore_index: The class id of pixels to leave out.
        per_image: Pool each image separately, and average over the images with a labelled pixel.
            False pools all pixels of the batch together.
        class_weights: One factor per class of the pixel losses before pooling, at least 0; None
            weighs all classes by 1.
        label_smoothing: Share of the target distribution that is spread evenly over all classes,
            in [0, 1]; 0 keeps one-hot targets.
        across_ranks: In training mode, take the mean over the images of all processes, or without
            `per_image` pool the batches of all processes together.

    Raises:
        SetupError: `p`, `ratio` or `label_smoothing` is out of its range.

    Shape:
        (B, C, h, w) logits, no larger than the labels, and (B, H, W) class ids -> a scalar.

    Examples:
        The losses of both labelled pixels are log 2.

        >>> loss = LossMaxPooling(p=1.0, ratio=0.5)
        >>> round(loss(torch.zeros(1, 2, 2, 2), torch.tensor([[[0, 1], [255, 255]]])).item(), 4)
        0.6931
    """

    takes_smaller_logits = True
    class_weights: Tensor | None

    def __init__(
        self,
        p: float | Literal["inf"] = 1.7,
        ratio: float = 0.3,
        ignore_index: int = 255,
        per_image: bool = True,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        across_ranks: bool = False,
    ) -> None:
        super().__init__()
        self.p = math.inf if p == "inf" else p
        _require(self.p, ratio, label_smoothing)
        self.ratio = ratio
        self.ignore_index = ignore_index
        self.per_image = per_image
        self.label_smoothing = label_smoothing
        self.across_ranks = across_ranks
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss; see `loss_max_pooling`.

        Args:
            logits: (B, C, h, w) with h <= H and w <= W, any floating dtype.
            target: (B, H, W) int64 class ids in [0, C), or `ignore_index`.

        Returns:
            A scalar, at least the mean loss.
        """
        return self.pooled(logits, target).loss

    def pooled(self, logits: Tensor, target: Tensor) -> PooledLoss:
        """Return the loss with the losses and weights of the pixels.

        Args:
            logits: (B, C, h, w) with h <= H and w <= W, any floating dtype.
            target: (B, H, W) int64 class ids in [0, C), or `ignore_index`.
        """
        return _pooled(
            logits,
            target,
            self.p,
            self.ratio,
            self.ignore_index,
            self.per_image,
            self.class_weights,
            self.label_smoothing,
            self.across_ranks and self.training,
        )
