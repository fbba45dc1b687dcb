"""The losses of adversarial semi-supervised segmentation.

A discriminator returns one logit d per pixel, large where it takes a class map for a label. With d
resized to the size of the label map, and every mean taken over the valid pixels,

    L_D    = 1/2 mean log(1 + exp(d(prediction))) + 1/2 mean log(1 + exp(-d(label)))
    L_adv  = mean log(1 + exp(-d(prediction)))
    L_semi = mean over pixels with sigmoid(d) >= T of -log p(most probable class)

W.-C. Hung, Y.-H. Tsai, Y.-T. Liou, Y.-Y. Lin, M.-H. Yang: Adversarial Learning for Semi-Supervised
Semantic Segmentation (BMVC 2018, arXiv 1802.07934).

Difference from the paper: the paper sums over pixels. This module takes means, as the authors' code
does; the published loss weights belong to means.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_seg.losses.cross_entropy import cross_entropy
from lightning_seg.losses.upsampled_labels import most_probable
from lightning_seg.numerics import at_least_float32, masked_mean, require_mask


def score_map(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize the logits of a discriminator to the size of an image.

    The interpolation is bilinear with `align_corners=True`, as in the authors' code.

    Args:
        scores: (B, 1, h, w) or (B, h, w) logits, any floating dtype.
        size: Height H and width W of the result in pixels.

    Returns:
        (B, H, W) logits, float32 or wider.

    Raises:
        ValueError: `scores` has more than one channel or another number of dimensions.

    Examples:
        >>> score_map(torch.tensor([[[[0.0, 2.0]]]]), (2, 3)).tolist()
        [[[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]]
    """
    if scores.ndim not in (3, 4) or (scores.ndim == 4 and scores.shape[1] != 1):
        raise ValueError(f"scores {tuple(scores.shape)}: expected (B, 1, h, w) or (B, h, w)")
    scores = at_least_float32(scores if scores.ndim == 4 else scores[:, None])
    if scores.shape[-2:] != size:
        scores = F.interpolate(scores, size, mode="bilinear", align_corners=True)
    return scores[:, 0]


def adversarial_loss(
    scores: Tensor, valid: Tensor | None = None, across_ranks: bool = False
) -> Tensor:
    """Return L_adv, the mean of -log sigmoid(d).

    The loss is small where the discriminator takes predictions for labels; the segmenter
    minimises it.

    Args:
        scores: (B, 1, h, w) or (B, h, w) logits d of the discriminator for predictions, any
            floating dtype; computed in float32 or wider.
        valid: (B, H, W) bool, False for pixels to leave out. Scores of another size are resized
            to (H, W). None averages over all scores at their own size.
        across_ranks: Take the mean over the pixels of all processes; see `numerics.mean_of`.

    Returns:
        A scalar, at least 0; 0 with a zero gradient where no pixel is valid.

    Raises:
        ValueError: The shapes do not fit.

    Examples:
        A discriminator that cannot decide returns d = 0 at all of 2x2 pixels, and the loss is
        -log(1/2) = 0.6931.

        >>> round(adversarial_loss(torch.zeros(1, 1, 2, 2)).item(), 4)
        0.6931
    """
    return masked_mean(F.softplus(-_resized(scores, valid)), valid, across_ranks)


def discriminator_loss(
    fake: Tensor,
    real: Tensor,
    fake_valid: Tensor | None = None,
    real_valid: Tensor | None = None,
    across_ranks: bool = False,
) -> Tensor:
    """Return L_D, the binary cross-entropy of the discriminator.

    Predictions have the target 0 and labels the target 1; each kind contributes half of its mean.

    Args:
        fake: (B, 1, h, w) or (B, h, w) logits d for predictions, any floating dtype; computed in
            float32 or wider.
        real: (B', 1, h', w') or (B', h', w') logits d for labels.
        fake_valid: (B, H, W) bool, False for pixels of predictions to leave out. Scores of another
            size are resized to (H, W). None averages over all scores at their own size.
        real_valid: (B', H', W') bool, False for pixels of labels to leave out.
        across_ranks: Take both means over the pixels of all processes; see `numerics.mean_of`.

    Returns:
        A scalar, at least 0; log 2 = 0.6931 for a discriminator that cannot decide.

    Raises:
        ValueError: The shapes do not fit.

    Examples:
        d = 0 for 2x2 pixels of a prediction, and for 2x2 pixels of a label.

        >>> scores = torch.zeros(1, 1, 2, 2)
        >>> round(discriminator_loss(scores, scores).item(), 4)
        0.6931
    """
    of_predictions = masked_mean(F.softplus(_resized(fake, fake_valid)), fake_valid, across_ranks)
    return (of_predictions + adversarial_loss(real, real_valid, across_ranks)) / 2


