"""Losses of other libraries as losses of pixels: void, nothing labelled, and what is refused."""

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import nn

from lightning_seg.errors import SetupError
from lightning_seg.losses import (
    CrossEntropy,
    LossMaxPooling,
    WeightedSum,
    ZeroWithoutLabels,
    fit_pixel_loss,
)

CLASSES = 4
OTHERS = {
    "dice": lambda **o: smp.losses.DiceLoss("multiclass", **o),
    "lovasz": lambda **o: smp.losses.LovaszLoss("multiclass", **o),
    "focal": lambda **o: smp.losses.FocalLoss("multiclass", **o),
    "tversky": lambda **o: smp.losses.TverskyLoss("multiclass", alpha=0.3, beta=0.7, **o),
    "jaccard": lambda **o: smp.losses.JaccardLoss("multiclass", **o),
    "torch": lambda **o: nn.CrossEntropyLoss(**o),
}
OURS = {"cross_entropy": CrossEntropy, "lmp": LossMaxPooling}


def batch(void=()) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(2, CLASSES, 6, 5, generator=draw)
    target = torch.randint(CLASSES, (2, 6, 5), generator=draw)
    for place in void:
        target[place] = 255
    return logits, target


def gradient(loss, logits, target) -> tuple[torch.Tensor, torch.Tensor]:
    logits = logits.clone().requires_grad_()
    value = loss(logits, target)
    return value.detach(), torch.autograd.grad(value, logits)[0]


@pytest.mark.parametrize("make", [*OTHERS.values(), *OURS.values()], ids=[*OTHERS, *OURS])
def test_void_pixels_have_no_influence_on_value_and_gradient(make) -> None:
    logits, target = batch([(0, slice(1, 4)), (1, slice(None), 2)])
    loss = fit_pixel_loss(make(), CLASSES)
    value, slope = gradient(loss, logits, target)
    void = (target == 255)[:, None].expand_as(logits)
    assert slope[void].abs().max() == 0
    assert slope[~void].abs().max() > 0
    changed = torch.where(void, torch.randn_like(logits) * 5, logits)
    assert loss(changed, target) == pytest.approx(value.item(), rel=1e-6)


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_it_is_the_librarys_own_loss_of_the_labelled_pixels(make) -> None:
    """The labelled pixels as an image of their own, one row high, given to the untouched loss."""
    logits, target = batch([(0, slice(1, 4)), (1, slice(None), 2)])
    known = target != 255
    row = logits.movedim(1, -1)[known].T[None, :, None]  # (1, C, 1, n)
    expected = make()(row, target[known][None, None])
    assert fit_pixel_loss(make(), CLASSES)(logits, target).item() == pytest.approx(
        expected.item(), rel=1e-5
    )


@pytest.mark.parametrize("make", [*OTHERS.values(), *OURS.values()], ids=[*OTHERS, *OURS])
def test_a_batch_without_labels_has_the_loss_0_and_no_gradient(make) -> None:
    logits, target = batch([slice(None)])
    value, slope = gradient(fit_pixel_loss(make(), CLASSES), logits, target)
    assert value.shape == ()
    assert value == 0
    assert not slope.any()


def test_the_wrapper_changes_nothing_where_pixels_are_labelled() -> None:
    logits, target = batch([(0, slice(1, 4))])
    plain = nn.CrossEntropyLoss(ignore_index=255)
    assert plain(logits, target) == ZeroWithoutLabels(plain)(logits, target)


@pytest.mark.parametrize("ignore_index", [255, 7, 2])
def test_the_class_id_of_void_is_filled_in_also_in_parts(ignore_index: int) -> None:
    sum_ = WeightedSum({"a": nn.CrossEntropyLoss(), "b": OTHERS["dice"](), "c": CrossEntropy()})
    fit_pixel_loss(sum_, CLASSES, ignore_index)
    found = [part.ignore_index for part in sum_.modules() if hasattr(part, "ignore_index")]
    assert set(found) == {ignore_index}


def test_another_class_id_of_void_that_was_given_is_refused() -> None:
    with pytest.raises(SetupError, match="leaves out class id 0, and void pixels have 255"):
        fit_pixel_loss(OTHERS["dice"](ignore_index=0), CLASSES)


class Odd(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, logits, target):
        return self.function(logits, target)


def cross_entropies(logits, target):
    return F.cross_entropy(logits, target, ignore_index=255, reduction="none")


REFUSED = {
    "no scalar": (cross_entropies, r"returns a tensor of shape \(2, 4, 4\), and a scalar was"),
    "no tensor": (lambda x, y: 1.0, "returns a float"),
    "not finite": (lambda x, y: x.sum() * float("nan"), "returns nan for random logits"),
    "infinite slope": (lambda x, y: (x - x).abs().sqrt().sum(), "its gradient is not finite"),
    "no gradient": (lambda x, y: cross_entropies(x.detach(), y).mean(), "has no gradient"),
    "other input": (lambda x, y: F.mse_loss(x[:, :3], y), "it fails for logits .2, 4, 4, 4."),
    "counts void": (lambda x, y: x.square().mean(), "does not leave out void .*depends on their"),
    "fails on void": (
        lambda x, y: F.cross_entropy(x, F.one_hot(y, CLASSES).movedim(-1, 1).float()),
        "does not leave out void pixels, which have class id 255: it fails for",
    ),
}


@pytest.mark.parametrize(("function", "message"), REFUSED.values(), ids=REFUSED)
def test_a_loss_that_does_not_fit_is_refused_in_one_sentence(function, message: str) -> None:
    with pytest.raises(SetupError, match=message) as error:
        fit_pixel_loss(Odd(function), CLASSES)
    assert "\n" not in str(error.value)


def test_a_loss_per_image_that_fails_on_an_image_without_labels_is_refused() -> None:
    with pytest.raises(SetupError, match="batch in which one image has no labels"):
        fit_pixel_loss(OTHERS["lovasz"](per_image=True), CLASSES)


def test_the_trial_draws_no_random_numbers_of_the_training_and_keeps_the_mode() -> None:
    loss = nn.CrossEntropyLoss()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    assert fit_pixel_loss(loss, CLASSES).loss.training
    assert torch.equal(torch.rand(2), expected)


# What the page on losses says of smp's losses


def test_dice_divides_by_all_classes_also_by_absent_ones() -> None:
    """Everything is wrong, and one class of four is there: a loss of 1/4."""
    logits = torch.zeros(1, CLASSES, 3, 3)
    logits[:, 1] = 50
    found = OTHERS["dice"]()(logits, torch.zeros(1, 3, 3, dtype=torch.int64))
    assert found.item() == pytest.approx(1 / CLASSES, abs=1e-4)


def test_the_focal_loss_is_one_binary_loss_per_class() -> None:
    logits, target = batch()
    one_hot = F.one_hot(target, CLASSES).movedim(-1, 1).float()
    bce = F.binary_cross_entropy_with_logits(logits, one_hot)
    found = smp.losses.FocalLoss("multiclass", gamma=0.0)(logits, target)
    torch.testing.assert_close(found, bce)
