"""A weighted sum of losses equals the sum by hand."""

import pytest
import segmentation_models_pytorch as smp
import torch

from lightning_seg.errors import SetupError
from lightning_seg.losses import CrossEntropy, LossMaxPooling, WeightedSum, cross_entropy


def test_it_is_the_sum_by_hand_and_so_is_its_gradient() -> None:
    logits = torch.randn(2, 3, 5, 4, requires_grad=True)
    target = torch.randint(3, (2, 5, 4))
    target[0, :2] = 255
    dice = smp.losses.DiceLoss("multiclass", ignore_index=255)
    loss = WeightedSum({"ce": CrossEntropy(), "dice": dice, "lmp": LossMaxPooling()}, {"dice": 0.3})
    expected = (
        cross_entropy(logits, target)
        + 0.3 * dice(logits, target)
        + LossMaxPooling()(logits, target)
    )
    found = loss(logits, target)
    torch.testing.assert_close(found, expected)
    slopes = [torch.autograd.grad(each, logits)[0] for each in (found, expected)]
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize(
    ("losses", "weights", "message"),
    [
        ({}, None, "no losses"),
        ({"ce": CrossEntropy()}, {"dice": 1.0}, "a weight for `dice`, and its losses are ce"),
        ({"ce": CrossEntropy()}, {"ce": -1.0}, "at least 0, not -1"),
        ({"ce": CrossEntropy()}, {"ce": float("nan")}, "at least 0, not nan"),
    ],
)
def test_impossible_sums_are_refused(losses, weights, message: str) -> None:
    with pytest.raises(SetupError, match=message):
        WeightedSum(losses, weights)


def test_any_name_will_do() -> None:
    names = ["pop", "type", "a.b", "values"]
    assert WeightedSum({name: CrossEntropy() for name in names}).names == names
