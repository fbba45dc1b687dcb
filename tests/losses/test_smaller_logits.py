"""Losses of logits smaller than the labels, against upsampling them first."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_seg.errors import SetupError
from lightning_seg.losses import (
    CrossEntropy,
    LossMaxPooling,
    ProbabilityGradientLoss,
    class_probabilities,
    confident_labels,
    cross_entropy,
    loss_max_pooling,
    probability_gradient_loss,
    pseudo_labels,
    upsampled_rows,
)
from lightning_seg.losses import (
    block_cross_entropy as blocks,
)
from lightning_seg.losses.upsampled_rows import UpsampledRows

SIZES = [
    ((5, 7), (40, 56)),
    ((9, 9), (65, 65)),
    ((4, 6), (33, 50)),
    ((7, 5), (8, 37)),
    ((1, 1), (9, 6)),
]
LOSSES = {
    "cross_entropy": CrossEntropy(),
    "weighted": CrossEntropy(class_weights=[0.5, 1.0, 2.0, 0.0, 3.0]),
    "smoothed": CrossEntropy(class_weights=[0.5, 1.0, 2.0, 0.5, 3.0], label_smoothing=0.2),
    "lmp": LossMaxPooling(),
    "lmp of the batch": LossMaxPooling(1.3, 0.1, per_image=False, label_smoothing=0.1),
    "lmp weighted": LossMaxPooling(class_weights=[0.5, 1.0, 2.0, 0.5, 3.0]),
    "cpg": ProbabilityGradientLoss(),
    "cpg 5": ProbabilityGradientLoss(5, "nearest"),
    "cpg reference": ProbabilityGradientLoss(7, "reference", form="sparse"),
    "cpg dense": ProbabilityGradientLoss(form="dense", false_edges=0.5),
    "false edges": ProbabilityGradientLoss(false_edges=0.7),
    "false edges 5": ProbabilityGradientLoss(5, "nearest", false_edges=2.0),
}


@pytest.fixture(autouse=True)
def _blocks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small logits are otherwise upsampled as a whole, and one block holds a small image."""
    monkeypatch.setattr(blocks, "SMALL", 0)
    monkeypatch.setattr(upsampled_rows, "_ON_CPU", 700)


