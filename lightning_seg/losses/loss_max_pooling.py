"""Loss max-pooling: the worst case over a convex set of pixel weights.

S. Rota Bulo, G. Neuhold, P. Kontschieder: Loss Max-Pooling for Semantic Image Segmentation (CVPR
2017, arXiv 1704.02966). With n pixel losses l_i >= 0, 1/p + 1/q = 1 and m = ratio * n:

    L = max { sum_i w_i l_i : w >= 0, ||w||_p <= gamma, ||w||_inf <= tau }
    gamma = n^(-1/q)    uniform weights 1/n are in the set
    tau = gamma m^(-1/p)    at least m pixels get weight

The maximum is reached at w_i = tau min(1, (l_i / a)^(q - 1)), where a solves
sum_i min(1, (l_i / a)^q) = m; without a solution (at most m positive losses) each positive loss
gets tau. p = 1 is the mean of the m largest losses, p = inf and ratio = 1 are the plain mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_seg.errors import SetupError
from lightning_seg.numerics import at_least_float32, require_fit
from lightning_seg.processes import world_size

# Powers (l / l_max)^q stay in the range of float32 up to this q, of float64 up to the next
_Q_FLOAT32, _Q_FLOAT64 = 4.5, 8.0


class PooledLoss(NamedTuple):
    """A pooled loss and what it is made of."""

    loss: Tensor
    """A scalar."""
    losses: Tensor
    """(B, H, W) losses of the pixels, 0 where void."""
    weights: Tensor
    """(B, H, W) weights w; an image's uniform weight would be 1 / n."""


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
    """Pool the cross-entropy of the labelled pixels by loss max-pooling.

    Args:
        logits: (B, C, H, W), any floating dtype; computed in float32 at least.
        target: (B, H, W) int64 class ids in [0, C), or `ignore_index`.
        p: Norm of the weights, in [1, inf]: small is steep, inf is the plain mean.
        ratio: Least share of the pixels with weight, in (0, 1]; 1 is the plain mean.
        ignore_index: The id of pixels that do not count.
        per_image: Pool every image by itself and average over the images with a label; False
            pools all pixels of the batch together.
        class_weights: (C,) weights, multiplied into the losses before pooling.
        label_smoothing: Share of the target spread over all classes, in [0, 1].
        across_ranks: Pool the batches of all processes together; needs equal batch shapes and
            `per_image=False`. The value is the same on all, and averaging their gradients, as
            DDP does, gives that of one process with all images.

    Returns:
        A scalar, at least the mean loss, with gradient w; 0 where nothing is labelled, NaN
        where a labelled pixel's loss is.

    Raises:
        ValueError: p or ratio out of range, or shapes that do not fit.

    Example:
        Two pixels with losses log 2 and log 4; p = 1 and ratio = 1/2 take the larger.

        >>> logits = torch.tensor([[0.5, 0.75], [0.5, 0.25]]).log().view(1, 2, 1, 2)
        >>> target = torch.tensor([[[0, 1]]])
        >>> round(loss_max_pooling(logits, target, p=1.0, ratio=0.5).item(), 4)
        1.3863
        >>> round(loss_max_pooling(logits, target, p=2.0, ratio=0.5).item(), 4)  # (mean l^2)^(1/2)
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


def loss_max_pooling_weights(
    losses: Tensor, valid: Tensor | None = None, p: float = 1.7, ratio: float = 0.3
) -> Tensor:
    """Return the weights w that make `sum_i w_i l_i` largest, which are its gradient too.

    Args:
        losses: (..., n), at least 0 where valid; each row is pooled by itself.
        valid: (..., n) bool, the losses that count; None counts all.
        p: Norm of the weights, in [1, inf].
        ratio: Least share of the valid losses with weight, in (0, 1].

    Returns:
        (..., n) weights without gradient, float64 for float64 losses and float32 otherwise; 0
        where not valid, NaN in rows with a valid loss that is negative, infinite or NaN.

    Raises:
        ValueError: p or ratio out of range.

    Example:
        >>> loss_max_pooling_weights(torch.tensor([4.0, 0.0, 3.0, 0.0]), p=1.0, ratio=0.5)
        tensor([0.5000, 0.0000, 0.5000, 0.0000])
    """
    _require(p, ratio)
    exact = losses.dtype == torch.float64
    rows = losses.detach().to(torch.float64 if exact else torch.float32)
    if valid is None:
        valid = torch.ones_like(rows, dtype=torch.bool)
    return _weights(torch.where(valid, rows, 0), valid, p, ratio)


def _weights(rows: Tensor, valid: Tensor, p: float, ratio: float) -> Tensor:
    """Return the weights of rows that are 0 where not valid."""
    count = valid.sum(-1, keepdim=True).to(rows.dtype)
    least, largest = rows.amin(-1, keepdim=True), rows.amax(-1, keepdim=True)
    sound = (least >= 0) & (largest < math.inf)  # false for NaN
    count = torch.where(sound, count, math.nan)  # which passes to all weights of the row
    support = (ratio * count).clamp(min=1)
    if ratio == 1 or p == math.inf:
        return valid / count.clamp(min=1)
    if p == 1:
        return _largest(rows, support)
    return _norm_bounded(rows, count, support, largest, p)


def _norm_bounded(
    rows: Tensor, count: Tensor, support: Tensor, largest: Tensor, p: float
) -> Tensor:
    """Return the weights for 1 < p < inf."""
    q = p / (p - 1)
    cap = count.clamp(min=1) ** (-1 / q) * support ** (-1 / p)
    if q > _Q_FLOAT64:
        return cap * _by_sorting(rows, support, q)
    return cap * _by_newton(rows, support, largest, q)


def _by_newton(rows: Tensor, support: Tensor, largest: Tensor, q: float) -> Tensor:
    """Return min(1, (l / a)^(q - 1)).

    With y = l^q and u = a^q, h(u) = m u - sum_i min(u, y_i) is convex and piecewise linear.
    Newton's steps from the right fall monotonically to its largest root and reach it: the positive
    one, or 0 with no more positive losses than m, where every positive loss gets 1.
    """
    wide = torch.float64 if q > _Q_FLOAT32 and rows.device.type != "mps" else rows.dtype
    tiny = torch.finfo(wide).tiny
    scaled = (rows / largest.clamp(min=torch.finfo(rows.dtype).tiny)).to(wide)
    powers = scaled.log().mul_(q).exp_()  # a third of the time of pow
    support = support.to(wide)
    level = powers.sum(-1, keepdim=True) / support
    below = torch.empty_like(powers)
    unseen = torch.compiler.is_compiling() or rows.device.type != "cpu"
    # where looking would wait for the device: more than any of the distributions tried has taken
    for _ in range(math.ceil(16 + 6 * q) if unseen else 1000):
        torch.lt(powers, level, out=below)  # as numbers, in memory that is at hand
        saturated = rows.shape[-1] - below.sum(-1, keepdim=True)
        rest = below.mul_(powers).sum(-1, keepdim=True)
        following = rest / (support - saturated).clamp(min=tiny)
        if not unseen and not bool((following < level).any()):
            break
        level = torch.minimum(following, level)  # it falls, rounding apart
    # (l / a)^(q - 1) = (y / u) (a / l), without a second power
    root = level.clamp(min=tiny)
    relative = powers.div_(scaled.clamp_(min=tiny)).mul_(root ** (1 / q - 1)).clamp_(max=1)
    return relative.to(rows.dtype)


def _by_sorting(rows: Tensor, support: Tensor, q: float) -> Tensor:
    """Return the same for any q, in the domain of logarithms: slower."""
    slack = (rows > 0).sum(-1, keepdim=True) <= support
    support = support.to(torch.float64)
    logs = rows.to(torch.float64).log()  # -inf where 0
    ordered = logs.sort(-1, descending=True).values
    powers = q * ordered
    tails = powers.flip(-1).logcumsumexp(-1).flip(-1)  # over the losses from here on
    after = F.pad(tails[..., 1:], (0, 1), value=-math.inf)
    rank = torch.arange(1, rows.shape[-1] + 1, device=rows.device)
    # the saturated losses are the first ones for which k + sum_{i > k} (l_i / l_k)^q <= m
    fits = rank + torch.where(after == -math.inf, 0, (after - powers).exp()) <= support
    saturated = (fits & (rank < support)).sum(-1, keepdim=True)
    rest = tails.gather(-1, saturated.clamp(max=rows.shape[-1] - 1))
    log_a = (rest - (support - saturated).log()) / q
    relative = torch.where(slack, 1, ((q - 1) * (logs - log_a)).clamp(max=0).exp())
    return torch.where(rows > 0, relative, 0).to(rows.dtype)


def _largest(rows: Tensor, support: Tensor) -> Tensor:
    """Return the weights for p = 1: 1 / m on the m largest, equal losses share what is left."""
    place = (support.ceil().long() - 1).clamp(0, rows.shape[-1] - 1)
    least = rows.sort(-1, descending=True).values.gather(-1, place)
    above, ties = rows > least, rows == least
    left = support - above.sum(-1, keepdim=True)
    share = left / ties.sum(-1, keepdim=True)
    weights = torch.where(above, 1, torch.where(ties & (rows > 0), share, 0))
    return weights / support


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
    _require(p, ratio, across_ranks and per_image, label_smoothing)
    require_fit(logits, target)
    logits = at_least_float32(logits)
    valid = target != ignore_index
    losses = _pixel_losses(logits, target, valid, class_weights, label_smoothing)
    losses = torch.where(valid, losses, 0)
    if across_ranks:
        return _pooled_across_ranks(losses, valid, p, ratio)
    shape = (len(losses), -1) if per_image else (1, -1)
    weights = _weights(losses.detach().reshape(shape), valid.reshape(shape), p, ratio)
    weights = weights.view_as(losses)
    groups = valid.reshape(shape).any(-1).sum().clamp(min=1)
    return PooledLoss((weights * losses).sum() / groups, losses.detach(), weights)


def _pixel_losses(
    logits: Tensor,
    target: Tensor,
    valid: Tensor,
    class_weights: Tensor | None,
    label_smoothing: float,
) -> Tensor:
    """Return (B, H, W) cross-entropies; whatever they are where void, no NaN passes back there."""
    weight = None if class_weights is None else class_weights.to(logits.dtype)
    some_class = target.where(valid, 0)
    seen = logits.device.type == "cpu" and not torch.compiler.is_compiling()
    if not seen:
        logits = torch.where(valid[:, None], logits, 0)
    losses = F.cross_entropy(
        logits, some_class, weight, reduction="none", label_smoothing=label_smoothing
    )
    if seen and not bool(losses.detach().sum().isfinite()):
        logits = torch.where(valid[:, None], logits, 0)  # rare: saves a pass over all logits
        losses = F.cross_entropy(
            logits, some_class, weight, reduction="none", label_smoothing=label_smoothing
        )
    return losses


def _pooled_across_ranks(losses: Tensor, valid: Tensor, p: float, ratio: float) -> PooledLoss:
    """Pool the pixels of all processes: each finds all weights and keeps its own."""
    rank, processes = 0, 1
    all_losses, all_valid = losses.detach().reshape(1, -1), valid.reshape(1, -1)
    if world_size() > 1:
        rank, processes = dist.get_rank(), dist.get_world_size()
        gathered = [torch.empty_like(all_losses) for _ in range(processes)]
        counted = [torch.empty_like(all_valid, dtype=torch.uint8) for _ in range(processes)]
        dist.all_gather(gathered, all_losses)
        dist.all_gather(counted, all_valid.to(torch.uint8))
        all_losses, all_valid = torch.cat(gathered, 1), torch.cat(counted, 1).bool()
    every = _weights(all_losses, all_valid, p, ratio)
    weights = every[0, rank * losses.numel() :][: losses.numel()].view_as(losses)
    mine = processes * (weights * losses).sum()  # the mean over processes is the whole
    value = (every * all_losses).sum()
    return PooledLoss(mine + (value - mine).detach(), losses.detach(), weights)


def _require(p: float, ratio: float, clash: bool = False, label_smoothing: float = 0.0) -> None:
    if not p >= 1:
        raise SetupError(f"p of loss max-pooling must lie in [1, inf], not {p}")
    if not 0 < ratio <= 1:
        raise SetupError(f"ratio of loss max-pooling must lie in (0, 1], not {ratio}")
    if not 0 <= label_smoothing <= 1:
        raise SetupError(f"label_smoothing must lie in [0, 1], not {label_smoothing}")
    if clash:
        raise SetupError("across_ranks pools all images together: it needs per_image=False")


class LossMaxPooling(nn.Module):
    """`loss_max_pooling` with its constants.

    Args:
        p: Norm of the weights, in [1, inf].
        ratio: Least share of the pixels with weight, in (0, 1].
        ignore_index: The id of pixels that do not count.
        per_image: Pool every image by itself; False pools the batch.
        class_weights: One weight per class; None weighs all alike.
        label_smoothing: Share of the target spread over all classes, in [0, 1].
        across_ranks: Pool the batches of all processes together, in training mode.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        p: float = 1.7,
        ratio: float = 0.3,
        ignore_index: int = 255,
        per_image: bool = True,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        across_ranks: bool = False,
    ) -> None:
        super().__init__()
        _require(p, ratio, across_ranks and per_image, label_smoothing)
        self.p = p
        self.ratio = ratio
        self.ignore_index = ignore_index
        self.per_image = per_image
        self.label_smoothing = label_smoothing
        self.across_ranks = across_ranks
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of (B, C, H, W) logits on a (B, H, W) target, a scalar."""
        return self.pooled(logits, target).loss

    def pooled(self, logits: Tensor, target: Tensor) -> PooledLoss:
        """Return the loss with the pixels' losses and weights."""
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
