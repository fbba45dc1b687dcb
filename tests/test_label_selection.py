"""Which predictions become labels, against numpy on all pixels, loops, and numbers by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lightning_seg.label_selection import (
    CODES,
    Tally,
    code_of,
    confidence_of,
    count,
    encoded,
    report,
    selected,
    smallest_codes,
)

STEP = 0.00014  # of a confidence, between two codes


def histograms(labels: np.ndarray, codes: np.ndarray, num_classes: int) -> np.ndarray:
    counts = np.zeros((num_classes, CODES), np.int64)
    count(counts, labels, codes)
    return counts


def log_odds(confidence: np.ndarray) -> np.ndarray:
    return np.log(confidence) - np.log1p(-confidence)


@pytest.fixture
def pixels() -> tuple[np.ndarray, np.ndarray]:
    """Labels of four images of three classes, the last of which is rare and unsure."""
    rng = np.random.default_rng(0)
    labels = rng.choice(np.arange(3, dtype=np.uint8), (4, 50, 60), p=[0.8, 0.18, 0.02])
    low = np.array([0.6, 0.4, 0.3])[labels]
    return labels, low + (0.9999 - low) * rng.random(labels.shape)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.77, 1.0])
def test_every_class_keeps_the_quantile_of_its_own_pixels(pixels, keep) -> None:
    labels, confidence = pixels
    codes = encoded(log_odds(confidence))
    counts = sum(histograms(labels[i], codes[i], 4) for i in range(4))
    smallest = smallest_codes(counts, keep, None)
    for number in range(3):
        own = np.sort(confidence[labels == number])[::-1]
        by_hand = own[math.ceil(keep * len(own)) - 1]
        assert confidence_of(smallest[number]) == pytest.approx(by_hand, abs=STEP)
        gap = STEP + np.diff(np.sort(own)).max()
        assert confidence_of(smallest[number]) == pytest.approx(np.quantile(own, 1 - keep), abs=gap)
        kept = (selected(labels, codes, smallest) == number).sum()
        assert keep * len(own) - 1e-6 <= kept <= keep * len(own) + 1 + 0.001 * len(own)
    assert smallest[3] == 0  # a class that nothing was predicted to be


def test_the_larger_of_both_thresholds_counts(pixels) -> None:
    labels, confidence = pixels
    codes = encoded(log_odds(confidence))
    counts = histograms(labels, codes, 3)
    shares, fixed = smallest_codes(counts, 0.5, None), smallest_codes(counts, None, 0.75)
    assert [round(confidence_of(each), 3) for each in fixed] == [0.75] * 3
    assert shares[0] > fixed[0]
    assert shares[2] < fixed[2]
    assert np.array_equal(smallest_codes(counts, 0.5, 0.75), np.maximum(shares, fixed))
    kept = selected(labels, codes, fixed)
    certain = np.abs(confidence - 0.75) > STEP
    assert np.array_equal(kept[certain] != 255, confidence[certain] >= 0.75)
    everything = smallest_codes(counts, None, None)
    assert np.array_equal(selected(labels, codes, everything), labels)


def test_an_image_of_2x3_pixels_by_hand() -> None:
    labels = np.array([[0, 0, 0], [0, 1, 1]], np.uint8)
    confidence = np.array([[0.9, 0.8, 0.99], [0.6, 0.55, 0.7]])
    codes = encoded(log_odds(confidence))
    smallest = smallest_codes(histograms(labels, codes, 2), 0.5, None)
    kept = selected(labels, codes, smallest)
    assert kept.tolist() == [[0, 255, 0], [255, 255, 1]]
    # of 0.5 of 2 pixels one, of 0.5 of 4 two; 0.95 leaves one
    both = smallest_codes(histograms(labels, codes, 2), 0.5, 0.95)
    assert selected(labels, codes, both).tolist() == [[255, 255, 0], [255, 255, 255]]
    truth = np.array([[0, 1, 1], [255, 1, 1]], np.uint8)
    found = report(
        ["a", "b"], smallest, Tally.of(labels, kept, 2), Tally.of(labels, kept, 2, truth)
    )
    first, second = found["classes"]
    assert (first["predicted"], first["kept"]) == (4, 2)
    assert first["threshold"] == pytest.approx(0.9, abs=STEP)
    # three of the pixels have a true class, of which two are kept and one of these is right
    assert (first["coverage"], first["precision"], first["accuracy"]) == (2 / 3, 1 / 2, 1 / 3)
    assert (second["coverage"], second["precision"], second["accuracy"]) == (1 / 2, 1, 1)
    assert found["all"]["precision"] == pytest.approx(2 / 3)
    assert found["all"]["coverage"] == pytest.approx(3 / 5)


def test_precision_is_that_of_a_loop_over_pixels(pixels) -> None:
    labels, confidence = pixels
    rng = np.random.default_rng(1)
    truth = np.where(rng.random(labels.shape) < confidence, labels, (labels + 1) % 3)
    truth[rng.random(labels.shape) < 0.1] = 255
    codes = encoded(log_odds(confidence))
    smallest = smallest_codes(histograms(labels, codes, 3), 0.3, None)
    kept = selected(labels, codes, smallest)
    tally = Tally.none(3)
    for image in range(4):
        tally = tally.plus(Tally.of(labels[image], kept[image], 3, truth[image].astype(np.uint8)))
    number = {"kept": 0, "right": 0, "all": 0, "all right": 0}
    for a, b, c in zip(labels.flat, kept.flat, truth.flat, strict=True):
        if c == 255:
            continue
        number["all"] += 1
        number["all right"] += a == c
        if b != 255:
            number["kept"] += 1
            number["right"] += b == c
    found = report(list("abc"), smallest, Tally.of(labels, kept, 3), tally)["all"]
    assert found["precision"] == number["right"] / number["kept"]
    assert found["coverage"] == number["kept"] / number["all"]
    assert found["accuracy"] == number["all right"] / number["all"]
    assert found["precision"] > found["accuracy"]  # the confidences here are probabilities


def test_ties_are_kept_together_and_the_order_does_not_matter() -> None:
    labels = np.zeros(10, np.uint8)
    codes = np.array([5] * 4 + [7] * 6, np.uint16)
    for order in (np.arange(10), np.arange(10)[::-1]):
        counts = histograms(labels[order], codes[order], 1)
        assert smallest_codes(counts, 0.2, None).tolist() == [7]
        assert smallest_codes(counts, 0.6, None).tolist() == [7]
        assert smallest_codes(counts, 0.61, None).tolist() == [5]


def test_shares_that_floating_point_rounds_up_keep_no_pixel_more() -> None:
    counts = np.zeros((1, CODES), np.int64)
    counts[0, :100] = 1
    assert 0.07 * 100 > 7
    assert smallest_codes(counts, 0.07, None).tolist() == [93]


def test_codes_grow_with_the_confidence_and_give_it_back() -> None:
    confidence = np.concatenate([np.linspace(0.001, 0.999, 5000), 1 - np.logspace(-3, -7, 50)])
    codes = encoded(log_odds(confidence))
    assert np.all(np.diff(codes.astype(int)) >= 0)
    back = np.array([confidence_of(int(code)) for code in codes])
    assert np.abs(back - confidence).max() < STEP / 2
    assert np.abs(log_odds(back) - log_odds(confidence)).max() < 0.00027  # also near 1
    assert [code_of(value) for value in (0.0, 0.5, 1.0)] == [0, 32768, 65535]


def test_a_class_that_is_never_predicted_has_no_threshold() -> None:
    none = Tally.none(2)
    found = report(["a", "b"], np.array([0, 0]), none, none)
    assert [row["threshold"] for row in found["classes"]] == [None, None]
    assert found["all"] == {
        "predicted": 0, "kept": 0, "coverage": None, "precision": None, "accuracy": None,
    }  # fmt: skip