def upsampled(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def batch(
    small: tuple[int, int], size: tuple[int, int], dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(sum(size))
    logits = torch.randn(3, 5, *small, generator=draw, dtype=dtype) * 4
    # a few large areas, single pixels of other classes, and void
    coarse = torch.randint(5, (3, 1, 3, 3), generator=draw).float()
    target = F.interpolate(coarse, size=size).long()[:, 0]
    noise = torch.rand(target.shape, generator=draw)
    target[noise < 0.05] = 3
    target[noise > 0.9] = 255
    target[1] = 255
    return logits, target


def value_and_gradient(loss, logits: Tensor, target: Tensor, size=None) -> tuple[Tensor, Tensor]:
    logits = logits.clone().requires_grad_()
    value = loss(logits if size is None else upsampled(logits, size), target)
    (gradient,) = torch.autograd.grad(value * 1.7, logits)
    return value.detach(), gradient


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("small", "size"), SIZES)
def test_values_and_gradients_are_those_of_upsampled_logits(
    name: str, small: tuple[int, int], size: tuple[int, int]
) -> None:
    logits, target = batch(small, size)
    found = value_and_gradient(LOSSES[name].double(), logits, target)
    expected = value_and_gradient(LOSSES[name], logits, target, size)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precisions_are_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    logits, target = batch((8, 9), (64, 72), dtype)
    found = value_and_gradient(LOSSES[name].float(), logits, target)
    expected = value_and_gradient(LOSSES[name], logits.float(), target, (64, 72))
    assert (found[0].dtype, found[1].dtype) == (torch.float32, dtype)
    torch.testing.assert_close(found[0], expected[0], rtol=2e-6, atol=1e-6)
    rounding = 2e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(
        found[1].float(), expected[1], rtol=rounding, atol=rounding * expected[1].abs().max().item()
    )


def test_the_whole_image_and_any_division_into_blocks_agree(monkeypatch) -> None:
    logits, target = batch((9, 9), (65, 65))
    found = []
    for values in (1, 3000, 10**9):
        monkeypatch.setattr(upsampled_rows, "_ON_CPU", values)
        found.append(value_and_gradient(cross_entropy, logits, target))
    monkeypatch.setattr(blocks, "SMALL", 10**9)
    found.append(value_and_gradient(cross_entropy, logits, target))
    for each in found[1:]:
        torch.testing.assert_close(each[0], found[0][0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(each[1], found[0][1], rtol=1e-11, atol=1e-13)


def test_rows_and_their_adjoint_are_those_of_interpolation() -> None:
    maps = torch.randn(2, 3, 6, 7, dtype=torch.float64, requires_grad=True)
    whole = upsampled(maps, (45, 31))
    rows = UpsampledRows(maps, (45, 31))
    weights = torch.randn_like(whole)
    # bands that overlap, as those of the term against false edges do
    expected = torch.zeros(())
    for first, last in [(0, 11), (7, 20), (18, 45), (44, 45)]:
        torch.testing.assert_close(rows.rows(first, last), whole.detach()[:, :, first:last])
        rows.add_gradient(first, weights[:, :, first:last].clone())
        expected = expected + (weights * whole)[:, :, first:last].sum()
    (gradient,) = torch.autograd.grad(expected, maps)
    torch.testing.assert_close(rows.finish(), gradient)


def test_the_adjoint_is_exact_where_products_may_be_rounded() -> None:
    logits, target = batch((9, 9), (65, 65), torch.float32)
    expected = value_and_gradient(cross_entropy, logits, target)[1]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        found = value_and_gradient(cross_entropy, logits, target)[1]
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


def test_gradients_are_deterministic_and_channels_last_changes_nothing() -> None:
    logits, target = batch((9, 9), (65, 65), torch.float32)
    first = value_and_gradient(cross_entropy, logits, target)[1]
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(value_and_gradient(cross_entropy, logits, target)[1], first)
    finally:
        torch.use_deterministic_algorithms(False)
    last = logits.contiguous(memory_format=torch.channels_last)
    assert torch.equal(value_and_gradient(cross_entropy, last, target)[1], first)


@pytest.mark.parametrize("loss", [cross_entropy, loss_max_pooling, probability_gradient_loss])
def test_gradients_pass_a_numerical_check(loss) -> None:
    logits, target = batch((2, 3), (9, 8))
    logits = (logits[:1] / 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, target[:1]), logits, atol=1e-6)


def test_losses_add_up_and_a_second_backward_pass_gives_the_same() -> None:
    logits, target = batch((5, 7), (40, 56))
    logits.requires_grad_()
    total = cross_entropy(logits, target) + 2 * loss_max_pooling(logits, target)
    (first,) = torch.autograd.grad(total, logits, retain_graph=True)
    (second,) = torch.autograd.grad(total, logits)
    assert torch.equal(first, second)


@pytest.mark.parametrize("loss", [cross_entropy, loss_max_pooling])
def test_a_second_derivative_is_refused(loss) -> None:
    logits, target = batch((5, 7), (40, 56))
    value = loss(logits.requires_grad_(), target)
    with pytest.raises(SetupError, match="no second derivative: upsample the logits"):
        torch.autograd.grad(value, logits, create_graph=True)


def test_no_gradient_is_computed_where_none_is_wanted(monkeypatch) -> None:
    logits, target = batch((5, 7), (40, 56))
    expected = cross_entropy(logits, target)

    def refuse(*_: object) -> None:
        raise AssertionError("a gradient was computed")

    monkeypatch.setattr(UpsampledRows, "add_gradient", refuse)
    with torch.no_grad():
        assert torch.equal(cross_entropy(logits.clone().requires_grad_(), target), expected)


def test_nothing_labelled_gives_zero_with_a_zero_gradient() -> None:
    logits, target = batch((5, 7), (40, 56))
    for loss in LOSSES.values():
        value, gradient = value_and_gradient(loss.double(), logits, torch.full_like(target, 255))
        assert value == 0
        assert not gradient.any()


def test_logits_of_void_pixels_may_be_anything() -> None:
    logits, target = batch((5, 7), (40, 56))
    target[:, :, 20:] = 255  # columns 3 to 6 of the logits reach from column 20 to the right
    changed = logits.clone()
    changed[..., 4:] = float("nan")
    changed[..., 5:] = float("inf")
    for loss in (cross_entropy, loss_max_pooling):
        found, expected = (value_and_gradient(loss, each, target) for each in (changed, logits))
        torch.testing.assert_close(found[0], expected[0])
        torch.testing.assert_close(found[1], expected[1])


def test_ids_that_are_no_class_and_shapes_that_do_not_fit_are_refused() -> None:
    logits, target = batch((5, 7), (40, 56))
    wrong = target.clone()
    wrong[0, 0, 0] = 5
    for loss in (cross_entropy, loss_max_pooling, probability_gradient_loss):
        with pytest.raises(IndexError, match=r"holds 0..5; expected 0..4"):
            loss(logits, wrong)
        for other in (target[:, :4], target[:2], target[0], target[:, :, :6]):
            with pytest.raises(ValueError, match="do not fit"):
                loss(logits, other)


def test_compiled_losses_agree() -> None:
    logits, target = batch((5, 7), (40, 56), torch.float32)
    found = torch.compile(cross_entropy, backend="eager")(logits, target)
    torch.testing.assert_close(found, cross_entropy(logits, target))


def test_memory_stays_below_that_of_full_size_logits(monkeypatch) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    monkeypatch.undo()  # blocks of the usual size
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for each in out if isinstance(out, tuple | list) else (out,):
                if isinstance(each, Tensor):
                    largest = max(largest, each.numel())
            return out

    logits = torch.randn(2, 60, 32, 32)
    target = torch.randint(60, (2, 256, 256))
    with Watch():
        for loss in (cross_entropy, loss_max_pooling):
            value_and_gradient(loss, logits, target)
    assert largest <= 2 * 256 * 256 * 60 / 20


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("small", "size"), SIZES)
def test_probabilities_and_their_gradient_are_those_of_upsampled_logits(
    small: tuple[int, int], size: tuple[int, int], order: torch.memory_format
) -> None:
    logits, _ = batch(small, size)
    logits = logits.contiguous(memory_format=order)
    upstream = torch.randn(3, 5, *size, generator=torch.Generator().manual_seed(1)).double()
    one, other = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    found = class_probabilities(one, size)
    expected = upsampled(other, size).softmax(1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    (gradient,) = torch.autograd.grad(found, one, upstream)
    (slow,) = torch.autograd.grad(expected, other, upstream)
    torch.testing.assert_close(gradient, slow, rtol=1e-10, atol=1e-12)
    if small != (1, 1):
        assert found.is_contiguous(memory_format=order)


def test_probabilities_pass_a_numerical_check_and_refuse_a_second_derivative() -> None:
    logits = torch.randn(2, 5, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: class_probabilities(z, (7, 9)), logits)
    (first,) = torch.autograd.grad(
        class_probabilities(logits, (7, 9)).square().sum(), logits, create_graph=False
    )
    assert first.isfinite().all()
    with pytest.raises(SetupError, match="have no second derivative"):
        torch.autograd.grad(
            class_probabilities(logits, (7, 9)).square().sum(), logits, create_graph=True
        )


def test_pseudo_labels_of_smaller_logits_are_those_of_upsampled_ones() -> None:
    logits, _ = batch((9, 9), (65, 65))
    valid = torch.rand(3, 65, 65, generator=torch.Generator().manual_seed(2)) > 0.1
    scores = torch.randn(3, 1, 3, 3, generator=torch.Generator().manual_seed(3))
    large = upsampled(logits, (65, 65))
    for share, keep in (
        (0.4, pseudo_labels),
        (0.6, lambda z, _, *rest: confident_labels(z, *rest)),
    ):
        found = keep(logits, scores, share, valid)
        assert torch.equal(found, keep(large, scores, share, valid))
        assert 0 < (found != 255).double().mean() < 0.85
    # the largest probability by hand, at one pixel
    p = large[1, :, 30, 31].softmax(0)
    expected = int(p.argmax()) if p.max() >= 0.6 and valid[1, 30, 31] else 255
    assert confident_labels(logits, 0.6, valid)[1, 30, 31] == expected
