"""Colour targets: what a colorization network predicts of a colour, and the loss of a prediction.

The network sees the grey value g = (R + G + B) / 3 and returns logits for each of N locations. Two
targets share the interface `ColorTarget`.

`HueChroma` classifies the hue h in [0, 1) and the chroma c = max(R, G, B) - min(R, G, B), each into
K bins of equal width:

    L = mean over locations of CE(c) + hue_weight c CE(h)

The factor c removes the hue term from grey locations, whose hue is undefined. G. Larsson, M. Maire,
G. Shakhnarovich: Colorization as a Proxy Task for Visual Understanding (CVPR 2017, arXiv
1703.04044).

`ABGrid` classifies the a and b of CIE Lab into bins q of a square grid. The target z is soft: the
nearest bins share it. The weight w of a location grows with the rarity of its nearest bin:

    L = mean over locations of -w(nearest bin) sum_q z_q log p_q
    w(q) ~ 1 / ((1 - mix) prior(q) + mix / Q), scaled so that sum_q prior(q) w(q) = 1

R. Zhang, P. Isola, A. A. Efros: Colorful Image Colorization (ECCV 2016, arXiv 1603.08511).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import lru_cache

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_seg.errors import SetupError, require_range
from lightning_seg.losses.color_spaces import (
    apply_matrix,
    hue_chroma,
    lab_to_rgb,
    rgb_to_lab,
    with_gray,
)
from lightning_seg.numerics import at_least_float32, masked_mean, require_mask
from lightning_seg.processes import world_size

_LEVEL_STEP = 3  # of 255: distance of the sRGB levels that `_ab_bins` visits
_BISECTIONS = 24  # of [0, 100] in the search for L: as fine as float32


class ColorTarget(nn.Module, ABC):
    """The interface of a colour target: a loss for logits, and the colours that logits stand for.

    Attributes:
        outputs: Number of logits per location.
    """

    outputs: int

    @abstractmethod
    def forward(self, logits: Tensor, rgb: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return the mean loss over the valid locations.

        Args:
            logits: (N, outputs), any floating dtype, finite; computed in float32 or wider.
            rgb: (N, 3) true colours, sRGB in [0, 1].
            valid: (N,) bool, False for locations to leave out; None counts all.

        Returns:
            A scalar, at least 0; 0 with a zero gradient where no location is valid.

        Raises:
            ValueError: The shapes do not fit.
        """

    @abstractmethod
    def colors(self, logits: Tensor, gray: Tensor) -> Tensor:
        """Return the colours that logits stand for, at given grey values.

        Args:
            logits: (N, outputs), any floating dtype, finite; computed in float32 or wider.
            gray: (N,) grey values (R + G + B) / 3 of the results, in [0, 1].

        Returns:
            (N, 3) sRGB in [0, 1].

        Raises:
            ValueError: The shapes do not fit.
        """

    def _require_fit(self, logits: Tensor, **others: tuple[Tensor, tuple[int, ...]]) -> None:
        """Raise an error unless logits are (N, outputs) and each other tensor is (N, *rest).

        Args:
            logits: The logits.
            others: Tensors and the sizes that must follow N, by the names of the arguments.
        """
        fit = logits.ndim == 2 and logits.shape[1] == self.outputs
        if not fit or any(each.shape != (len(logits), *rest) for each, rest in others.values()):
            given = "".join(f", {name} {tuple(each.shape)}" for name, (each, _) in others.items())
            expected = "".join(
                f", ({', '.join(['N', *map(str, rest)])}{'' if rest else ','})"
                for _, rest in others.values()
            )
            raise ValueError(
                f"logits {tuple(logits.shape)}{given} do not fit: expected (N, {self.outputs})"
                f"{expected}"
            )

    def _mean(self, losses: Tensor, valid: Tensor | None) -> Tensor:
        """Return the mean of (N,) losses over the valid locations; 0 where N is 0."""
        if valid is None:
            valid = torch.ones_like(losses, dtype=torch.bool)
        return masked_mean(losses, valid)


