"""What colorization predicts of a colour, and how far off it is.

A network sees g = (R + G + B) / 3 and answers with logits for each of N locations. There are two
kinds of question, behind one interface, `ColorTarget`:

`HueChroma`: hue h in [0, 1) and chroma c = max(R, G, B) - min(R, G, B), each in K equal bins,

    L = mean over locations of CE(c) + hue_weight c CE(h)

where hue counts the less the greyer a location is. G. Larsson, M. Maire, G. Shakhnarovich:
Colorization as a Proxy Task for Visual Understanding (CVPR 2017, arXiv 1703.04044).

`ABGrid`: bins q of Lab's ab plane, with a soft target z over the nearest ones and a weight w that
grows with the rarity of the location's own bin,

    L = mean over locations of -w(bin) sum_q z_q log p_q
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

from lightning_seg.errors import SetupError
from lightning_seg.losses.color_spaces import (
    apply_matrix,
    hue_chroma,
    lab_to_rgb,
    rgb_to_lab,
    with_gray,
)
from lightning_seg.numerics import at_least_float32, masked_mean, require_mask
from lightning_seg.processes import world_size

_STEP = 3  # of 255, between the colours that the grid is made of
_HALVINGS = 24  # of [0, 100] in the search for L: as fine as float32


class ColorTarget(nn.Module, ABC):
    """Tells which logits a colour asks for, and which colour logits mean.

    Attributes:
        outputs: Logits per location.
    """

    outputs: int

    @abstractmethod
    def forward(self, logits: Tensor, rgb: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return the mean loss over the valid locations.

        Args:
            logits: (N, outputs), any floating dtype, finite; computed in float32 at least.
            rgb: (N, 3) true colours in [0, 1].
            valid: (N,) bool, False where a location does not count; None counts all.

        Returns:
            A scalar, at least 0; 0 with a zero gradient where no location counts.

        Raises:
            ValueError: Shapes that do not fit.
        """

    @abstractmethod
    def colors(self, logits: Tensor, gray: Tensor) -> Tensor:
        """Return (N, 3) RGB in [0, 1]: the colours that logits mean, of the given grey.

        Args:
            logits: (N, outputs).
            gray: (N,) in [0, 1]; the mean of the three channels of each result.

        Raises:
            ValueError: Shapes that do not fit.
        """

    def _require_fit(self, logits: Tensor, **others: tuple[Tensor, tuple[int, ...]]) -> None:
        """Refuse logits that are not (N, outputs), and others that are not (N, *rest)."""
        fit = logits.ndim == 2 and logits.shape[1] == self.outputs
        if not fit or any(each.shape != (len(logits), *rest) for each, rest in others.values()):
            found = "".join(f", {name} {tuple(each.shape)}" for name, (each, _) in others.items())
            wanted = "".join(
                f", ({', '.join(['N', *map(str, rest)])}{'' if rest else ','})"
                for _, rest in others.values()
            )
            raise ValueError(
                f"logits {tuple(logits.shape)}{found} do not fit: expected (N, {self.outputs})"
                f"{wanted}"
            )

    def _mean(self, losses: Tensor, valid: Tensor | None) -> Tensor:
        """Return the mean over the valid locations; 0 of an empty batch, too."""
        if valid is None:
            valid = torch.ones_like(losses, dtype=torch.bool)
        return masked_mean(losses, valid)


