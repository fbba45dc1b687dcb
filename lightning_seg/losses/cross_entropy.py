"""Per-pixel cross-entropy, safe where nothing is labelled."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_seg.numerics import at_least_float32


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Mean negative log-likelihood of the labelled pixels.

    `L = sum_i w_{y_i} * -log softmax(z_i)_{y_i} / sum_i w_{y_i}` over pixels i with a label. It
    is `torch.nn.functional.cross_entropy`, but 0 with a zero gradient instead of NaN where no
    pixel is labelled.

    Args:
        logits: (B, C, H, W), any floating dtype; computed in float32 at least.
        target: (B, H, W) int64 class ids in [0, C), or `ignore_index`.
        ignore_index: The id of pixels that do not count.
        class_weights: (C,) weights; None weighs all classes alike.
        label_smoothing: Share of the target spread over all classes, in [0, 1].

    Returns:
        A scalar, at least 0.

    Example:
        Two pixels with p(truth) = 1/2 and 3/4, one void: (log 2 + log 4/3) / 2 = 0.4904.

        >>> logits = torch.tensor([[0.5, 0.25, 0.1], [0.5, 0.75, 0.9]]).log().view(1, 2, 1, 3)
        >>> target = torch.tensor([[[0, 1, 255]]])
        >>> round(cross_entropy(logits, target).item(), 4)
        0.4904
    """
    logits = at_least_float32(logits)
    if class_weights is not None:
        class_weights = class_weights.to(logits.dtype)
    total = F.cross_entropy(
        logits,
        target,
        weight=class_weights,
        ignore_index=ignore_index,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    valid = target != ignore_index
    if class_weights is None:
        weight = valid.sum().to(total.dtype)
    else:
        weight = (class_weights[target.where(valid, 0)] * valid).sum().to(total.dtype)
    return total / weight.clamp(min=torch.finfo(weight.dtype).tiny)


class CrossEntropy(nn.Module):
    """`cross_entropy` with its constants.

    Args:
        ignore_index: The id of pixels that do not count.
        class_weights: One weight per class; None weighs all alike.
        label_smoothing: Share of the target spread over all classes, in [0, 1].
    """

    class_weights: Tensor | None

    def __init__(
        self,
        ignore_index: int = 255,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of (B, C, H, W) logits on a (B, H, W) target, a scalar."""
        return cross_entropy(
            logits, target, self.ignore_index, self.class_weights, self.label_smoothing
        )
