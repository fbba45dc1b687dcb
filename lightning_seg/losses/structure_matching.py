"""Adversarial structure matching: distances between the features of two structured maps.

An analyzer network turns a structured map (see `lightning_seg.losses.structured_maps`) into feature
maps, its taps. With f_l the features of tap l before the ReLU and n(v) = v / max(|v|, 1e-6) over
channels, the distance of two maps a and b at each place is

    d_l(a, b) = |n(f_l(a)) - n(f_l(b))|^2            in [0, 4]

The predictor minimises sum_l mean d_l(truth, prediction); the analyzer minimises
sum_l mean max(0, margin - d_l(truth, negative)).

J.-J. Hwang, T.-W. Ke, J. Shi, S. Yu: Adversarial Structure Matching for Structured Prediction Tasks
(CVPR 2019, arXiv 1805.07457).

Difference from the paper: the losses are those of the authors' code. The printed objective has
neither normalisation nor margin, so that the analyzer can increase it without bound by growing its
weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_seg.losses.structured_maps import unit_vectors
from lightning_seg.numerics import at_least_float32, masked_mean, require_mask

MARGIN = 0.80
"""The margin of the analyzer's hinge in the authors' code."""


def structure_matching_loss(
    features: Sequence[Tensor],
    others: Sequence[Tensor],
    valid: Sequence[Tensor] | None = None,
    reference_mean: bool = False,
    normalize: bool = True,
    across_ranks: bool = False,
) -> Tensor:
    """Return the distance between the features of two maps, the loss of the predictor.

    The loss is sum_l mean d_l. It is symmetric in the two maps.

    Args:
        features: Features of one map, one (B, K, h, w) tensor per tap, any floating dtype;
            computed in float32 or wider.
        others: Features of the other map, in the shapes of `features`.
        valid: One (B, h, w) bool tensor per tap, False for places to leave out; None counts all.
        reference_mean: Divide by the number of all places, as the authors' code does, instead of
            the number of valid places.
        normalize: Scale features to unit length. False gives |f_l(a) - f_l(b)|^2 of the printed
            objective, which has no upper bound.
        across_ranks: Take the means over the places of all processes; see `numerics.mean_of`.

    Returns:
        A scalar in [0, 4 * taps], or at least 0 without `normalize`; 0 where no place is valid or
        the features are equal.

    Raises:
        ValueError: The shapes do not fit.

    Examples:
        2x2 places of two channels. In the upper row the features are orthogonal, d = 2; in the
        lower row they have one direction, d = 0.

        >>> a = torch.tensor([[1.0, 1.0], [3.0, 3.0]]), torch.zeros(2, 2)
        >>> b = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[5.0, 5.0], [0.0, 0.0]])
        >>> structure_matching_loss([torch.stack(a)[None]], [torch.stack(b)[None]]).item()
        1.0
    """
    distances = structure_distances(features, others, normalize)
    return _sum_of_means(distances, valid, reference_mean, across_ranks)


def structure_hinge_loss(
    features: Sequence[Tensor],
    others: Sequence[Tensor],
    valid: Sequence[Tensor] | None = None,
    reference_mean: bool = False,
    margin: float = MARGIN,
    across_ranks: bool = False,
) -> Tensor:
    """Return how far the features of two maps are from the margin, the loss of the analyzer.

    The loss is sum_l mean max(0, margin - d_l). It is 0 where all distances reach the margin.

    Args:
        features: Features of the true map, one (B, K, h, w) tensor per tap, any floating dtype;
            computed in float32 or wider.
        others: Features of a map with mistakes, in the shapes of `features`.
        valid: One (B, h, w) bool tensor per tap, False for places to leave out; None counts all.
        reference_mean: Divide by the number of all places and let places that are not valid
            contribute `margin` each, as the authors' code does.
        margin: Squared distance that the analyzer has to reach, in (0, 4].
        across_ranks: Take the means over the places of all processes; see `numerics.mean_of`.

    Returns:
        A scalar in [0, margin * taps]; `margin * taps` where the features are equal.

    Raises:
        ValueError: The shapes do not fit.

    Examples:
        2x2 places with equal features: every place lacks the whole margin.

        >>> a = torch.ones(1, 3, 2, 2)
        >>> round(structure_hinge_loss([a], [a], margin=0.8).item(), 4)
        0.8
    """
    distances = structure_distances(features, others)
    if reference_mean and valid is not None:
        # The authors' code masks the features, which makes the distance 0 where not valid.
        distances, valid = _zeroed(distances, valid), None
    missing = [(margin - each).relu() for each in distances]
    return _sum_of_means(missing, valid, reference_mean, across_ranks)


def structure_distances(
    features: Sequence[Tensor], others: Sequence[Tensor], normalize: bool = True
) -> list[Tensor]:
    """Return the squared distance d_l at every place.

    Args:
        features: Features of one map, one (B, K, h, w) tensor per tap.
        others: Features of the other map, in the shapes of `features`.
        normalize: Scale features to unit length.

    Returns:
        One (B, h, w) tensor per tap; in [0, 4] with `normalize`.

    Raises:
        ValueError: The shapes do not fit.
    """
    if not features or [each.shape for each in features] != [each.shape for each in others]:
        raise ValueError(
            f"features {[tuple(each.shape) for each in features]} and "
            f"{[tuple(each.shape) for each in others]} do not fit: expected the same taps of two "
            "maps of one size"
        )
    with torch.autocast(features[0].device.type, enabled=False):
        scale = unit_vectors if normalize else at_least_float32
        # (B, K, h, w) -> (B, h, w)
        return [
            (scale(one) - scale(other)).square().sum(1)
            for one, other in zip(features, others, strict=True)
        ]


def _sum_of_means(
    values: Sequence[Tensor],
    valid: Sequence[Tensor] | None,
    reference_mean: bool,
    across_ranks: bool,
) -> Tensor:
    """Return the sum over taps of the mean over places."""
    if valid is None:
        means = [masked_mean(each, None, across_ranks) for each in values]
    elif reference_mean:
        means = [masked_mean(each, None, across_ranks) for each in _zeroed(values, valid)]
    else:
        pairs = zip(values, valid, strict=True)
        means = [masked_mean(each, ok, across_ranks) for each, ok in pairs]
    return torch.stack(means).sum()


def _zeroed(values: Sequence[Tensor], valid: Sequence[Tensor]) -> list[Tensor]:
    """Return the values of every tap with 0 where not valid."""
    for each, ok in zip(values, valid, strict=True):
        require_mask(each, ok)
    return [each * ok for each, ok in zip(values, valid, strict=True)]