class HueChroma(ColorTarget):
    """Hue and chroma in bins of equal width: no grid, no prior.

    The logits of a location are those of its hue, then those of its chroma.

    Args:
        bins: K, of each of the two.
        hue_weight: What the cross-entropy of the hue is multiplied by, besides the chroma.

    Raises:
        SetupError: Less than 2 bins, or a weight that is negative or not finite.

    Example:
        Without any idea both cross-entropies are log 32. A red of chroma 1 costs 1 + 5 of them, a
        grey one.

        >>> target = HueChroma()
        >>> colors = torch.tensor([[1.0, 0.0, 0.0], [0.4, 0.4, 0.4]])
        >>> [round(target(torch.zeros(1, 64), each[None]).item() / math.log(32), 4)
        ...  for each in colors]
        [6.0, 1.0]
    """

    def __init__(self, bins: int = 32, hue_weight: float = 5.0) -> None:
        super().__init__()
        if bins < 2:
            raise SetupError(f"bins must be at least 2, not {bins} (option: --model.target.bins)")
        if not 0 <= hue_weight < math.inf:
            raise SetupError(
                f"hue_weight must be at least 0 and finite, not {hue_weight} "
                "(option: --model.target.hue_weight)"
            )
        self.bins = bins
        self.hue_weight = hue_weight
        self.outputs = 2 * bins

    def forward(self, logits: Tensor, rgb: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return the mean of CE(chroma) + hue_weight chroma CE(hue): see `ColorTarget`."""
        self._require_fit(logits, rgb=(rgb, (3,)))
        hue, chroma = hue_chroma(rgb)
        hue_logits, chroma_logits = at_least_float32(logits).tensor_split(2, 1)
        of_hue = F.cross_entropy(hue_logits, self._bin(hue), reduction="none")
        of_chroma = F.cross_entropy(chroma_logits, self._bin(chroma), reduction="none")
        return self._mean(of_chroma + self.hue_weight * chroma * of_hue, valid)

    def colors(self, logits: Tensor, gray: Tensor) -> Tensor:
        """Return the colours of the hue's circular mean and the chroma's median.

        The median, interpolated within its bin, and not the expectation: a softmax leaves
        something on every bin, and that pulls an expectation towards 1/2, which is a tint on all
        that is grey. What does not fit into the cube loses chroma, not hue or grey value. See
        `ColorTarget`.
        """
        self._require_fit(logits, gray=(gray, ()))
        hue_logits, chroma_logits = at_least_float32(logits).tensor_split(2, 1)
        hue = _circular_mean(hue_logits.softmax(1))
        chroma = _median(chroma_logits.softmax(1))
        # a hue's colour of chroma 1: each channel is a trapezoid around its own primary's hue
        primary = torch.tensor([0.0, 1 / 3, 2 / 3], dtype=hue.dtype, device=hue.device)
        away = (hue[:, None] - primary + 0.5).remainder(1) - 0.5
        pure = (2 - 6 * away.abs()).clamp(0, 1)
        return with_gray(gray.to(pure.dtype), chroma[:, None] * pure)

    def _bin(self, values: Tensor) -> Tensor:
        # the factor takes a value of 1 to the last bin, as the authors' code does
        return (values * (self.bins * 0.99999)).long()


class ABGrid(ColorTarget):
    """Bins on a square grid of Lab's ab plane, rare colours weighing more.

    The grid is made here, of what sRGB reaches: 261 bins at a spacing of 10, where the authors'
    data file has 313. The prior, too, comes without a file. It is a count of the nearest bins of
    all valid locations seen in training, those of the present batch included, over all processes;
    a buffer, and so in checkpoints. Before anything was seen it is uniform. The authors give no
    weight to images without any |ab| above 5; here they count like others.

    Args:
        spacing: Distance of neighbouring bins, in units of ab.
        neighbors: How many of the nearest bins share a location's target.
        sigma: Standard deviation of the Gaussian, in units of ab, by which they share it.
        mix: Share of the uniform distribution in what weights are the inverse of, in (0, 1]; 1
            weighs all alike.
        temperature: What logits are divided by for `colors`; below 1 these are more vivid.

    Attributes:
        centers: (Q, 2) the bins' a and b.
        counts: (Q,) int64, how often each was seen.

    Raises:
        SetupError: Settings out of range.

    Example:
        Before anything was seen all locations weigh 1, and without any idea each costs log 261.

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
        if not 1 <= spacing <= 50:
            # far below 1 the grid has more holes than bins, far above 50 one bin
            raise SetupError(
                f"spacing must be in [1, 50], not {spacing} (option: --model.target.spacing)"
            )
        for name, value in (("sigma", sigma), ("temperature", temperature)):
            if not 0 < value < math.inf:
                raise SetupError(
                    f"{name} must be above 0 and finite, not {value} "
                    f"(option: --model.target.{name})"
                )
        if not 0 < mix <= 1:
            # 0 would give bins that were not seen an infinite weight
            raise SetupError(f"mix must be in (0, 1], not {mix} (option: --model.target.mix)")
        centers = torch.tensor(_ab_bins(spacing))
        if not 1 <= neighbors <= len(centers):
            raise SetupError(
                f"neighbors must be in [1, {len(centers)}], not {neighbors} "
                "(option: --model.target.neighbors)"
            )
        self.neighbors = neighbors
        self.sigma = sigma
        self.mix = mix
        self.temperature = temperature
        self.outputs = len(centers)
        self.register_buffer("centers", centers, persistent=False)
        self.register_buffer("counts", torch.zeros(len(centers), dtype=torch.int64))

    def forward(self, logits: Tensor, rgb: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return the mean of weighted soft cross-entropies: see `ColorTarget`.

        In training mode a collective, where there are several processes.
        """
        self._require_fit(logits, rgb=(rgb, (3,)))
        bins, shares = self.soft_target(rgb)
        own = bins[:, 0]
        if valid is not None:
            require_mask(own, valid)
        if self.training:
            self._count(own, valid)
        found = at_least_float32(logits).log_softmax(1).gather(1, bins)
        weight = self.weights()[own].to(found.dtype)
        return self._mean(-weight * (shares * found).sum(1), valid)

    def soft_target(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """Return (N, neighbors) bins of (N, 3) colours, nearest first, and their shares of 1."""
        ab = rgb_to_lab(rgb)[:, 1:]
        squares = (ab[:, None] - self.centers.to(ab.dtype)).square().sum(2)
        nearest, bins = squares.topk(self.neighbors, largest=False)
        # normalised Gaussians, without underflow far from all bins
        return bins, (-nearest / (2 * self.sigma**2)).softmax(1)

    def weights(self) -> Tensor:
        """Return (Q,) float32: what a location of each bin weighs, by what was seen until now."""
        total = self.counts.sum()
        seen = self.counts.float() / total.clamp(min=1)
        prior = seen.where(total > 0, 1 / self.outputs)
        weight = 1 / ((1 - self.mix) * prior + self.mix / self.outputs)
        return weight / (prior * weight).sum()

    def colors(self, logits: Tensor, gray: Tensor) -> Tensor:
        """Return the colours of the expected ab, with the L that makes them as grey as asked.

        The expectation is of the softmax of logits / temperature. An ab that no colour of this
        grey value has is brought into the cube by less chroma. See `ColorTarget`.
        """
        self._require_fit(logits, gray=(gray, ()))
        shares = (at_least_float32(logits) / self.temperature).softmax(1)
        gray = gray.to(shares.dtype)
        ab = apply_matrix(self.centers.to(shares.dtype).T, shares)
        # The grey value grows with L, but by no formula that could be solved. Far out of gamut it
        # may be too light even at L = 0; what is then left to do is `with_gray`'s.
        low, high = torch.zeros_like(gray), torch.full_like(gray, 100)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            dark = lab_to_rgb(torch.cat([middle[:, None], ab], 1)).mean(1) < gray
            low, high = middle.where(dark, low), high.where(dark, middle)
        return with_gray(gray, lab_to_rgb(torch.cat([low[:, None], ab], 1)))

    @torch.no_grad()
    def _count(self, bins: Tensor, valid: Tensor | None) -> None:
        once = torch.ones_like(bins) if valid is None else valid.to(bins.dtype)
        batch = torch.zeros_like(self.counts).index_add_(0, bins, once)
        if world_size() > 1:
            dist.all_reduce(batch)
        self.counts += batch


@lru_cache(maxsize=8)
def _ab_bins(spacing: float) -> tuple[tuple[float, float], ...]:
    """Return the points of a grid that ab of some sRGB colour is rounded to, in order."""
    level = torch.arange(0, 256, _STEP, dtype=torch.float64) / 255
    ab = rgb_to_lab(torch.cartesian_prod(level, level, level))[:, 1:]
    bins: list[list[float]] = torch.unique((ab / spacing).round(), dim=0).tolist()
    return tuple((a * spacing, b * spacing) for a, b in bins)


def _circular_mean(shares: Tensor) -> Tensor:
    """Return the mean in [0, 1] of (N, K) distributions over bins on a circle of length 1."""
    bins = shares.shape[1]
    angle = (torch.arange(bins, dtype=shares.dtype, device=shares.device) + 0.5) * (math.tau / bins)
    along, across = (shares * angle.cos()).sum(1), (shares * angle.sin()).sum(1)
    return (torch.atan2(across, along) / math.tau).remainder(1)


def _median(shares: Tensor) -> Tensor:
    """Return where (N, K) distributions over bins of [0, 1], even within each, reach one half."""
    below = shares.cumsum(1) - shares
    # the last bin that begins at or below one half; the first always does
    at = (below <= 0.5).sum(1, keepdim=True) - 1
    share = shares.gather(1, at).clamp(min=torch.finfo(shares.dtype).tiny)
    inside = ((0.5 - below.gather(1, at)) / share).clamp(0, 1)
    return ((at + inside) / shares.shape[1])[:, 0]
