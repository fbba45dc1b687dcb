"""Class weights from counts that were made by hand."""

import pytest
import torch

from lightning_seg.losses import balanced_weights, effective_weights


def test_balanced_weights_of_a_hand_counted_mask() -> None:
    """12 pixels of 3 classes: 12 / (3 * 6), 12 / (3 * 4), 12 / (3 * 2)."""
    weights = balanced_weights(torch.tensor([6, 4, 2]))
    torch.testing.assert_close(weights, torch.tensor([2 / 3, 1.0, 2.0]))


def test_balanced_weights_give_every_class_the_same_share_and_a_mean_of_1() -> None:
    pixels = torch.tensor([10_000_000_000, 3, 0, 512])
    weights = balanced_weights(pixels).double()
    shares = weights * pixels
    torch.testing.assert_close(shares[[0, 1, 3]], (pixels.sum() / 3).double().expand(3))
    assert weights[2] == 0


def test_the_effective_number_is_the_papers_sum() -> None:
    """(1 - b^n) / (1 - b) is the geometric series 1 + b + ... + b^(n - 1)."""
    images, pixels, beta = torch.tensor([3, 50, 367]), torch.tensor([5, 70, 900]), 0.999
    series = [sum(beta**k for k in range(n)) for n in images.tolist()]
    weights = effective_weights(images, pixels, beta)
    assert (weights[0] / weights[2]).item() == pytest.approx(series[2] / series[0], rel=1e-5)
    assert (weights[1] / weights[2]).item() == pytest.approx(series[2] / series[1], rel=1e-5)
    assert (weights * pixels).sum().item() == pytest.approx(pixels.sum().item(), rel=1e-5)


def test_beta_0_weighs_all_classes_equally() -> None:
    weights = effective_weights(torch.tensor([3, 50, 0]), torch.tensor([5, 70, 0]), 0.0)
    torch.testing.assert_close(weights, torch.tensor([1.0, 1.0, 0.0]))
