"""The weights of loss max-pooling: where the weighted sum of losses is largest.

With n losses l_i >= 0, 1/p + 1/q = 1, m = ratio * n, gamma = n^(-1/q) and tau = gamma m^(-1/p), the
maximum of sum_i w_i l_i over w >= 0, ||w||_p <= gamma, ||w||_inf <= tau is at

    w_i = tau min(1, (l_i / a)^(q - 1)),  a > 0 with sum_i min(1, (l_i / a)^q) = m

The equation for a has no solution where at most m losses are positive; each positive loss then gets
the weight tau. S. Rota Bulo, G. Neuhold, P. Kontschieder: Loss Max-Pooling for Semantic Image
Segmentation (CVPR 2017, arXiv 1704.02966).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_seg.errors import SetupError

# The powers (l / l_max)^q stay in the range of float32 up to the first q, and in the range of
# float64 up to the second.
_Q_FLOAT32, _Q_FLOAT64 = 4.5, 8.0


def loss_max_pooling_weights(
    losses: Tensor, valid: Tensor | None = None, p: float = 1.7, ratio: float = 0.3
) -> Tensor:
    """Return the weights w of the maximum, which are the gradient of the pooled loss.

    Args:
        losses: (..., n), at least 0 where valid, any floating dtype; each row is pooled
            separately.
        valid: (..., n) bool, False for losses to leave out; None counts all.
        p: Norm that bounds the weights, in [1, inf]. A smaller p concentrates the weight on fewer
            losses; inf gives uniform weights. The paper illustrates 1.7.
        ratio: Smallest share of the valid losses that get weight, in (0, 1]; 1 gives uniform
            weights. The default is that of the implementation mpl.pytorch.

    Returns:
        (..., n) weights without gradient, float64 for float64 losses and float32 otherwise; 0
        where not valid, NaN in rows with a valid loss that is negative, infinite or NaN.

    Raises:
        SetupError: `p` or `ratio` is out of its range.

    Examples:
        The larger half of 2x2 losses.

        >>> losses = torch.tensor([[4.0, 0.0], [3.0, 0.0]])
        >>> loss_max_pooling_weights(losses.flatten(), p=1.0, ratio=0.5).view(2, 2)
        tensor([[0.5000, 0.0000],
                [0.5000, 0.0000]])
    """
    require_bounds(p, ratio)
    exact = losses.dtype == torch.float64
    rows = losses.detach().to(torch.float64 if exact else torch.float32)
    if valid is None:
        valid = torch.ones_like(rows, dtype=torch.bool)
    return pooling_weights(torch.where(valid, rows, 0), valid, p, ratio)


def pooling_weights(rows: Tensor, valid: Tensor, p: float, ratio: float) -> Tensor:
    """Return the weights of losses that are 0 where not valid, without any check.

    Args:
        rows: (..., n) float32 or float64 losses.
        valid: (..., n) bool, False for losses to leave out.
        p: Norm that bounds the weights, in [1, inf].
        ratio: Smallest share of the valid losses that get weight, in (0, 1].

    Returns:
        (..., n) weights; NaN in rows with a loss that is negative, infinite or NaN.
    """
    count = valid.sum(-1, keepdim=True).to(rows.dtype)  # (..., n) -> (..., 1)
    least, largest = rows.amin(-1, keepdim=True), rows.amax(-1, keepdim=True)
    # Both comparisons are false for NaN. A NaN count makes all weights of its row NaN.
    in_range = (least >= 0) & (largest < math.inf)
    count = torch.where(in_range, count, math.nan)
    support = (ratio * count).clamp(min=1)
    if ratio == 1 or p == math.inf:
        return valid / count.clamp(min=1)
    if p == 1:
        return _largest(rows, support)
    return _norm_bounded(rows, count, support, largest, p)


def _norm_bounded(
    rows: Tensor, count: Tensor, support: Tensor, largest: Tensor, p: float
) -> Tensor:
    """Return the (..., n) weights for 1 < p < inf; the other tensors but `rows` are (..., 1)."""
    q = p / (p - 1)
    # (..., 1): tau, the largest weight
    cap = count.clamp(min=1) ** (-1 / q) * support ** (-1 / p)
    if q > _Q_FLOAT64:
        return cap * _by_sorting(rows, support, q)
    return cap * _by_newton(rows, support, largest, q)


def _by_newton(rows: Tensor, support: Tensor, largest: Tensor, q: float) -> Tensor:
    """Return min(1, (l / a)^(q - 1)) by Newton's method.

    With y = l^q and u = a^q, the function h(u) = m u - sum_i min(u, y_i) is convex and piecewise
    linear. Newton's steps from the right fall monotonically to its largest root and reach it in
    finitely many steps. That root is a^q, or 0 where at most m losses are positive; every positive
    loss then gets 1.
    """
    wide = torch.float64 if q > _Q_FLOAT32 and rows.device.type != "mps" else rows.dtype
    tiny = torch.finfo(wide).tiny
    # Dividing by the largest loss of the row keeps the powers in (0, 1].
    scaled = (rows / largest.clamp(min=torch.finfo(rows.dtype).tiny)).to(wide)
    powers = scaled.log().mul_(q).exp_()  # (..., n); a third of the time of pow
    support = support.to(wide)
    level = powers.sum(-1, keepdim=True) / support  # (..., 1): u, at or above the root
    below = torch.empty_like(powers)
    # Asking whether the level still falls would make a GPU wait and break a compiled graph. There
    # the number of steps is fixed, above what any of the distributions tried has needed.
    fixed_steps = torch.compiler.is_compiling() or rows.device.type != "cpu"
    for _ in range(math.ceil(16 + 6 * q) if fixed_steps else 1000):
        torch.lt(powers, level, out=below)  # 0 or 1 as floats, without a new allocation
        saturated = rows.shape[-1] - below.sum(-1, keepdim=True)  # (..., 1): losses at weight 1
        rest = below.mul_(powers).sum(-1, keepdim=True)  # (..., 1): sum of the powers below u
        following = rest / (support - saturated).clamp(min=tiny)
        if not fixed_steps and not bool((following < level).any()):
            break
        level = torch.minimum(following, level)  # rounding alone could make it rise
    # (..., n): (l / a)^(q - 1) = (y / u) (a / l) needs no second power.
    root = level.clamp(min=tiny)
    relative = powers.div_(scaled.clamp_(min=tiny)).mul_(root ** (1 / q - 1)).clamp_(max=1)
    return relative.to(rows.dtype)


def _by_sorting(rows: Tensor, support: Tensor, q: float) -> Tensor:
    """Return min(1, (l / a)^(q - 1)) for any q, computed with logarithms; slower than Newton."""
    slack = (rows > 0).sum(-1, keepdim=True) <= support  # (..., 1): at most m positive losses
    support = support.to(torch.float64)
    logs = rows.to(torch.float64).log()  # (..., n), -inf where the loss is 0
    # (..., n) in descending order from here on
    ordered = logs.sort(-1, descending=True).values
    powers = q * ordered  # log of l^q
    tails = powers.flip(-1).logcumsumexp(-1).flip(-1)  # log of the sum from each rank on
    after = F.pad(tails[..., 1:], (0, 1), value=-math.inf)
    rank = torch.arange(1, rows.shape[-1] + 1, device=rows.device)
    # The k largest losses have weight 1 as long as k + sum_{i > k} (l_i / l_k)^q <= m.
    fits = rank + torch.where(after == -math.inf, 0, (after - powers).exp()) <= support
    saturated = (fits & (rank < support)).sum(-1, keepdim=True)  # (..., 1)
    rest = tails.gather(-1, saturated.clamp(max=rows.shape[-1] - 1))
    # (..., 1): log a; then (..., n) in the order of the losses again
    log_a = (rest - (support - saturated).log()) / q
    relative = torch.where(slack, 1, ((q - 1) * (logs - log_a)).clamp(max=0).exp())
    return torch.where(rows > 0, relative, 0).to(rows.dtype)


def _largest(rows: Tensor, support: Tensor) -> Tensor:
    """Return the weights for p = 1: 1 / m for each of the m largest losses.

    Losses that equal the smallest of the m largest share what the larger ones leave of m.
    """
    # (..., 1): the smallest of the m largest losses
    place = (support.ceil().long() - 1).clamp(0, rows.shape[-1] - 1)
    least = rows.sort(-1, descending=True).values.gather(-1, place)
    above, ties = rows > least, rows == least  # (..., n)
    left = support - above.sum(-1, keepdim=True)
    share = left / ties.sum(-1, keepdim=True)
    weights = torch.where(above, 1, torch.where(ties & (rows > 0), share, 0))
    return weights / support


def require_bounds(p: float, ratio: float) -> None:
    """Raise an error for a norm or a share out of its range.

    Args:
        p: Expected in [1, inf].
        ratio: Expected in (0, 1].

    Raises:
        SetupError: With the value and the range.
    """
    if not p >= 1:
        raise SetupError(f"p of loss max-pooling must lie in [1, inf], not {p}", option="p")
    if not 0 < ratio <= 1:
        raise SetupError(
            f"ratio of loss max-pooling must lie in (0, 1], not {ratio}", option="ratio"
        )
