"""Intervals and tests of differences, against enumeration, scipy and simulated runs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats
from simulated_scores import KINDS, simulated_sides

from lightning_seg import SetupError
from lightning_seg.statistics import PRIMARY_SHARE, paired_differences

GREATEST = 0.05


def slow_miou(counts: np.ndarray) -> float:
    """The mean over classes of pooled IoUs, class by class; counts are (N, C, 3)."""
    ious = []
    for hits, predicted, truth in counts.sum(0).tolist():
        if union := predicted + truth - hits:
            ious.append(hits / union)
    return sum(ious) / len(ious)


def one_pair(images: int, seed: int, **options) -> tuple[np.ndarray, np.ndarray]:
    (a,), (b,) = simulated_sides(np.random.default_rng(seed), images, **options)
    return a, b


def test_scores_are_pooled_over_images_and_averaged_over_classes() -> None:
    a, b = one_pair(20, 0, kind="rare", planted=0.3)
    found = paired_differences([a], [b], samples=200)
    assert found.baseline[0] == pytest.approx(slow_miou(a[:, 0]))
    assert found.other[0] == pytest.approx(slow_miou(b[:, 0]))
    assert found.difference[0] == pytest.approx(slow_miou(b[:, 0]) - slow_miou(a[:, 0]))
    per_class = [slow_miou(b[:, 0, [c]]) - slow_miou(a[:, 0, [c]]) for c in range(8)]
    assert found.difference[1:] == pytest.approx(per_class)


def test_the_p_value_is_that_of_all_exchanges() -> None:
    a, b = one_pair(8, 3, planted=0.4)
    observed = abs(slow_miou(b[:, 0]) - slow_miou(a[:, 0]))
    as_large = 0
    for swaps in itertools.product([False, True], repeat=8):
        chosen = np.array(swaps)[:, None, None]
        first, second = np.where(chosen, b[:, 0], a[:, 0]), np.where(chosen, a[:, 0], b[:, 0])
        as_large += abs(slow_miou(second) - slow_miou(first)) >= observed - 1e-12
    found = paired_differences([a], [b], samples=40_000)
    exact = as_large / 2**8
    assert 0.02 < exact < 0.5  # not a trivial case
    error = 4 * np.sqrt(exact * (1 - exact) / 40_000)
    assert found.p[0] * PRIMARY_SHARE == pytest.approx(exact, abs=error)


def test_the_bootstrap_interval_is_scipys() -> None:
    a, b = one_pair(60, 4, planted=0.1)

    def difference(chosen: np.ndarray) -> float:
        return slow_miou(b[chosen, 0]) - slow_miou(a[chosen, 0])

    theirs = stats.bootstrap(
        (np.arange(60),), difference, n_resamples=4000, method="percentile", vectorized=False, rng=1
    ).confidence_interval
    found = paired_differences([a], [b], samples=20_000)
    width = theirs.high - theirs.low
    assert found.bootstrap_low[0] == pytest.approx(theirs.low, abs=0.04 * width)
    assert found.bootstrap_high[0] == pytest.approx(theirs.high, abs=0.04 * width)
    assert found.low[0] <= found.bootstrap_low[0]
    assert found.high[0] >= found.bootstrap_high[0]


def test_the_interval_over_seeds_is_scipys_paired_t_interval() -> None:
    sides = simulated_sides(np.random.default_rng(5), 40, runs=4, seed_scatter=0.2, planted=0.3)
    found = paired_differences(*sides, samples=400)
    first, second = ([slow_miou(run[:, 0]) for run in side] for side in sides)
    theirs = stats.ttest_rel(second, first)
    assert found.difference[0] == pytest.approx(np.mean(second) - np.mean(first))
    interval = theirs.confidence_interval(1 - 0.05 * PRIMARY_SHARE)
    assert [found.seed_low[0], found.seed_high[0]] == pytest.approx(list(interval))


def test_a_single_pair_of_runs_has_no_interval_over_seeds() -> None:
    a, b = one_pair(12, 0)
    found = paired_differences([a], [b], samples=200)
    assert np.isnan([found.seed_low, found.seed_high]).all()


@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("planted", [0.0, 0.2, -0.5])
def test_a_difference_is_shown_exactly_where_its_intervals_exclude_0(
    runs: int, planted: float
) -> None:
    scatter = 0.05 * (runs > 1)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        sides = simulated_sides(
            rng, 25, "rare", planted=planted, runs=runs, seed_scatter=scatter, image_scatter=0.2
        )
        found = paired_differences(*sides, samples=400)
        excluded = (found.low > 0) | (found.high < 0)
        if runs > 1:
            excluded &= (found.seed_low > 0) | (found.seed_high < 0)
        assert (excluded == found.shown).all()
        if runs == 1 and found.shown[0]:
            assert found.p[0] <= 0.05
            assert (found.p[found.shown] <= 0.05).all()


def test_exchanged_sides_give_the_opposite() -> None:
    a, b = one_pair(30, 6, planted=0.3)
    there, back = paired_differences([a], [b]), paired_differences([b], [a])
    for one, other in (("low", "high"), ("bootstrap_low", "bootstrap_high")):
        assert getattr(there, one) == pytest.approx(-getattr(back, other))
    assert (there.shown == back.shown).all()
    assert (there.p == back.p).all()


def test_equal_runs_differ_nowhere() -> None:
    a, _ = one_pair(30, 0)
    for sides in (([a], [a]), ([a, a], [a, a])):
        found = paired_differences(*sides, samples=400)
        assert not found.shown.any()
        assert (found.p == 1).all()
        assert (found.difference == 0).all()


def test_five_images_can_never_show_a_difference_and_ten_can() -> None:
    """With 5 images, even the most extreme of the 2^5 exchanges happens in 1 of 16 cases."""
    for images, expected in ((1, False), (5, False), (10, True)):
        a, b = one_pair(images, 0, planted=3.0, image_scatter=0.1)
        assert paired_differences([a], [b]).shown[0] == expected


def test_a_class_in_no_image_has_no_scores_and_one_class_is_enough() -> None:
    a, b = one_pair(12, 0, planted=1.0)
    a[:, :, 3], b[:, :, 3] = 0, 0
    found = paired_differences([a], [b], samples=400)
    assert np.isnan([found.baseline[4], found.difference[4], found.low[4], found.high[4]]).all()
    assert not found.shown[4]
    assert found.baseline[0] == pytest.approx(slow_miou(a[:, 0]))
    single = paired_differences([a[:, :, :1]], [b[:, :, :1]], samples=400)
    assert single.difference[0] == single.difference[1]


def test_images_without_labels_change_nothing_but_the_scatter() -> None:
    a, b = one_pair(30, 0, planted=0.5)
    nothing = np.zeros((10, *a.shape[1:]), np.int64)
    found = paired_differences([np.concatenate([a, nothing])], [np.concatenate([b, nothing])])
    assert found.difference == pytest.approx(paired_differences([a], [b]).difference)


def test_too_few_samples_for_the_level_are_refused() -> None:
    a, b = one_pair(10, 0)
    with pytest.raises(SetupError, match=r"at least 100 .*\(option: samples=100\)"):
        paired_differences([a], [b], samples=50)


def false_alarms(repetitions: int, **options) -> tuple[float, float]:
    """The shares of comparisons of equal methods in which something, or the mIoU, is shown."""
    rng = np.random.default_rng(20)
    anywhere = first = 0
    for repetition in range(repetitions):
        sides = simulated_sides(rng, **options)
        found = paired_differences(*sides, samples=300, seed=repetition)
        anywhere += bool(found.shown.any())
        first += bool(found.shown[0])
    return anywhere / repetitions, first / repetitions


def test_equal_methods_raise_a_false_alarm_in_at_most_5_percent() -> None:
    """An alarm may be the mIoU or any class. benchmarks/comparisons.py repeats this 4,000 times."""
    repetitions, rates = 300, []
    for images, kind in itertools.product((10, 30, 200), KINDS):
        rates.append(false_alarms(repetitions, images=images, kind=kind)[0])
    # 3 standard errors of one rate; all together are exact to half a percent
    assert max(rates) <= GREATEST + 3 * np.sqrt(0.05 * 0.95 / repetitions)
    assert np.mean(rates) <= GREATEST


def test_equal_methods_trained_with_several_seeds_raise_few_false_alarms() -> None:
    repetitions, rates = 300, []
    for runs in (2, 3, 4, 5):
        options = {"images": 60, "runs": runs, "seed_scatter": 0.15}
        rates.append(false_alarms(repetitions, **options)[0])
    assert max(rates) <= GREATEST + 3 * np.sqrt(0.05 * 0.95 / repetitions)
    assert np.mean(rates) <= GREATEST


@pytest.mark.parametrize(("images", "runs", "power"), [(200, 1, 0.8), (100, 5, 0.9)])
def test_a_planted_point_of_miou_is_found(images: int, runs: int, power: float) -> None:
    """CamVid's size: 0.06 on the log odds of being right is +1 point of an mIoU of 0.71."""
    rng = np.random.default_rng(30)
    found = []
    for seed in range(60):
        sides = simulated_sides(
            rng, images, planted=0.06, runs=runs, image_scatter=0.3, seed_scatter=0.02 * (runs > 1)
        )
        found.append(paired_differences(*sides, samples=300, seed=seed))
    assert np.mean([each.difference[0] for each in found]) == pytest.approx(0.01, abs=0.0015)
    assert np.mean([each.shown[0] and each.low[0] > 0 for each in found]) >= power
