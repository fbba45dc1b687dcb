"""Colour targets: what a colorization network predicts of a colour, and the loss of a prediction.

The network sees the grey value g = (R + G + B) / 3 and returns logits for each of N locations. All
targets share the interface `ColorTarget`.

`HueChroma` classifies the hue h in [0, 1) and the chroma c = max(R, G, B) - min(R, G, B), each into
K bins of equal width:

    L = mean over locations of CE(c) + hue_weight c CE(h)

The factor c removes the hue term from grey locations, whose hue is undefined. G. Larsson, M. Maire,
G. Shakhnarovich: Colorization as a Proxy Task for Visual Understanding (CVPR 2017, arXiv
1703.04044).

The other target, `lightning_seg.losses.ab_grid.ABGrid`, classifies the a and b of CIE Lab.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_seg.errors import require_range
from lightning_seg.losses.color_spaces import hue_chroma, with_gray
from lightning_seg.numerics import at_least_float32, masked_mean


class ColorTarget(nn.Module, ABC):
    """The interface of a colour target: a loss for logits, and the colours that logits stand for.

    Attributes:
        outputs: Number of logits per location.
        across_ranks: In training mode, take the mean over the locations of all processes.
    """

    outputs: int
    across_ranks: bool = False

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
        return masked_mean(losses, valid, self.across_ranks and self.training)


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

    Examples:
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
