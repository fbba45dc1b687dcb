"""Adversarial structure matching: distances between the features of two structured maps.

With f_l the features of tap l before the ReLU, n(v) = v / max(|v|, 1e-6) over channels, and

    d_l(a, b) = |n(f_l(a)) - n(f_l(b))|^2            at every place, in [0, 4]

the predictor minimises `sum_l mean d_l(truth, prediction)` and the analyzer
`sum_l mean max(0, margin - d_l(truth, negative))`. This is what the authors' code does; the
printed objective, which has no normalisation and no margin, lets the analyzer win by growing.

J.-J. Hwang, T.-W. Ke, J. Shi, S. Yu: Adversarial Structure Matching for Structured Prediction Tasks
(CVPR 2019, arXiv 1805.07457). The maps may be anything with channels: see
`lightning_seg.losses.structured_maps` for classes, depth and surface normals.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_seg.losses.structured_maps import unit_vectors
from lightning_seg.numerics import at_least_float32, masked_mean, require_mask

MARGIN = 0.80


def structure_matching_loss(
    features: Sequence[Tensor],
    others: Sequence[Tensor],
    valid: Sequence[Tensor] | None = None,
    reference_mean: bool = False,
    normalize: bool = True,
) -> Tensor:
    """Distance of two maps' features: `sum_l mean d_l`, the predictor's loss.

    Symmetric in the two maps, 0 where they are equal, at most 4 per tap.

    Args:
        features: One (B, K, h, w) tensor per tap, any floating dtype; computed in float32.
        others: The same of the other map.
        valid: One (B, h, w) bool tensor per tap, False where the distance is not to count; None
            counts everything.
        reference_mean: Divide by the number of all places, as the authors' code, instead of the
            valid ones.
        normalize: Scale features to unit length first; False gives the printed objective's
            `|f_l(a) - f_l(b)|^2`, which has no bound.

    Returns:
        A scalar, at least 0; 0 where nothing is valid.

    Example:
        One place with orthogonal features, one with equal directions: (2 + 0) / 2.

        >>> a = torch.tensor([[1.0, 3.0], [0.0, 0.0]]).view(1, 2, 1, 2)
        >>> b = torch.tensor([[0.0, 1.0], [5.0, 0.0]]).view(1, 2, 1, 2)
        >>> structure_matching_loss([a], [b]).item()
        1.0
    """
    distances = _distances(features, others, normalize)
    return _sum_of_means(distances, valid, reference_mean)


def structure_hinge_loss(
    features: Sequence[Tensor],
    others: Sequence[Tensor],
    valid: Sequence[Tensor] | None = None,
    reference_mean: bool = False,
    margin: float = MARGIN,
) -> Tensor:
    """How far two maps' features are from being told apart, the analyzer's loss.

    `sum_l mean max(0, margin - d_l)`: 0 where all distances reach the margin, `margin` per tap
    where the maps are equal.

    Args:
        features: One (B, K, h, w) tensor per tap; of the truth.
        others: The same, of a map with mistakes.
        valid: One (B, h, w) bool tensor per tap, False where the distance is not to count.
        reference_mean: Divide by the number of all places and count `margin` for those that are
            not valid, as the authors' code.
        margin: Squared distance that is enough, in (0, 4].

    Returns:
        A scalar in [0, margin * taps].

    Example:
        >>> a = torch.ones(1, 2, 1, 2)
        >>> round(structure_hinge_loss([a], [a]).item(), 4)
        0.8
    """
    distances = _distances(features, others, normalize=True)
    if reference_mean and valid is not None:  # the masked features are equal there
        distances, valid = _zeroed(distances, valid), None
    return _sum_of_means([(margin - each).relu() for each in distances], valid, reference_mean)


def _distances(
    features: Sequence[Tensor], others: Sequence[Tensor], normalize: bool
) -> list[Tensor]:
    """Return the squared distance at every place, (B, h, w) per tap."""
    if not features or [each.shape for each in features] != [each.shape for each in others]:
        raise ValueError(
            f"features {[tuple(each.shape) for each in features]} and "
            f"{[tuple(each.shape) for each in others]} do not fit: expected the same taps of two "
            "maps of one size"
        )
    with torch.autocast(features[0].device.type, enabled=False):
        scale = unit_vectors if normalize else at_least_float32
        return [
            (scale(one) - scale(other)).square().sum(1)
            for one, other in zip(features, others, strict=True)
        ]


def _sum_of_means(
    values: Sequence[Tensor], valid: Sequence[Tensor] | None, reference_mean: bool
) -> Tensor:
    if valid is None:
        means = [each.mean() for each in values]
    elif reference_mean:
        means = [each.mean() for each in _zeroed(values, valid)]
    else:
        means = [masked_mean(each, ok) for each, ok in zip(values, valid, strict=True)]
    return torch.stack(means).sum()


def _zeroed(values: Sequence[Tensor], valid: Sequence[Tensor]) -> list[Tensor]:
    for each, ok in zip(values, valid, strict=True):
        require_mask(each, ok)
    return [each * ok for each, ok in zip(values, valid, strict=True)]
