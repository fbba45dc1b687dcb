"""The losses of adversarial semi-supervised segmentation.

With d the discriminator's logits, upsampled to the labels' size, and means over valid pixels,

    L_D    = 1/2 mean log(1 + exp(d(prediction))) + 1/2 mean log(1 + exp(-d(label)))
    L_adv  = mean log(1 + exp(-d(prediction)))
    L_semi = mean over pixels with sigmoid(d) >= T of -log p(most probable class)

W.-C. Hung, Y.-H. Tsai, Y.-T. Liou, Y.-Y. Lin, M.-H. Yang: Adversarial Learning for Semi-Supervised
Semantic Segmentation (BMVC 2018, arXiv 1802.07934). The paper writes sums over pixels; means are
what the authors' code takes and what its weights belong to.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_seg.losses.cross_entropy import cross_entropy
from lightning_seg.numerics import at_least_float32, masked_mean, require_mask


def score_map(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a discriminator's (B, 1, h, w) logits at every pixel, (B, H, W) float32 at least.

    Bilinear, corners on corners, as the authors' code.

    Raises:
        ValueError: More than one channel.
    """
    if scores.ndim not in (3, 4) or (scores.ndim == 4 and scores.shape[1] != 1):
        raise ValueError(f"scores {tuple(scores.shape)}: expected (B, 1, h, w) or (B, h, w)")
    scores = at_least_float32(scores if scores.ndim == 4 else scores[:, None])
    if scores.shape[-2:] != size:
        scores = F.interpolate(scores, size, mode="bilinear", align_corners=True)
    return scores[:, 0]


def adversarial_loss(scores: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean of `-log sigmoid(d)`: small where the discriminator takes predictions for labels.

    Args:
        scores: (B, 1, h, w) or (B, h, w) logits of predictions.
        valid: (B, H, W) bool, False where a pixel does not count; scores of another size are
            upsampled to it. None counts every score.

    Returns:
        A scalar, at least 0; 0 where nothing is valid.

    Example:
        >>> round(adversarial_loss(torch.zeros(1, 1, 2, 2)).item(), 4)
        0.6931
    """
    return masked_mean(F.softplus(-_at(scores, valid)), valid)


def discriminator_loss(
    fake: Tensor,
    real: Tensor,
    fake_valid: Tensor | None = None,
    real_valid: Tensor | None = None,
) -> Tensor:
    """Half the mean cross-entropy of predictions and half that of labels; log 2 for no idea.

    Args:
        fake: (B, 1, h, w) or (B, h, w) logits of predictions.
        real: The same of labels.
        fake_valid: (B, H, W) bool, False where a pixel does not count.
        real_valid: The same of labels.

    Returns:
        A scalar, at least 0.

    Example:
        >>> scores = torch.zeros(1, 1, 2, 2)
        >>> round(discriminator_loss(scores, scores).item(), 4)
        0.6931
    """
    of_fake = masked_mean(F.softplus(_at(fake, fake_valid)), fake_valid)
    return (of_fake + adversarial_loss(real, real_valid)) / 2


def pseudo_labels(
    logits: Tensor,
    scores: Tensor,
    threshold: float = 0.2,
    valid: Tensor | None = None,
    ignore_index: int = 255,
) -> Tensor:
    """Return the most probable class where the discriminator is confident enough, else void.

    Args:
        logits: (B, C, H, W) of the segmenter.
        scores: (B, 1, h, w) or (B, h, w) logits of the discriminator; upsampled if smaller.
        threshold: T: pixels with `sigmoid(d) >= T` are kept; 0 keeps all, above 1 none.
        valid: (B, H, W) bool, False where an image is padding; None keeps these.
        ignore_index: The id of pixels that are not kept.

    Returns:
        (B, H, W) int64, without gradient.
    """
    with torch.no_grad():
        size = (logits.shape[-2], logits.shape[-1])
        labels = logits.max(1).indices
        keep = score_map(scores, size).sigmoid() >= threshold
        if valid is not None:
            require_mask(labels, valid)
            keep &= valid
        require_mask(labels, keep)
        return labels.where(keep, ignore_index)


def pseudo_label_loss(
    logits: Tensor,
    scores: Tensor,
    threshold: float = 0.2,
    valid: Tensor | None = None,
    ignore_index: int = 255,
) -> Tensor:
    """Cross-entropy on the segmenter's own labels, mean over the pixels that are kept.

    Arguments as of `pseudo_labels`; there is no gradient to the scores.

    Returns:
        A scalar; 0 with a zero gradient where no pixel is kept.

    Example:
        Two pixels with p = 3/4 for their class, of which one is kept: log 4/3.

        >>> logits = torch.tensor([[0.75, 0.25], [0.25, 0.75]]).log().view(1, 2, 1, 2)
        >>> round(pseudo_label_loss(logits, torch.tensor([[[[2.0, -2.0]]]])).item(), 4)
        0.2877
    """
    labels = pseudo_labels(logits, scores, threshold, valid, ignore_index)
    return cross_entropy(logits, labels, ignore_index)


def _at(scores: Tensor, valid: Tensor | None) -> Tensor:
    size = scores.shape if valid is None else valid.shape
    return score_map(scores, (size[-2], size[-1]))
