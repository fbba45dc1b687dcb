"""Boundary IoU, trimap IoU and boundary F-score against OpenCV's erosions, loops and squares."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest
import torch

from lightning_seg.errors import SetupError
from lightning_seg.metrics import BoundaryFScore, BoundaryIoU, SegmentationMetrics, TrimapIoU

VOID = 255


def blobs(generator, images, height, width, classes, void=0.15):
    """Class maps with large regions, single odd pixels, and void in regions and single pixels."""
    coarse = generator.integers(0, classes, (images, height // 4 + 1, width // 4 + 1))
    maps = coarse.repeat(4, 1).repeat(4, 2)[:, :height, :width].copy()
    odd = generator.random(maps.shape) < 0.03
    maps[odd] = generator.integers(0, classes, odd.sum())
    holes = generator.random(coarse.shape).repeat(4, 1).repeat(4, 2)[:, :height, :width] < void
    maps[holes | (generator.random(maps.shape) < void / 5)] = VOID
    return maps


def batch(seed, classes, images=3, height=29, width=37):
    generator = np.random.default_rng(seed)
    target = blobs(generator, images, height, width, classes)
    preds = np.roll(target, 2, axis=2)
    other = blobs(generator, images, height, width, classes, void=0)
    preds = np.where((preds == VOID) | (generator.random(preds.shape) < 0.1), other, preds)
    return torch.from_numpy(preds), torch.from_numpy(target)


def eroded_boundary(mask, void, distance):
    """The boundary as in the authors' code: a padded image, `distance` erosions, a difference.

    Void pixels are taken as pixels of the class while it is eroded, so that they make no boundary.
    """
    padded = cv2.copyMakeBorder(
        (mask | void).astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0
    )
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=distance)[1:-1, 1:-1]
    return mask & ~eroded.astype(bool)


def slow_boundary_iou(preds, target, classes, distance):
    shared, union = np.zeros(classes), np.zeros(classes)
    for guess, truth in zip(preds.numpy(), target.numpy(), strict=True):
        void = truth == VOID
        for c in range(classes):
            a = eroded_boundary((guess == c) & ~void, void, distance)
            b = eroded_boundary(truth == c, void, distance)
            shared[c] += (a & b).sum()
            union[c] += (a | b).sum()
    return np.where(union > 0, shared / np.maximum(union, 1), np.nan)


@pytest.mark.parametrize("classes", [1, 2, 5, 30])
@pytest.mark.parametrize("dilation", [1, 2, 7, 0.02, 0.1])
def test_boundary_iou_equals_the_erosions_of_opencv(classes, dilation) -> None:
    for seed in range(4):
        preds, target = batch(seed, classes)
        metric = BoundaryIoU(classes, dilation=dilation)
        metric.update(preds, target)
        found = metric.compute()
        pixels = dilation if isinstance(dilation, int) else max(1, round(dilation * 2210**0.5))
        expected = slow_boundary_iou(preds, target, classes, pixels)
        np.testing.assert_allclose(found["iou"].numpy(), expected, rtol=1e-6)
        np.testing.assert_allclose(float(found["boundary_iou"]), np.nanmean(expected), rtol=1e-6)


def test_boundary_iou_of_a_shifted_square() -> None:
    """A square of side s shifted by k, d = 1: frames of 4s - 4 pixels.

    For 0 < k < s - 1, their overlap is the shared part of the upper and the lower side,
    2 (s - k), and the two corners that the vertical sides cross are in it already.
    """
    side, size = 12, 40
    for shift in range(1, side - 1):
        target, preds = torch.zeros(2, 1, size, size, dtype=torch.int64)
        target[:, 10 : 10 + side, 10 : 10 + side] = 1
        preds[:, 10 : 10 + side, 10 + shift : 10 + shift + side] = 1
        metric = BoundaryIoU(2, dilation=1)
        metric.update(preds, target)
        frame, shared = 4 * side - 4, 2 * (side - shift)
        expected = shared / (2 * frame - shared)
        assert float(metric.compute()["iou"][1]) == pytest.approx(expected, rel=1e-6)


def test_a_boundary_of_the_whole_image_is_the_iou() -> None:
    preds, target = batch(0, 4)
    metric, plain = BoundaryIoU(4, dilation=50), SegmentationMetrics(4)
    metric.update(preds, target)
    plain.update(preds, target)
    assert torch.equal(metric.compute()["iou"], plain.compute()["iou"])


def slow_band(truth, distance):
    """A pixel of another label within a square window, by a loop over all pixels."""
    height, width = truth.shape
    near = np.zeros(truth.shape, bool)
    for y, x in itertools.product(range(height), range(width)):
        if truth[y, x] == VOID:
            continue
        top, left = max(0, y - distance), max(0, x - distance)
        window = truth[top : y + distance + 1, left : x + distance + 1]
        near[y, x] = ((window != truth[y, x]) & (window != VOID)).any()
    return near


@pytest.mark.parametrize("classes", [1, 3, 12])
def test_trimap_iou_equals_a_loop_over_pixels(classes) -> None:
    bands = (1, 3, 5)
    preds, target = batch(5, classes, images=2, height=17, width=23)
    metric = TrimapIoU(classes, bands=bands)
    metric.update(preds, target)
    found = metric.compute()
    for band in bands:
        near = np.stack([slow_band(truth, band) for truth in target.numpy()])
        guess, truth = preds.numpy()[near], target.numpy()[near]
        expected = []
        for c in range(classes):
            union = ((guess == c) | (truth == c)).sum()
            expected.append(((guess == c) & (truth == c)).sum() / union if union else np.nan)
        np.testing.assert_allclose(found[f"iou_{band}"].numpy(), expected, rtol=1e-6)
        if classes > 1:
            mean = float(found[f"trimap_iou_{band}"])
            assert mean == pytest.approx(np.nanmean(expected), rel=1e-6)


def test_trimap_iou_of_a_shifted_edge() -> None:
    """Two halves, the prediction's edge k pixels further: in a band of r > k pixels on each side,
    r pixels a row are right of the left half and r - k of the right half."""
    for shift, band in ((1, 3), (2, 3), (4, 5), (3, 10)):
        target, preds = torch.zeros(2, 1, 8, 64, dtype=torch.int64)
        target[..., 32:] = 1
        preds[..., 32 + shift :] = 1
        metric = TrimapIoU(2, bands=(band,))
        metric.update(preds, target)
        expected = [band / (band + shift), (band - shift) / band]
        np.testing.assert_allclose(metric.compute()[f"iou_{band}"].numpy(), expected, rtol=1e-6)


def slow_boundary_f(preds, target, classes, tolerance):
    square = np.ones((2 * tolerance + 1, 2 * tolerance + 1), np.uint8)
    counts = np.zeros((classes, 4))
    for guess, truth in zip(preds.numpy(), target.numpy(), strict=True):
        void = truth == VOID
        guess = np.where(void, VOID, guess)
        edges = [slow_band(each, 1) for each in (guess, truth)]
        for c in range(classes):
            a, b = edges[0] & (guess == c), edges[1] & (truth == c)
            near_b, near_a = (cv2.dilate(each.astype(np.uint8), square) > 0 for each in (b, a))
            counts[c] += [(a & near_b).sum(), a.sum(), (b & near_a).sum(), b.sum()]
    scores = []
    for right, predicted, found, true in counts:
        if predicted + true == 0:
            scores.append(np.nan)
        elif right == 0 or found == 0:
            scores.append(0.0)
        else:
            precision, recall = right / predicted, found / true
            scores.append(2 * precision * recall / (precision + recall))
    return np.array(scores)


@pytest.mark.parametrize(("classes", "tolerance"), [(1, 1), (2, 1), (5, 2), (70, 3), (130, 1)])
def test_boundary_f_equals_dilations_class_by_class(classes, tolerance) -> None:
    preds, target = batch(7, classes, images=2, height=19, width=22)
    metric = BoundaryFScore(classes, tolerance=tolerance)
    metric.update(preds, target)
    expected = slow_boundary_f(preds, target, classes, tolerance)
    found = metric.compute()
    np.testing.assert_allclose(found["f"].numpy(), expected, rtol=1e-6)
    if classes > 1:
        assert float(found["boundary_f"]) == pytest.approx(np.nanmean(expected), rel=1e-6)


METRICS = [
    lambda classes: BoundaryIoU(classes, dilation=2),
    lambda classes: TrimapIoU(classes, bands=(1, 4)),
    lambda classes: BoundaryFScore(classes, tolerance=2),
]


@pytest.mark.parametrize("make", METRICS)
def test_scores_do_not_depend_on_the_batches(make) -> None:
    preds, target = batch(3, 6, images=5)
    whole, parts = make(6), make(6)
    whole.update(preds, target)
    for first, last in ((0, 1), (1, 4), (4, 5)):
        parts.update(preds[first:last].short(), target[first:last])
    for name, value in whole.compute().items():
        assert torch.equal(value.nan_to_num(-1), parts.compute()[name].nan_to_num(-1))


@pytest.mark.parametrize("make", METRICS)
def test_the_prediction_at_void_pixels_changes_nothing(make) -> None:
    preds, target = batch(11, 4)
    other = torch.where(target == VOID, (preds + 1) % 4, preds)
    first, second = make(4), make(4)
    first.update(preds, target)
    second.update(other, target)
    assert torch.equal(first.counts, second.counts)
    assert (target == VOID).any()


@pytest.mark.parametrize("make", METRICS)
def test_all_void_gives_nan_and_a_perfect_prediction_one(make) -> None:
    _, target = batch(2, 4)
    perfect, empty = make(4), make(4)
    perfect.update(target.masked_fill(target == VOID, 0), target)
    empty.update(torch.zeros_like(target), torch.full_like(target, VOID))
    for name, value in perfect.compute().items():
        assert value.isfinite().all(), name
        assert (value == 1).all(), name
        assert empty.compute()[name].isnan().all(), name


@pytest.mark.parametrize("make", METRICS)
def test_values_out_of_range_are_reported_at_compute(make) -> None:
    metric = make(3)
    metric.update(torch.tensor([[[0, 3]]]), torch.tensor([[[0, 259]]]))
    with pytest.raises(ValueError, match=r"1 pixels have a target .* 0\.\.2 nor 255"):
        metric.compute()


@pytest.mark.parametrize("make", METRICS)
def test_more_than_256_classes_are_counted(make) -> None:
    """Classes of two bytes give the scores of the same maps with the classes of one byte."""
    preds, target = batch(4, 5)
    large, small = make(300), make(5)
    small.update(preds, target)
    moved = torch.where(target == VOID, target, target + 290)
    large.update(preds + 290, moved)
    assert torch.equal(large.counts[..., 290:295, :], small.counts)
    assert large.counts.sum() == small.counts.sum()


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: BoundaryIoU(2, dilation=0), "dilation"),
        (lambda: BoundaryIoU(2, dilation=1.5), "dilation"),
        (lambda: BoundaryFScore(2, tolerance=0.0), "tolerance"),
        (lambda: TrimapIoU(2, bands=()), "bands"),
        (lambda: TrimapIoU(2, bands=(3, 3)), "bands"),
        (lambda: TrimapIoU(2, bands=(0,)), "bands"),
        (lambda: BoundaryIoU(0), "num_classes"),
    ],
)
def test_settings_out_of_range_are_refused(make, option) -> None:
    with pytest.raises(SetupError) as refused:
        make()
    assert option in str(refused.value)


def test_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="differ"):
        BoundaryIoU(2).update(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4))
