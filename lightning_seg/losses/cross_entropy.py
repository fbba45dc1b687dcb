"""Per-pixel cross-entropy that is 0, and not NaN, where no pixel is labelled."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_seg.losses.block_cross_entropy import Constants, block_cross_entropy, fitting
from lightning_seg.numerics import at_least_float32, mean_of


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    across_ranks: bool = False,
) -> Tensor:
    """Return the mean negative log-likelihood of the labelled pixels.

    With logits z, class ids y and class weights w, over all pixels i that are labelled,

        L = sum_i w_{y_i} * -log softmax(z_i)_{y_i} / sum_i w_{y_i}

    `torch.nn.functional.cross_entropy` computes the same, but is NaN where no pixel is labelled.

    Logits may be smaller than the labels. They are then upsampled within the loss, bilinearly with
    `align_corners=False`, some rows at a time, so that full-size logits are never in memory.

    Args:
        logits: (B, C, h, w) with h <= H and w <= W, any floating dtype; computed in float32 or
            wider.
        target: (B, H, W) int64 class ids in [0, C), or `ignore_index`.
        ignore_index: The class id of pixels to leave out.
        class_weights: (C,) weights of the classes, at least 0; None weighs all classes by 1.
        label_smoothing: Share of the target distribution that is spread evenly over all classes,
            in [0, 1]; 0 keeps one-hot targets.
        across_ranks: Take the mean over the pixels of all processes; see `numerics.mean_of`.

    Returns:
        A scalar, at least 0; 0 with a zero gradient where no pixel is labelled.

    Raises:
        ValueError: The shapes do not fit.
        IndexError: On CPUs, a class id is neither in [0, C) nor `ignore_index`.
        SetupError: A gradient of the gradient was asked for, of logits smaller than the labels.

    Examples:
        2x2 pixels, of which two are labelled with p(true class) = 1/2 and 3/4:
        (log 2 + log 4/3) / 2 = 0.4904.

        >>> p_class_1 = torch.tensor([[0.5, 0.75], [0.9, 0.1]])
        >>> logits = torch.stack([1 - p_class_1, p_class_1])[None].log()
        >>> target = torch.tensor([[[0, 1], [255, 255]]])
        >>> round(cross_entropy(logits, target).item(), 4)
        0.4904
    """
    logits, by_blocks = fitting(at_least_float32(logits), target)
    if class_weights is not None:
        class_weights = class_weights.to(logits.dtype)
    valid = target != ignore_index  # (B, H, W)
    # (B, C, h, w) and (B, H, W) -> a scalar, the sum over labelled pixels
    if by_blocks:
        constants = Constants(class_weights, label_smoothing)
        total = block_cross_entropy(logits, target, valid, None, constants)
    else:
        total = F.cross_entropy(
            logits,
            target,
            weight=class_weights,
            ignore_index=ignore_index,
            reduction="sum",
            label_smoothing=label_smoothing,
        )
    if class_weights is None:
        weight = valid.sum()
    else:
        # (C,) -> (B, H, W), the weight of every pixel's class, summed
        weight = (class_weights[target.where(valid, 0)] * valid).sum()
    return mean_of(total, weight, across_ranks, least=torch.finfo(total.dtype).tiny)


class CrossEntropy(nn.Module):
    """`cross_entropy` as a module that holds the constants.

    Args:
        ignore_index: The class id of pixels to leave out.
        class_weights: One weight per class, at least 0; None weighs all classes by 1.
        label_smoothing: Share of the target distribution that is spread evenly over all classes,
            in [0, 1]; 0 keeps one-hot targets.
        across_ranks: In training mode, take the mean over the pixels of all processes.

    Shape:
        (B, C, h, w) logits, no larger than the labels, and (B, H, W) class ids -> a scalar.

    Examples:
        >>> loss = CrossEntropy()
        >>> round(loss(torch.zeros(1, 2, 2, 2), torch.tensor([[[0, 1], [1, 255]]])).item(), 4)
        0.6931
    """

    takes_smaller_logits = True
    class_weights: Tensor | None

    def __init__(
        self,
        ignore_index: int = 255,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        across_ranks: bool = False,
    ) -> None:
        super().__init__()
        self.across_ranks = across_ranks
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss; see `cross_entropy`.

        Args:
            logits: (B, C, h, w) with h <= H and w <= W, any floating dtype.
            target: (B, H, W) int64 class ids in [0, C), or `ignore_index`.

        Returns:
            A scalar, at least 0.
        """
        return cross_entropy(
            logits,
            target,
            self.ignore_index,
            self.class_weights,
            self.label_smoothing,
            self.across_ranks and self.training,
        )
