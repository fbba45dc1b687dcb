"""Segmentation scores against torchmetrics, slow loops, hand-worked numbers and two processes."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torchmetrics.classification import MulticlassJaccardIndex

from lightning_seg.metrics import (
    BoundaryFScore,
    BoundaryIoU,
    CalibrationError,
    SegmentationMetrics,
    TrimapIoU,
)

CLASSES = 5
SCALARS = ("miou", "pixel_accuracy", "mean_accuracy", "fwiou")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make_batch(size=4, classes=CLASSES, void=0.2):
    target = torch.randint(classes, (size, 9, 11))
    prediction = torch.where(torch.rand(size, 9, 11) < 0.5, target, torch.randint(classes, (1,)))
    prediction[:, :2] = torch.randint(classes, (size, 2, 11))
    target[torch.rand(size, 9, 11) < void] = 255
    return prediction, target


def scores(*batches, classes=CLASSES, **options):
    metrics = SegmentationMetrics(classes, **options)
    for prediction, target in batches:
        metrics.update(prediction, target)
    return metrics.compute()


def slow_scores(prediction, target, classes):
    """Loops over pixels and classes; absent classes are skipped with `continue`."""
    pairs = [
        (int(p), int(t))
        for p, t in zip(prediction.flatten(), target.flatten(), strict=True)
        if t != 255
    ]
    ious, accuracies, frequency_weighted = [], [], 0.0
    for c in range(classes):
        hits = sum(p == c and t == c for p, t in pairs)
        union = sum(p == c or t == c for p, t in pairs)
        truth = sum(t == c for _, t in pairs)
        if union == 0:
            continue
        ious.append(hits / union)
        frequency_weighted += truth / len(pairs) * hits / union
        if truth:
            accuracies.append(hits / truth)
    return {
        "miou": np.mean(ious),
        "pixel_accuracy": sum(p == t for p, t in pairs) / len(pairs),
        "mean_accuracy": np.mean(accuracies),
        "fwiou": frequency_weighted,
    }


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("key", "average"), [("iou", "none"), ("miou", "macro")])
def test_iou_equals_torchmetrics(key, average, seed):
    torch.manual_seed(seed)
    prediction, target = make_batch()
    reference = MulticlassJaccardIndex(CLASSES, average=average, ignore_index=255)
    torch.testing.assert_close(
        scores((prediction, target))[key], reference(prediction, target), check_dtype=False
    )


@pytest.mark.parametrize("name", SCALARS)
@pytest.mark.parametrize("present", [CLASSES, 3], ids=["all_present", "two_absent"])
def test_scalar_scores_equal_slow_loops(present, name):
    batch = make_batch(classes=present)
    expected = slow_scores(*batch, CLASSES)[name]
    assert scores(batch)[name].item() == pytest.approx(expected, abs=1e-6)


def test_scores_worked_by_hand():
    # truth 0 0 0 1, predicted 0 0 2 1; class 2 is predicted only, class 3 nowhere
    found = scores((torch.tensor([[0, 0, 2, 1]]), torch.tensor([[0, 0, 0, 1]])), classes=4)
    nan = float("nan")
    assert found["iou"].tolist() == pytest.approx([2 / 3, 1, 0, nan], nan_ok=True)
    assert found["accuracy"].tolist() == pytest.approx([2 / 3, 1, nan, nan], nan_ok=True)
    assert found["miou"].item() == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert found["mean_accuracy"].item() == pytest.approx((2 / 3 + 1) / 2)
    assert found["pixel_accuracy"].item() == pytest.approx(3 / 4)
    assert found["fwiou"].item() == pytest.approx(3 / 4 * 2 / 3 + 1 / 4 * 1)


def test_confusion_has_truth_down_and_prediction_across():
    metrics = SegmentationMetrics(2)
    metrics.update(torch.tensor([[0, 1, 1, 1]]), torch.tensor([[0, 0, 0, 1]]))
    assert metrics.confusion.tolist() == [[1, 2], [0, 1]]


def test_a_class_can_be_the_ignored_one():
    prediction, target = torch.tensor([[0, 1, 1]]), torch.tensor([[0, 0, 1]])
    found = scores((prediction, target), classes=2, ignore_index=0)
    assert found["pixel_accuracy"].item() == 1
    assert found["iou"][1].item() == 1


def test_uneven_batches_equal_one_big_batch():
    prediction, target = make_batch(size=7)
    parts = [(prediction[a:b], target[a:b]) for a, b in ((0, 1), (1, 5), (5, 7))]
    torch.testing.assert_close(scores(*parts), scores((prediction, target)), rtol=0, atol=0)


@pytest.mark.parametrize("target_dtype", [torch.uint8, torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.int64])
def test_integer_dtypes_give_the_same_scores(dtype, target_dtype):
    classes = 100  # products of ids overflow a byte
    prediction, target = make_batch(classes=classes)
    torch.testing.assert_close(
        scores((prediction.to(dtype), target.to(target_dtype)), classes=classes),
        scores((prediction, target), classes=classes),
        rtol=0,
        atol=0,
        equal_nan=True,
    )


@pytest.mark.parametrize("strange", [CLASSES, 254, -1])
def test_target_that_is_no_class_is_reported_at_compute(strange):
    prediction, target = make_batch()
    target[0, 0, :3] = strange
    metrics = SegmentationMetrics(CLASSES)
    metrics.update(prediction, target)
    with pytest.raises(ValueError, match=r"^3 pixels .* 0\.\.4 nor 255 .* num_classes"):
        metrics.compute()


def test_logits_in_place_of_classes_are_refused_by_shape():
    _, target = make_batch()
    logits = torch.randn(4, CLASSES, 9, 11)
    with pytest.raises(ValueError, match=r"\(4, 5, 9, 11\).*\(4, 9, 11\).*argmax"):
        SegmentationMetrics(CLASSES).update(logits, target)


def test_zero_classes_are_refused():
    with pytest.raises(ValueError, match="num_classes must be at least 1, not 0"):
        SegmentationMetrics(0)


def test_all_void_gives_nan_scores():
    prediction, target = make_batch(void=1.0)
    found = scores((prediction, target))
    assert all(found[name].isnan() for name in ("miou", "pixel_accuracy", "mean_accuracy"))
    assert found["iou"].isnan().all()


def test_counts_beyond_float32_stay_exact():
    # 2**24 + 1 has no float32
    metrics = SegmentationMetrics(2)
    metrics.counts[0] = 2**24
    metrics.update(torch.tensor([[0]]), torch.tensor([[0]]))
    assert metrics.confusion[0, 0].item() == 2**24 + 1


def test_works_under_deterministic_algorithms():
    batch = make_batch()
    expected = scores(batch)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        found = scores(batch)
    finally:
        torch.use_deterministic_algorithms(before)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_reset_forgets_everything():
    metrics = SegmentationMetrics(CLASSES)
    metrics.update(*make_batch())
    metrics.reset()
    metrics.update(*(batch := make_batch()))
    torch.testing.assert_close(metrics.compute(), scores(batch), rtol=0, atol=0)


def test_pickled_metric_goes_on_counting():
    first, second = make_batch(), make_batch()
    metrics = SegmentationMetrics(CLASSES)
    metrics.update(*first)
    copy = pickle.loads(pickle.dumps(metrics))
    copy.update(*second)
    torch.testing.assert_close(copy.compute(), scores(first, second), rtol=0, atol=0)


SIZES_OF_RANKS = [(2, 1, 3), (4,)]


def others(*batches):
    """The scores of boundaries and of calibration; the confidence is the same at all pixels."""
    metrics = [BoundaryIoU(CLASSES), TrimapIoU(CLASSES), BoundaryFScore(CLASSES)]
    calibration = CalibrationError()
    for prediction, target in batches:
        for metric in metrics:
            metric.update(prediction, target)
        calibration.update(torch.full(target.shape, 0.7), prediction, target)
    return [metric.compute() for metric in (*metrics, calibration)]


def count_on_rank(rank, folder):
    """What each of the two processes does: update with its own batches, save what it computes."""
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.manual_seed(rank)
    batches = [make_batch(size) for size in SIZES_OF_RANKS[rank]]
    torch.save((batches, [scores(*batches), *others(*batches)]), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_with_uneven_batches_equal_one(tmp_path):
    torch.multiprocessing.spawn(count_on_rank, (str(tmp_path),), nprocs=2)
    (batches, found), (more, also) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    expected = [scores(*batches, *more), *others(*batches, *more)]
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(also, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("guess", [3, 7, -1])
def test_predictions_that_are_no_class_are_told(guess):
    metrics = SegmentationMetrics(num_classes=3)
    metrics.update(torch.tensor([[0, guess]]), torch.tensor([[0, 2]]))
    with pytest.raises(ValueError, match=r"1 pixels have .* a prediction outside 0..2"):
        metrics.compute()
