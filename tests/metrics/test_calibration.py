"""The calibration error against torchmetrics and loops."""

from __future__ import annotations

import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from lightning_seg.metrics import CalibrationError


def batch(seed, images=3, classes=5):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(images, classes, 8, 9, generator=generator)
    target = torch.randint(classes, (images, 8, 9), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.2] = 255
    return logits.softmax(1), target


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_ece_equals_that_of_torchmetrics(bins) -> None:
    metric, batches = CalibrationError(bins), [batch(seed) for seed in range(3)]
    for probabilities, target in batches:
        metric.update(*probabilities.max(1), target)
    joined = [torch.cat(each) for each in zip(*batches, strict=True)]
    expected = multiclass_calibration_error(*joined, 5, n_bins=bins, ignore_index=255)
    assert float(metric.compute()["ece"]) == pytest.approx(float(expected), abs=1e-6)


def test_bins_equal_a_loop_over_pixels() -> None:
    probabilities, target = batch(9)
    metric = CalibrationError(10)
    metric.update(*probabilities.max(1), target)
    found = metric.compute()
    confidence, preds = probabilities.max(1)
    pairs = [
        (c, p == t)
        for c, p, t in zip(
            confidence.flatten().tolist(),
            preds.flatten().tolist(),
            target.flatten().tolist(),
            strict=True,
        )
        if t != 255
    ]
    for index in range(10):
        inside = [pair for pair in pairs if index / 10 < pair[0] <= (index + 1) / 10]
        assert found["count"][index] == len(inside)
        if inside:
            mean, right = (sum(each) / len(inside) for each in zip(*inside, strict=True))
            assert float(found["confidence"][index]) == pytest.approx(mean, abs=1e-6)
            assert float(found["accuracy"][index]) == pytest.approx(right, abs=1e-6)
        else:
            assert found["accuracy"][index].isnan()


def test_void_images_alone_give_nan() -> None:
    metric = CalibrationError()
    probabilities, target = batch(1)
    metric.update(*probabilities.max(1), torch.full_like(target, 255))
    assert metric.compute()["ece"].isnan()
    assert metric.compute()["count"].sum() == 0
