"""Cross-entropy against torch's own, and what torch's own does not do: batches without labels."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from two_processes import in_two_processes

from lightning_seg.losses.cross_entropy import CrossEntropy, cross_entropy

CLASSES = 4
WEIGHTS = [0.5, 1.0, 2.0, 0.0]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make_batch(dtype=torch.float32, void=0.3):
    logits = torch.randn(2, CLASSES, 5, 7, dtype=dtype)
    target = torch.randint(CLASSES, (2, 5, 7))
    target[torch.rand(2, 5, 7) < void] = 255
    return logits, target


def value_and_gradient(loss, logits, target, **options):
    leaf = logits.clone().requires_grad_()
    value = loss(leaf, target, ignore_index=255, **options)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


@pytest.mark.parametrize("void", [0.0, 0.3, 0.9])
def test_plain_value_and_gradient_are_bit_equal_to_torch(void):
    logits, target = make_batch(void=void)
    value, gradient = value_and_gradient(cross_entropy, logits, target)
    expected, expected_gradient = value_and_gradient(F.cross_entropy, logits, target)
    assert torch.equal(value, expected)
    assert torch.equal(gradient, expected_gradient)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_value_and_gradient_equal_torch_with_weights_and_smoothing(weights, smoothing):
    logits, target = make_batch()
    weight = None if weights is None else torch.tensor(weights)
    ours = value_and_gradient(
        cross_entropy, logits, target, class_weights=weight, label_smoothing=smoothing
    )
    theirs = value_and_gradient(
        F.cross_entropy, logits, target, weight=weight, label_smoothing=smoothing
    )
    torch.testing.assert_close(ours, theirs)


def test_weighted_mean_worked_by_hand():
    # two pixels of classes 0 and 1 with p(truth) = 1/2 and 1/4, weights 1 and 3
    logits = torch.tensor([[0.5, 0.75], [0.5, 0.25]]).log().view(1, 2, 1, 2)
    target = torch.tensor([[[0, 1]]])
    loss = cross_entropy(logits, target, class_weights=torch.tensor([1.0, 3.0]))
    assert loss.item() == pytest.approx((math.log(2) + 3 * math.log(4)) / 4)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("ignore_index", [0, -100])
def test_another_ignore_index_is_left_out(ignore_index, weights):
    logits, target = make_batch(void=0.0)
    target[:, :2] = ignore_index
    weight = None if weights is None else torch.tensor(weights)
    torch.testing.assert_close(
        cross_entropy(logits, target, ignore_index, weight),
        F.cross_entropy(logits, target, weight, ignore_index=ignore_index),
    )


def test_scale_of_the_class_weights_does_not_matter():
    logits, target = make_batch()
    weight = torch.tensor(WEIGHTS)
    torch.testing.assert_close(
        cross_entropy(logits, target, class_weights=weight * 1e-6),
        F.cross_entropy(logits, target, weight, ignore_index=255),
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_all_void_batch_gives_zero_with_zero_gradient(weights, smoothing):
    logits, target = make_batch(void=1.0)
    weight = None if weights is None else torch.tensor(weights)
    value, gradient = value_and_gradient(
        cross_entropy, logits, target, class_weights=weight, label_smoothing=smoothing
    )
    assert value.item() == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_only_classes_of_weight_zero_give_zero_with_zero_gradient():
    logits, _ = make_batch()
    target = torch.full((2, 5, 7), WEIGHTS.index(0.0))
    value, gradient = value_and_gradient(
        cross_entropy, logits, target, class_weights=torch.tensor(WEIGHTS)
    )
    assert value.item() == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_give_the_float32_loss(dtype):
    logits, target = make_batch(dtype)
    loss = cross_entropy(logits, target)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, F.cross_entropy(logits.float(), target, ignore_index=255))


def test_double_stays_double():
    logits, target = make_batch(torch.float64)
    loss = cross_entropy(logits, target)
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, F.cross_entropy(logits, target, ignore_index=255))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_gradient_passes_gradcheck(weights, smoothing):
    logits, target = (each[..., :3] for each in make_batch(torch.float64))
    weight = None if weights is None else torch.tensor(weights, dtype=torch.float64)

    def loss(values):
        return cross_entropy(values, target, class_weights=weight, label_smoothing=smoothing)

    assert torch.autograd.gradcheck(loss, logits.clone().requires_grad_())


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("strange", [CLASSES, 254, -1])
def test_target_that_is_no_class_raises(strange, weights):
    logits, target = make_batch()
    target[0, 0, 0] = strange
    with pytest.raises(IndexError, match=f"Target {strange} is out of bounds"):
        CrossEntropy(class_weights=weights)(logits, target)


def test_module_uses_its_constants():
    logits, target = make_batch()
    target[target == 255] = 3
    module = CrossEntropy(ignore_index=3, class_weights=WEIGHTS, label_smoothing=0.2)
    expected = F.cross_entropy(
        logits, target, torch.tensor(WEIGHTS), ignore_index=3, label_smoothing=0.2
    )
    torch.testing.assert_close(module(logits, target), expected)


def test_module_accepts_whole_numbers_as_class_weights():
    logits, target = make_batch()
    expected = F.cross_entropy(logits, target, torch.tensor([1.0, 2.0, 3.0, 4.0]), ignore_index=255)
    torch.testing.assert_close(CrossEntropy(class_weights=[1, 2, 3, 4])(logits, target), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weighted_module_works_in_a_network_of_another_dtype(dtype):
    # Lightning's precision=bf16-true and 64-true convert the module's buffers as well
    logits, target = make_batch(dtype)
    module = CrossEntropy(class_weights=WEIGHTS).to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    expected = F.cross_entropy(
        logits.to(wide), target, torch.tensor(WEIGHTS, dtype=wide), ignore_index=255
    )
    torch.testing.assert_close(module(logits, target), expected)


def test_float32_class_weights_work_with_double_logits():
    logits, target = make_batch(torch.float64)
    expected = F.cross_entropy(logits, target, torch.tensor(WEIGHTS).double(), ignore_index=255)
    torch.testing.assert_close(CrossEntropy(class_weights=WEIGHTS)(logits, target), expected)


def test_class_weights_stay_out_of_the_checkpoint():
    assert CrossEntropy(class_weights=WEIGHTS).state_dict() == {}


def test_two_processes_equal_one_with_all_images(tmp_path):
    """Rank 0 has up to six times the labels of rank 1, which may have none, as may both."""
    cases = []
    for rows in ((6, 1), (3, 0), (0, 5), (0, 0), (6, 6)):
        for smoothing in (0.0, 0.2):
            for weights in (None, torch.tensor([1.0, 3.0, 0.2], dtype=torch.float64)):
                logits = torch.randn(2, 2, 3, 6, 4, dtype=torch.float64)
                target = torch.randint(3, (2, 2, 6, 4))
                for rank, count in enumerate(rows):
                    target[rank, :, count:] = 255
                cases.append((logits, target, 255, weights, smoothing))
    loss = "cross_entropy(leaf, labels, *rest, across_ranks=True)"
    found = in_two_processes(cases, loss, "CrossEntropy(across_ranks=True)", tmp_path)
    for (logits, target, _, weights, smoothing), *ranks in zip(cases, *found, strict=True):
        leaf = logits.clone().requires_grad_()
        options = {"weight": weights, "ignore_index": 255, "label_smoothing": smoothing}
        sums = F.cross_entropy(leaf.flatten(0, 1), target.flatten(0, 1), reduction="sum", **options)
        known = target[target != 255]
        divisor = len(known) if weights is None else weights[known].sum()
        expected = sums / max(divisor, 1e-30)
        (gradient,) = torch.autograd.grad(expected, leaf)
        for rank, (value, own) in enumerate(ranks):
            assert value.item() == pytest.approx(expected.item(), rel=1e-12)
            # DDP averages: two gradients of their own images, divided by two
            torch.testing.assert_close(own / 2, gradient[rank], rtol=1e-10, atol=1e-14)