def pseudo_labels(
    logits: Tensor,
    scores: Tensor,
    threshold: float = 0.2,
    valid: Tensor | None = None,
    ignore_index: int = 255,
) -> Tensor:
    """Return the most probable class of every pixel where the discriminator is confident enough.

    Args:
        logits: (B, C, h, w) logits of the segmenter, any floating dtype. Logits smaller than
            `valid` are upsampled bilinearly (`align_corners=False`), some rows at a time.
        scores: (B, 1, h, w) or (B, h, w) logits d of the discriminator; resized to (H, W).
        threshold: T, the smallest confidence `sigmoid(d)` of a pixel that is kept; 0 keeps all
            pixels, a value above 1 keeps none.
        valid: (B, H, W) bool, False for pixels that are never kept, such as padding; None
            restricts nothing.
        ignore_index: The class id of pixels that are not kept.

    Returns:
        (B, H, W) int64 class ids, without gradient.

    Raises:
        ValueError: The shapes do not fit.

    Examples:
        2x2 pixels of class 1. The discriminator is confident in the left column only.

        >>> logits = torch.tensor([0.25, 0.75]).log().view(1, 2, 1, 1).expand(1, 2, 2, 2)
        >>> scores = torch.tensor([[[[2.0, -2.0], [2.0, -2.0]]]])
        >>> pseudo_labels(logits, scores, threshold=0.5).tolist()
        [[[1, 255], [1, 255]]]
    """
    with torch.no_grad():
        size = _size_of(logits, valid)
        labels = most_probable(logits, size).labels  # (B, H, W)
        keep = score_map(scores, size).sigmoid() >= threshold
        if valid is not None:
            require_mask(labels, valid)
            keep &= valid
        require_mask(labels, keep)
        return labels.where(keep, ignore_index)


def confident_labels(
    logits: Tensor, threshold: float = 0.95, valid: Tensor | None = None, ignore_index: int = 255
) -> Tensor:
    """Return the most probable class of every pixel where it is probable enough.

    Args:
        logits: (B, C, h, w) logits of the segmenter, any floating dtype. Logits smaller than
            `valid` are upsampled bilinearly (`align_corners=False`), some rows at a time.
        threshold: Smallest probability of a class that is kept; 0 keeps all pixels.
        valid: (B, H, W) bool, False for pixels that are never kept, such as padding; None
            restricts nothing.
        ignore_index: The class id of pixels that are not kept.

    Returns:
        (B, H, W) int64 class ids, without gradient.

    Raises:
        ValueError: The shapes do not fit.

    Examples:
        Two pixels of the classes 1 and 0, with probabilities of 3/4 and 1/2.

        >>> logits = torch.tensor([[0.25, 0.5], [0.75, 0.5]]).log().view(1, 2, 1, 2)
        >>> confident_labels(logits, threshold=0.7).tolist()
        [[[1, 255]]]
    """
    with torch.no_grad():
        # (B, C, h, w) -> (B, H, W)
        labels, probability = most_probable(logits, _size_of(logits, valid), confidence=True)
        assert probability is not None
        keep = probability >= threshold
        if valid is not None:
            require_mask(labels, valid)
            keep &= valid
        return labels.where(keep, ignore_index)


def pseudo_label_loss(
    logits: Tensor,
    scores: Tensor,
    threshold: float = 0.2,
    valid: Tensor | None = None,
    ignore_index: int = 255,
    across_ranks: bool = False,
) -> Tensor:
    """Return L_semi, the cross-entropy on the pseudo-labels of the segmenter itself.

    The mean is over the pixels that `pseudo_labels` keeps. The scores get no gradient.

    Args:
        logits: (B, C, h, w) logits of the segmenter, any floating dtype; computed in float32 or
            wider. Logits smaller than `valid` are upsampled bilinearly, some rows at a time.
        scores: (B, 1, h, w) or (B, h, w) logits d of the discriminator; resized to (H, W).
        threshold: T, the smallest confidence `sigmoid(d)` of a pixel that is kept; 0 keeps all
            pixels, a value above 1 keeps none.
        valid: (B, H, W) bool, False for pixels that are never kept, such as padding; None
            restricts nothing.
        ignore_index: The class id of pixels that are not kept, which must not be in [0, C).
        across_ranks: Take the mean over the pixels that all processes keep; see `numerics.mean_of`.

    Returns:
        A scalar, at least 0; 0 with a zero gradient where no pixel is kept.

    Raises:
        ValueError: The shapes do not fit.

    Examples:
        2x2 pixels whose most probable class has p = 3/4. The discriminator is confident in the
        left column only, and the mean over the left column is log 4/3 = 0.2877.

        >>> logits = torch.tensor([0.25, 0.75]).log().view(1, 2, 1, 1).expand(1, 2, 2, 2)
        >>> scores = torch.tensor([[[[2.0, -2.0], [2.0, -2.0]]]])
        >>> round(pseudo_label_loss(logits, scores, threshold=0.5).item(), 4)
        0.2877
    """
    labels = pseudo_labels(logits, scores, threshold, valid, ignore_index)
    return cross_entropy(logits, labels, ignore_index, across_ranks=across_ranks)


def _size_of(logits: Tensor, valid: Tensor | None) -> tuple[int, int]:
    """Return the size (H, W) of the pixels: that of the mask, or of the logits without one."""
    shape = logits.shape if valid is None else valid.shape
    return (shape[-2], shape[-1])


def _resized(scores: Tensor, valid: Tensor | None) -> Tensor:
    """Return (B, H, W) scores at the size of the mask, or at their own size without a mask."""
    return score_map(scores, _size_of(scores, valid))