class HueChroma(ColorTarget):
    """Classification of hue and chroma into bins of equal width.

    The first K logits of a location are those of its hue, the next K those of its chroma.

    Args:
        bins: Number K of bins of the hue, and of the chroma; at least 2.
        hue_weight: Factor of the hue's cross-entropy, at least 0. The hue of a location is
            weighted by `hue_weight` times its chroma.

    Attributes:
        outputs: Number of logits per location, 2 K.

    Raises:
        SetupError: An argument is out of its range.

    Example:
        Uniform logits have a cross-entropy of log 32 for the hue and for the chroma. The hue term
        is weighted by chroma: red (chroma 1) costs 1 + 5 times log 32, grey (chroma 0) once.

        >>> target = HueChroma(bins=32, hue_weight=5.0)
        >>> red, gray = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.4, 0.4, 0.4]])
        >>> uniform = torch.zeros(1, target.outputs)
        >>> [round(target(uniform, rgb).item() / math.log(32), 4) for rgb in (red, gray)]
        [6.0, 1.0]
    """

    def __init__(self, bins: int = 32, hue_weight: float = 5.0) -> None:
        super().__init__()
        require_range(2, math.inf, bins=bins)
        require_range(0, math.inf, hue_weight=hue_weight)
        self.bins = bins
        self.hue_weight = hue_weight
        self.outputs = 2 * bins

    def forward(self, logits: Tensor, rgb: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return the mean of CE(chroma) + hue_weight chroma CE(hue).

        Args:
            logits: (N, 2 K), any floating dtype, finite; computed in float32 or wider.
            rgb: (N, 3) true colours, sRGB in [0, 1].
            valid: (N,) bool, False for locations to leave out; None counts all.

        Returns:
            A scalar, at least 0; 0 with a zero gradient where no location is valid.

        Raises:
            ValueError: The shapes do not fit.
        """
        self._require_fit(logits, rgb=(rgb, (3,)))
        hue, chroma = hue_chroma(rgb)  # (N, 3) -> two of (N,)
        # (N, 2 K) -> two of (N, K) -> two of (N,)
        hue_logits, chroma_logits = at_least_float32(logits).tensor_split(2, 1)
        of_hue = F.cross_entropy(hue_logits, self._bin(hue), reduction="none")
        of_chroma = F.cross_entropy(chroma_logits, self._bin(chroma), reduction="none")
        return self._mean(of_chroma + self.hue_weight * chroma * of_hue, valid)

    def colors(self, logits: Tensor, gray: Tensor) -> Tensor:
        """Return the colours of the circular mean of the hue and the median of the chroma.

        The median is interpolated within its bin. The expectation is not used, because a softmax
        leaves some probability on every bin, which pulls the expectation of the chroma towards
        1/2 and tints what is grey. A colour outside the RGB cube loses chroma and keeps its hue
        and grey value.

        Args:
            logits: (N, 2 K), any floating dtype, finite; computed in float32 or wider.
            gray: (N,) grey values (R + G + B) / 3 of the results, in [0, 1].

        Returns:
            (N, 3) sRGB in [0, 1].

        Raises:
            ValueError: The shapes do not fit.
        """
        self._require_fit(logits, gray=(gray, ()))
        # (N, 2 K) -> two of (N, K) -> two of (N,)
        hue_logits, chroma_logits = at_least_float32(logits).tensor_split(2, 1)
        hue = _circular_mean(hue_logits.softmax(1))
        chroma = _median(chroma_logits.softmax(1))
        # (N, 3), the colour of each hue at chroma 1: a channel is a trapezoid in the distance of
        # the hue from that of its primary, 1 up to 1/6 and 0 from 1/3
        primary = torch.tensor([0.0, 1 / 3, 2 / 3], dtype=hue.dtype, device=hue.device)
        away = (hue[:, None] - primary + 0.5).remainder(1) - 0.5
        pure = (2 - 6 * away.abs()).clamp(0, 1)
        return with_gray(gray.to(pure.dtype), chroma[:, None] * pure)

    def _bin(self, values: Tensor) -> Tensor:
        """Return the bins, 0 to K - 1, of values in [0, 1]."""
        # The factor puts a value of 1 into the last bin, as in the authors' code.
        return (values * (self.bins * 0.99999)).long()


class ABGrid(ColorTarget):
    """Classification of Lab's a and b into bins of a square grid, with rare colours weighted up.

    The grid holds the bins that colours of sRGB fall into: 261 at a spacing of 10. The prior is the
    relative frequency of the nearest bins of all valid locations seen in training, those of the
    current batch included, summed over all processes. It is uniform before the first batch. The
    counts are a buffer, and so part of checkpoints.

    Differences from the authors' code: their data files hold 313 bins and a fixed prior. They leave
    out images without any |a| or |b| above 5; this class leaves out none.

    Args:
        spacing: Distance of neighbouring bins in units of Lab, in [1, 50].
        neighbors: Number of nearest bins that share the target of a location, at least 1.
        sigma: Standard deviation in units of Lab, above 0, of the Gaussian of the distance by
            which the nearest bins share the target.
        mix: Share of the uniform distribution in the distribution whose inverse gives the
            weights, in (0, 1]; 1 weighs all locations alike.
        temperature: Divisor of the logits in `colors`, above 0; a value below 1 makes the colours
            more vivid. The loss does not depend on it.

    Attributes:
        outputs: Number Q of bins, and of logits per location.
        centers: (Q, 2) float, a and b of the bins.
        counts: (Q,) int64, number of locations seen of each bin.

    Raises:
        SetupError: An argument is out of its range.

    Example:
        Before the first batch all locations weigh 1. Uniform logits cost log 261 each.

        >>> target = ABGrid().eval()
        >>> loss = target(torch.zeros(3, 261), torch.rand(3, 3))
        >>> target.outputs, round(loss.item() / math.log(261), 4)
        (261, 1.0)
    """

    centers: Tensor
    counts: Tensor

    def __init__(
        self,
        spacing: float = 10.0,
        neighbors: int = 10,
        sigma: float = 5.0,
        mix: float = 0.5,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        # Far below 1, `_ab_bins` leaves holes in the grid; far above 50, one bin is left.
        require_range(1, 50, spacing=spacing)
        for name, value in (("sigma", sigma), ("temperature", temperature)):
            if not 0 < value < math.inf:
                raise SetupError(f"{name} must be above 0 and finite, not {value}", option=name)
        if not 0 < mix <= 1:
            # With 0, the weight of bins that were not seen would be infinite.
            raise SetupError(f"mix must be in (0, 1], not {mix}", option="mix")
        centers = torch.tensor(_ab_bins(spacing))
        require_range(1, len(centers), neighbors=neighbors)
        self.neighbors = neighbors
        self.sigma = sigma
        self.mix = mix
        self.temperature = temperature
        self.outputs = len(centers)
        self.register_buffer("centers", centers, persistent=False)
        self.register_buffer("counts", torch.zeros(len(centers), dtype=torch.int64))

    def forward(self, logits: Tensor, rgb: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return the mean of the weighted soft cross-entropies.

        In training mode the locations are counted first. With several processes that is a
        collective operation, which every process has to enter.

        Args:
            logits: (N, Q), any floating dtype, finite; computed in float32 or wider.
            rgb: (N, 3) true colours, sRGB in [0, 1].
            valid: (N,) bool, False for locations to leave out; None counts all.

        Returns:
            A scalar, at least 0; 0 with a zero gradient where no location is valid.

        Raises:
            ValueError: The shapes do not fit.
        """
        self._require_fit(logits, rgb=(rgb, (3,)))
        bins, shares = self.soft_target(rgb)  # both (N, neighbors)
        nearest = bins[:, 0]  # (N,)
        if valid is not None:
            require_mask(nearest, valid)
        if self.training:
            self._count(nearest, valid)
        # (N, Q) -> (N, neighbors): the target is 0 at all other bins
        log_p = at_least_float32(logits).log_softmax(1).gather(1, bins)
        weight = self.weights()[nearest].to(log_p.dtype)  # (N,)
        return self._mean(-weight * (shares * log_p).sum(1), valid)

    def soft_target(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """Return the bins nearest to colours, and the share of the target that each bin gets.

        Args:
            rgb: (N, 3) sRGB in [0, 1].

        Returns:
            (N, neighbors) int64 bins, nearest first, and (N, neighbors) shares that sum to 1.
        """
        ab = rgb_to_lab(rgb)[:, 1:]  # (N, 3) -> (N, 2)
        squares = (ab[:, None] - self.centers.to(ab.dtype)).square().sum(2)  # (N, Q)
        nearest, bins = squares.topk(self.neighbors, largest=False)
        # A softmax of exponents normalises the Gaussians without underflow far from all bins.
        return bins, (-nearest / (2 * self.sigma**2)).softmax(1)

    def weights(self) -> Tensor:
        """Return the weight w(q) of a location whose nearest bin is q, from the current counts.

        Returns:
            (Q,) float32; their mean under the prior is 1.
        """
        total = self.counts.sum()
        seen = self.counts.float() / total.clamp(min=1)
        prior = seen.where(total > 0, 1 / self.outputs)
        weight = 1 / ((1 - self.mix) * prior + self.mix / self.outputs)
        return weight / (prior * weight).sum()

    def colors(self, logits: Tensor, gray: Tensor) -> Tensor:
        """Return the colours of the expected a and b, with the L that gives the grey values.

        The expectation is under the softmax of logits / temperature. An expected a and b that no
        colour of the grey value has loses chroma until it lies in the RGB cube.

        Args:
            logits: (N, Q), any floating dtype, finite; computed in float32 or wider.
            gray: (N,) grey values (R + G + B) / 3 of the results, in [0, 1].

        Returns:
            (N, 3) sRGB in [0, 1].

        Raises:
            ValueError: The shapes do not fit.
        """
        self._require_fit(logits, gray=(gray, ()))
        shares = (at_least_float32(logits) / self.temperature).softmax(1)
        gray = gray.to(shares.dtype)
        ab = apply_matrix(self.centers.to(shares.dtype).T, shares)  # (N, Q) -> (N, 2)
        # The grey value grows with L, but no formula solves it for L: (N,) bisections. Far outside
        # of sRGB a colour may be too light even at L = 0, which `with_gray` corrects.
        low, high = torch.zeros_like(gray), torch.full_like(gray, 100)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            dark = lab_to_rgb(torch.cat([middle[:, None], ab], 1)).mean(1) < gray
            low, high = middle.where(dark, low), high.where(dark, middle)
        return with_gray(gray, lab_to_rgb(torch.cat([low[:, None], ab], 1)))

    @torch.no_grad()
    def _count(self, bins: Tensor, valid: Tensor | None) -> None:
        """Add the (N,) bins of the valid locations of all processes to the counts."""
        once = torch.ones_like(bins) if valid is None else valid.to(bins.dtype)
        batch = torch.zeros_like(self.counts).index_add_(0, bins, once)  # (N,) -> (Q,)
        if world_size() > 1:
            dist.all_reduce(batch)
        self.counts += batch


@lru_cache(maxsize=8)
def _ab_bins(spacing: float) -> tuple[tuple[float, float], ...]:
    """Return a and b of the grid points that colours of sRGB are rounded to, in rising order."""
    level = torch.arange(0, 256, _LEVEL_STEP, dtype=torch.float64) / 255
    ab = rgb_to_lab(torch.cartesian_prod(level, level, level))[:, 1:]
    bins: list[list[float]] = torch.unique((ab / spacing).round(), dim=0).tolist()
    return tuple((a * spacing, b * spacing) for a, b in bins)


def _circular_mean(shares: Tensor) -> Tensor:
    """Return the circular means of distributions over equal bins of a circle of length 1.

    Args:
        shares: (N, K) probabilities.

    Returns:
        (N,) means in [0, 1].
    """
    bins = shares.shape[1]
    angle = (torch.arange(bins, dtype=shares.dtype, device=shares.device) + 0.5) * (math.tau / bins)
    along, across = (shares * angle.cos()).sum(1), (shares * angle.sin()).sum(1)
    return (torch.atan2(across, along) / math.tau).remainder(1)


def _median(shares: Tensor) -> Tensor:
    """Return the medians of distributions over equal bins of [0, 1], uniform within each bin.

    Args:
        shares: (N, K) probabilities.

    Returns:
        (N,) medians in [0, 1].
    """
    below = shares.cumsum(1) - shares  # (N, K): probability of all earlier bins
    # (N, 1): the last bin that begins at or below one half; the first bin always does
    at = (below <= 0.5).sum(1, keepdim=True) - 1
    share = shares.gather(1, at).clamp(min=torch.finfo(shares.dtype).tiny)
    inside = ((0.5 - below.gather(1, at)) / share).clamp(0, 1)
    return ((at + inside) / shares.shape[1])[:, 0]
