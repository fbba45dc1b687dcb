"""Several losses of pixels as one: a weighted sum whose terms can be logged."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_seg.errors import SetupError, require_range


class WeightedSum(nn.Module):
    """The sum of several losses of pixels, each times its weight.

    With losses l_k and weights w_k of the names k,

        L = sum_k w_k l_k

    Args:
        losses: Losses by name, each a module (logits, class ids) -> scalar. A training logs each
            one as `loss_<name>`, before its weight.
        weights: Weights by the names of the losses, at least 0; a loss without one has the
            weight 1. None weighs all losses by 1.

    Raises:
        SetupError: There is no loss, a weight is negative, or a weight has the name of no loss.

    Shape:
        (B, C, H, W) logits and (B, H, W) class ids -> a scalar.

    Examples:
        Equal logits of two classes have the cross-entropy log 2 = 0.693, so the sum is 1.5 log 2.

        >>> from lightning_seg.losses import CrossEntropy
        >>> loss = WeightedSum({"a": CrossEntropy(), "b": CrossEntropy()}, {"b": 0.5})
        >>> logits, target = torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]])
        >>> round(loss(logits, target).item(), 4)
        1.0397
        >>> {name: round(term.item(), 4) for name, term in loss.terms(logits, target).items()}
        {'a': 0.6931, 'b': 0.6931}
    """

    def __init__(
        self, losses: dict[str, nn.Module], weights: dict[str, float] | None = None
    ) -> None:
        super().__init__()
        weights = weights or {}
        if not losses:
            raise SetupError("WeightedSum has no losses to add", option="losses")
        if unknown := [name for name in weights if name not in losses]:
            raise SetupError(
                f"WeightedSum has a weight for `{unknown[0]}`, and its losses are "
                f"{', '.join(losses)}",
                option="weights",
            )
        for weight in weights.values():
            require_range(0, math.inf, weights=weight)
        self.names = list(losses)
        self.weights = [float(weights.get(name, 1.0)) for name in losses]
        self.losses = nn.ModuleList(losses.values())  # a ModuleDict refuses some names

    @property
    def takes_smaller_logits(self) -> bool:
        """Whether all losses take logits that are smaller than the labels."""
        return all(getattr(loss, "takes_smaller_logits", False) for loss in self.losses)

    def terms(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return every loss by its name, before its weight.

        Args:
            logits: (B, C, H, W), any floating dtype.
            target: (B, H, W) int64 class ids.
        """
        pairs = zip(self.names, self.losses, strict=True)
        return {name: loss(logits, target) for name, loss in pairs}

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum of the losses that `terms` returned, a scalar."""
        pairs = zip(self.names, self.weights, strict=True)
        return torch.stack([weight * terms[name] for name, weight in pairs]).sum()

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the weighted sum.

        Args:
            logits: (B, C, H, W), any floating dtype.
            target: (B, H, W) int64 class ids.

        Returns:
            A scalar.
        """
        return self.total(self.terms(logits, target))
