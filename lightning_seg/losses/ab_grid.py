"""The colour target on Lab's ab plane: soft bins of a square grid, rare colours weighted up.

The a and b of CIE Lab are classified into bins q of a square grid. The target z is soft: the
nearest bins share it. The weight w of a location grows with the rarity of its nearest bin:

    L = mean over locations of -w(nearest bin) sum_q z_q log p_q
    w(q) ~ 1 / ((1 - mix) prior(q) + mix / Q), scaled so that sum_q prior(q) w(q) = 1

R. Zhang, P. Isola, A. A. Efros: Colorful Image Colorization (ECCV 2016, arXiv 1603.08511).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_seg.errors import SetupError, require_range
from lightning_seg.losses.color_spaces import apply_matrix, lab_to_rgb, rgb_to_lab, with_gray
from lightning_seg.losses.colorization import ColorTarget
from lightning_seg.numerics import at_least_float32, require_mask
from lightning_seg.processes import world_size

_LEVEL_STEP = 3  # of 255: distance of the sRGB levels that `_ab_bins` visits
_BISECTIONS = 24  # of [0, 100] in the search for L: as fine as float32


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
            more vivid. The loss does not depend on it. Default chosen here; the paper takes 0.38.

    Attributes:
        outputs: Number Q of bins, and of logits per location.
        centers: (Q, 2) float, a and b of the bins.
        counts: (Q,) int64, number of locations seen of each bin.

    Raises:
        SetupError: An argument is out of its range.

    Examples:
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
