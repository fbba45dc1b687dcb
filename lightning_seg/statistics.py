"""Whether two evaluations of the same images differ: intervals and tests of pixel counts.

The scores are ratios of sums over images, such as the mIoU. For the difference of two sides

- a **bootstrap** draws images with replacement and computes the difference of the sums;
- a **permutation test** exchanges the two sides of a random half of the images. Where the sides do
  not differ every exchange is equally likely, so the test is exact for any number of images,
  whereas a percentile bootstrap of ten images raises false alarms in about a tenth of the cases;
- the **interval over images** is the smallest that contains both the bootstrap's percentiles and
  the difference plus or minus the critical value of the permutation test. It excludes 0 exactly
  where both methods do, so an interval never contradicts its verdict;
- a **t interval over seeds**, where each side has several runs, covers training again.

The first score, the mIoU, is tested at 0.8 of the level. The other rows, bands and classes, are one
family: their intervals hold simultaneously by the distribution of the largest standardized
difference under exchanges (Westfall and Young, "Resampling-Based Multiple Testing", 1993), and by
Bonferroni's inequality over seeds. The family has the whole level where the mIoU differs, and a
fifth of it otherwise. Two sides that do not differ therefore raise a false alarm anywhere in the
comparison with at most the level's probability.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from lightning_seg.errors import SetupError

Floats = NDArray[np.float64]

PRIMARY_SHARE = 0.8
"""The share of the level at which the mIoU is tested; default chosen here, so that its power is
nearly that of a single test: critical values grow by 5 %."""

_CHUNK = 2_000_000
"""Number of random numbers that are drawn at once."""


@dataclass
class Differences:
    """The differences between two sides, one per row: R means of regions, then C classes.

    Attributes:
        baseline: (M,) scores of the baseline, the mean over its runs; NaN for absent classes.
        other: (M,) scores of the other side.
        difference: (M,) mean over pairs of runs of other minus baseline.
        bootstrap_low: (M,) lower percentiles of the bootstrap, of each row alone.
        bootstrap_high: (M,) upper percentiles of the same.
        low: (M,) lower ends of the intervals over images.
        high: (M,) upper ends of the intervals over images.
        seed_low: (M,) lower ends of the t intervals over pairs of runs; NaN for a single pair.
        seed_high: (M,) upper ends of the same.
        p: (M,) adjusted p values of the permutation test.
        shown: (M,) whether every interval of the row excludes 0.
    """

    baseline: Floats
    other: Floats
    difference: Floats
    bootstrap_low: Floats
    bootstrap_high: Floats
    low: Floats
    high: Floats
    seed_low: Floats
    seed_high: Floats
    p: Floats
    shown: NDArray[np.bool_]


def paired_differences(
    baseline: Sequence[NDArray[np.int64]],
    other: Sequence[NDArray[np.int64]],
    level: float = 0.05,
    samples: int = 10_000,
    seed: int = 0,
) -> Differences:
    """Compare two sides on the same images.

    Args:
        baseline: (N, R, C, 3) counts of each run, as in `lightning_seg.scores.Scores`: of image,
            region, class, and of intersection, prediction and truth. The first region is the one
            of the mIoU and of the classes.
        other: The counts of the runs of the other side, each paired with the baseline's run at
            the same place, for example by the seed of the training.
        level: Largest probability of a false alarm, in (0, 1).
        samples: Number of resamples of the bootstrap, and of exchanges of the test.
        seed: Seed of both.

    Returns:
        M = R + C rows.

    Raises:
        SetupError: `samples` is too small for the level.
    """
    if level * (1 - PRIMARY_SHARE) * (samples + 1) < 1 - 1e-9:
        needed = int(np.ceil(1 / level / (1 - PRIMARY_SHARE) - 1e-6))
        raise SetupError(
            f"samples must be at least {needed} for a test at {level:g}, not {samples}",
            option=f"samples {needed}",
        )
    regions = baseline[0].shape[1]
    pairs = [(_columns(a), _columns(b)) for a, b in zip(baseline, other, strict=True)]
    scores = np.array([[_scores(x.sum(0), regions) for x in pair] for pair in pairs])
    seeds = scores[:, 1] - scores[:, 0]  # (runs, M)
    resampled, exchanged = _drawn(pairs, regions, samples, seed)
    before, after = _mean(scores)
    low, high, seed_low, seed_high, p = np.full((5, len(before)), np.nan)
    found = Differences(
        before,
        after,
        _mean(seeds),
        *_percentiles(resampled, level),
        low,
        high,
        seed_low,
        seed_high,
        p,
        shown=np.zeros(len(before), bool),
    )
    first, rest = slice(0, 1), slice(1, None)
    _decide(found, first, resampled, exchanged, seeds, level * PRIMARY_SHARE)
    left = level if found.shown[0] else level * (1 - PRIMARY_SHARE)
    _decide(found, rest, resampled, exchanged, seeds, left)
    # the level of the whole comparison at which a row would just be shown
    found.p[0] = min(1, found.p[0] / PRIMARY_SHARE)
    alone = found.p[rest] / (1 - PRIMARY_SHARE)
    found.p[rest] = np.minimum(1, np.minimum(alone, np.maximum(found.p[rest], found.p[0])))
    return found


def _decide(
    found: Differences,
    rows: slice,
    resampled: Floats,
    exchanged: Floats,
    seeds: Floats,
    level: float,
) -> None:
    """Fill in the intervals, p values and verdicts of a family of rows at a level."""
    difference, exchanged = found.difference[rows], np.nan_to_num(exchanged[:, rows])
    spread = np.sqrt((exchanged**2).mean(0))  # (M,)
    scale = np.where(spread > 0, spread, 1)
    largest = np.sort(np.max(np.abs(exchanged) / scale, 1))[::-1]  # (samples,)
    # The observed sides are one of the equally likely exchanges. Sums of floats are equal up to
    # rounding, and equal values are no evidence.
    count = int(np.floor(level * (len(largest) + 1) + 1e-9))
    critical = largest[count - 1] * (1 + 1e-9)
    standardized = np.nan_to_num(np.abs(difference) / scale)
    at_least = np.searchsorted(-largest, -standardized * (1 - 1e-9), side="right")
    found.p[rows] = (1 + at_least) / (1 + len(largest))
    low, high = _percentiles(resampled[:, rows], level)
    found.low[rows] = np.fmin(low, difference - critical * spread)
    found.high[rows] = np.fmax(high, difference + critical * spread)
    shown = (found.low[rows] > 0) | (found.high[rows] < 0)
    if (runs := len(seeds)) > 1:
        quantile = student.ppf(1 - level / 2 / seeds[:, rows].shape[1], runs - 1)
        half = quantile * seeds[:, rows].std(0, ddof=1) / np.sqrt(runs)
        found.seed_low[rows], found.seed_high[rows] = difference - half, difference + half
        # NaN, of classes that some runs lack, shows nothing
        shown &= half < np.abs(difference)
    found.shown[rows] = shown


def _drawn(
    pairs: Sequence[tuple[Floats, Floats]], regions: int, samples: int, seed: int
) -> tuple[Floats, Floats]:
    """Return (samples, M) differences of resampled images, and of exchanged sides."""
    images = len(pairs[0][0])
    changes = [b - a for a, b in pairs]
    totals = [(a.sum(0), b.sum(0)) for a, b in pairs]
    resampled, exchanged = [], []
    for draws, swaps in _weights(images, samples, np.random.default_rng(seed)):
        found = [_scores(draws @ b, regions) - _scores(draws @ a, regions) for a, b in pairs]
        resampled.append(_mean(np.array(found)))
        found = []
        for change, (a, b) in zip(changes, totals, strict=True):
            moved = swaps @ change
            found.append(_scores(b - moved, regions) - _scores(a + moved, regions))
        exchanged.append(_mean(np.array(found)))
    return np.concatenate(resampled), np.concatenate(exchanged)


def _weights(
    images: int, samples: int, random: np.random.Generator
) -> Iterator[tuple[Floats, Floats]]:
    """Yield (some, N) numbers of times an image is drawn, and (some, N) zeros or ones to swap."""
    step = max(1, min(500, _CHUNK // images))
    for start in range(0, samples, step):
        some = min(step, samples - start)
        drawn = random.integers(0, images, (some, images)) + images * np.arange(some)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=some * images).reshape(some, images)
        swaps = random.integers(0, 2, (some, images), np.int8)
        yield counts.astype(np.float64), swaps.astype(np.float64)


def _columns(counts: NDArray[np.int64]) -> Floats:
    """Return (N, 2 * R * C) pixels of each image: all intersections, then all unions."""
    hits, predicted, truth = np.moveaxis(counts.astype(np.float64), -1, 0)
    return np.concatenate(
        [each.reshape(len(counts), -1) for each in (hits, predicted + truth - hits)], 1
    )


def _scores(sums: Floats, regions: int) -> Floats:
    """Return (..., R + C) mean IoUs of the regions and IoUs of the classes of the first region."""
    hits, union = np.split(sums, 2, axis=-1)
    with np.errstate(invalid="ignore"):
        iou = (hits / union).reshape(*sums.shape[:-1], regions, -1)  # (..., R, C)
    return np.concatenate([_mean(iou, -1), iou[..., 0, :]], -1)


def _mean(values: Floats, axis: int = 0) -> Floats:
    """Return the mean of the values that are not NaN; NaN where there are none."""
    present = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(present, values, 0).sum(axis) / present.sum(axis))


def _percentiles(values: Floats, level: float) -> tuple[Floats, Floats]:
    """Return the level / 2 and 1 - level / 2 quantiles of each column, without its NaN."""
    low, high = np.full((2, values.shape[1]), np.nan)
    known = ~np.isnan(values)
    whole = known.all(0)
    if whole.any():
        low[whole], high[whole] = np.quantile(values[:, whole], [level / 2, 1 - level / 2], axis=0)
    for column in np.flatnonzero(known.any(0) & ~whole):
        few = values[known[:, column], column]
        low[column], high[column] = np.quantile(few, [level / 2, 1 - level / 2])
    return low, high
