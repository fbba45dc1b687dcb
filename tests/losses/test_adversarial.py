"""The losses of adversarial semi-supervision against closed forms, torch and plain loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from lightning_seg.losses import (
    adversarial_loss,
    discriminator_loss,
    pseudo_label_loss,
    pseudo_labels,
    score_map,
)

LN2 = math.log(2)
HALF = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def softplus(x):
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


def random_case(size=(3, 9, 13), low=(3, 4), classes=5):
    """Logits, low scores on both sides of any threshold, and a mask."""
    batch, height, width = size
    logits = torch.randn(batch, classes, height, width, dtype=torch.float64) * 2
    scores = torch.randn(batch, 1, *low, dtype=torch.float64) * 2
    return logits, scores, torch.rand(size) < 0.7


def bce(scores, label, valid):
    """Mean over valid pixels only; `scores` at the pixels' size."""
    return F.binary_cross_entropy_with_logits(
        scores[valid], torch.full_like(scores[valid], float(label))
    )


# Scores at every pixel


def weights_of(count, wanted):
    """(wanted, count): the first and last places are the first and last pixels."""
    matrix = torch.zeros(wanted, count, dtype=torch.float64)
    for i in range(wanted):
        at = i * (count - 1) / (wanted - 1) if wanted > 1 else 0.0
        left = min(int(at), count - 1)
        matrix[i, left] += 1 - (at - left)
        if at > left:
            matrix[i, left + 1] += at - left
    return matrix


def upsampled(scores, size):
    """(B, 1, h, w) float64 -> (B, H, W), bilinear with corners on corners."""
    rows, columns = (weights_of(*each) for each in zip(scores.shape[-2:], size, strict=True))
    return rows @ scores[:, 0] @ columns.T


def test_upsampling_a_ramp():
    found = score_map(torch.tensor([[[[0.0, 3.0]]]]), (2, 4))
    torch.testing.assert_close(found, torch.tensor([[[0.0, 1.0, 2.0, 3.0]] * 2]))


@pytest.mark.parametrize(
    ("low", "size"),
    [((3, 4), (9, 13)), ((10, 10), (321, 321)), ((2, 5), (64, 64)), ((1, 1), (5, 7)),
     ((1, 3), (6, 6)), ((4, 4), (4, 4)), ((4, 6), (7, 1))],
)  # fmt: skip
def test_upsampling_keeps_corners_on_corners(low, size):
    scores = torch.randn(2, 1, *low, dtype=torch.float64)
    expected = upsampled(scores, size)
    torch.testing.assert_close(score_map(scores, size), expected)
    torch.testing.assert_close(score_map(scores[:, 0], size), expected)
    single = score_map(scores.float(), size)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "shape", [(2, 2, 3, 3), (2, 21, 3, 3), (3, 3), (1, 1, 1, 3, 3), (2, 0, 3, 3)]
)
def test_scores_that_are_no_score_maps(shape):
    scores, valid = torch.zeros(shape), torch.ones(2, 6, 6, dtype=torch.bool)
    logits = torch.zeros(2, 5, 6, 6)
    for call in (
        lambda: score_map(scores, (6, 6)),
        lambda: adversarial_loss(scores, valid),
        lambda: adversarial_loss(scores),
        lambda: discriminator_loss(scores, torch.zeros(2, 1, 3, 3)),
        lambda: discriminator_loss(torch.zeros(2, 1, 3, 3), scores),
        lambda: pseudo_labels(logits, scores),
        lambda: pseudo_label_loss(logits, scores),
    ):
        with pytest.raises(ValueError, match="scores"):
            call()


@pytest.mark.parametrize("strange", [(1, 6, 6), (3, 6, 6), (6, 6), (2, 1, 6, 6)])
def test_masks_that_do_not_fit(strange):
    """(2, 6, 6) is right; nothing else may be spread over the batch in silence."""
    scores, valid = torch.zeros(2, 1, 3, 3), torch.ones(strange, dtype=torch.bool)
    logits = torch.zeros(2, 5, 6, 6)
    for call in (
        lambda: adversarial_loss(scores, valid),
        lambda: discriminator_loss(scores, scores, fake_valid=valid),
        lambda: discriminator_loss(scores, scores, real_valid=valid),
        lambda: pseudo_labels(logits, scores, valid=valid),
    ):
        with pytest.raises((ValueError, RuntimeError)):
            call()


@pytest.mark.parametrize("batch", [1, 3])
def test_scores_of_other_images(batch):
    with pytest.raises((ValueError, RuntimeError)):
        pseudo_labels(torch.zeros(2, 5, 6, 6), torch.zeros(batch, 1, 3, 3))


# Constant scores


@pytest.mark.parametrize("c", [-60.0, -4.0, -1.3863, -0.5, 0.0, 0.3, 2.0, 60.0])
def test_constant_scores(c):
    scores = torch.full((2, 1, 2, 3), c, dtype=torch.float64)
    valid = torch.rand(2, 16, 24) < 0.5
    for mask in (None, valid):
        assert adversarial_loss(scores, mask).item() == pytest.approx(softplus(-c), rel=1e-12)
        both = discriminator_loss(scores, scores, mask, mask).item()
        assert both == pytest.approx((softplus(c) + softplus(-c)) / 2, rel=1e-12)
        assert both >= LN2 - 1e-12
        assert (both == pytest.approx(LN2, rel=1e-12)) == (c == 0)


@pytest.mark.parametrize("real", [-2.0, 0.0, 3.0])
@pytest.mark.parametrize("fake", [-2.0, 0.0, 3.0])
def test_predictions_are_called_0_and_labels_1_by_halves(fake, real):
    loss = discriminator_loss(torch.full((3, 1, 2, 2), fake), torch.full((2, 1, 2, 2), real))
    assert loss.item() == pytest.approx((softplus(fake) + softplus(-real)) / 2, rel=1e-6)


@pytest.mark.parametrize("c", [-1e4, 1e4])
def test_large_scores_stay_finite(c):
    scores = torch.full((1, 1, 2, 2), c, requires_grad=True)
    loss = adversarial_loss(scores) + discriminator_loss(scores, scores)
    loss.backward()
    assert loss.item() == pytest.approx(max(-c, 0) + abs(c) / 2)
    assert scores.grad.isfinite().all()


# Random scores and masks


@pytest.mark.parametrize("masked", [False, True])
def test_value_and_gradient_equal_torch(masked):
    _, fake, fake_valid = random_case()
    _, real, real_valid = random_case((2, 10, 10), (2, 3))
    if not masked:
        fake_valid, real_valid = torch.ones_like(fake_valid), torch.ones_like(real_valid)
    leaves = [each.clone().requires_grad_() for each in (fake, real)]
    big = [
        upsampled(each, valid.shape[-2:])
        for each, valid in zip(leaves, (fake_valid, real_valid), strict=True)
    ]
    for expected, found in (
        (bce(big[0], 1, fake_valid), adversarial_loss(leaves[0], fake_valid)),
        (
            bce(big[0], 0, fake_valid) / 2 + bce(big[1], 1, real_valid) / 2,
            discriminator_loss(*leaves, fake_valid, real_valid),
        ),
    ):
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(
            torch.autograd.grad(found, leaves, allow_unused=True, retain_graph=True),
            torch.autograd.grad(expected, leaves, allow_unused=True, retain_graph=True),
        )


def test_the_mean_is_over_the_valid_pixels_of_all_images():
    """Labelled and unlabelled predictions go in one batch: one mean, not a mean of two."""
    scores = torch.tensor([1.0, -2.0]).view(2, 1, 1, 1)
    valid = torch.zeros(2, 4, 4, dtype=torch.bool)
    valid[0, :1], valid[1] = True, True
    expected = (4 * softplus(-1.0) + 16 * softplus(2.0)) / 20
    assert adversarial_loss(scores, valid).item() == pytest.approx(expected, rel=1e-6)


def test_more_void_does_not_dilute_the_mean():
    scores = torch.full((1, 1, 2, 2), 0.7)
    losses = set()
    for void in (0, 3, 6):
        valid = torch.ones(1, 8, 8 + void, dtype=torch.bool)
        valid[..., 8:] = False
        found = adversarial_loss(scores, valid), discriminator_loss(scores, scores, valid, valid)
        losses.add(tuple(round(each.item(), 6) for each in found))
    assert len(losses) == 1


def test_scores_under_void_do_not_matter():
    """At the size of the pixels, where upsampling carries nothing over."""
    _, scores, valid = random_case(low=(9, 13))
    other = scores.where(valid[:, None], 50.0)
    assert torch.equal(adversarial_loss(scores, valid), adversarial_loss(other, valid))
    one, two = (discriminator_loss(each, each, valid, valid) for each in (scores, other))
    assert torch.equal(one, two)


def test_empty_masks_are_legal():
    logits, scores, valid = random_case()
    nothing = torch.zeros_like(valid)
    logits.requires_grad_()
    scores.requires_grad_()
    for leaf, loss in (
        (scores, adversarial_loss(scores, nothing)),
        (scores, discriminator_loss(scores, scores, nothing, nothing)),
        (logits, pseudo_label_loss(logits, scores, 0.0, nothing)),
    ):
        assert loss == 0
        (gradient,) = torch.autograd.grad(loss, leaf)
        assert torch.equal(gradient, torch.zeros_like(gradient))
    half = discriminator_loss(scores, scores, nothing, valid)
    torch.testing.assert_close(half, adversarial_loss(scores, valid) / 2)


# Pseudo-labels


def reference_labels(logits, scores, threshold, valid=None, ignore_index=255):
    confidence = upsampled(scores, logits.shape[-2:])
    labels = torch.full_like(confidence, ignore_index, dtype=torch.int64)
    for b, y, x in torch.ones_like(labels).nonzero().tolist():
        sure = 1 / (1 + math.exp(-confidence[b, y, x])) >= threshold
        if sure and (valid is None or valid[b, y, x]):
            values = logits[b, :, y, x].tolist()
            labels[b, y, x] = values.index(max(values))
    return labels


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5, 0.9, 1.01])
def test_labels_and_their_loss_equal_the_reference(threshold, masked):
    logits, scores, valid = random_case()
    valid = valid if masked else None
    expected = reference_labels(logits, scores, threshold, valid)
    found = pseudo_labels(logits, scores, threshold, valid)
    assert found.dtype == torch.int64
    assert torch.equal(found, expected)
    assert torch.equal(
        pseudo_labels(logits, scores, threshold, valid, ignore_index=-1),
        expected.where(expected != 255, -1),
    )
    leaf = logits.clone().requires_grad_()
    loss = pseudo_label_loss(leaf, scores, threshold, valid)
    (gradient,) = torch.autograd.grad(loss, leaf)
    kept = expected != 255
    assert kept.any() == (threshold <= 1)
    if threshold > 1:
        assert loss == 0
        assert (gradient == 0).all()
        return
    again = logits.clone().requires_grad_()
    wanted = F.cross_entropy(again.movedim(1, -1)[kept], expected[kept])
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted, again)[0])


@pytest.mark.parametrize("ignore_index", [-1, 255, 4])
def test_the_id_of_pixels_that_are_not_kept_changes_no_loss(ignore_index):
    """Class 4 is the most probable one nowhere, so that its id is free."""
    logits, scores, valid = random_case()
    logits[:, 4] = -100
    loss = pseudo_label_loss(logits, scores, 0.5, valid, ignore_index)
    assert torch.equal(loss, pseudo_label_loss(logits, scores, 0.5, valid))


def test_threshold_0_keeps_everything():
    logits, scores, _ = random_case()
    scores -= 1000  # sigmoid is 0
    assert torch.equal(pseudo_labels(logits, scores, 0.0), logits.argmax(1))
    expected = F.cross_entropy(logits, logits.argmax(1))
    torch.testing.assert_close(pseudo_label_loss(logits, scores, 0.0), expected)


@pytest.mark.parametrize(
    ("threshold", "logit"), [(0.2, -1.3863), (0.5, 0.0), (0.25, -1.0986), (0.9, 2.1972)]
)
def test_thresholds_as_logits(threshold, logit):
    logits = torch.zeros(1, 2, 1, 2)
    scores = torch.tensor([[[[logit - 2e-4, logit + 2e-4]]]])
    assert pseudo_labels(logits, scores, threshold).flatten().tolist() == [255, 0]


def test_a_pixel_at_the_threshold_is_kept():
    labels = pseudo_labels(torch.zeros(1, 2, 1, 1), torch.zeros(1, 1, 1, 1), 0.5)
    assert labels.item() == 0


def test_the_default_threshold_is_two_tenths():
    logits, scores, _ = random_case()
    assert torch.equal(pseudo_labels(logits, scores), pseudo_labels(logits, scores, 0.2))
    expected = pseudo_label_loss(logits, scores, 0.2)
    assert torch.equal(pseudo_label_loss(logits, scores), expected)


def test_no_gradient_reaches_scores_and_labels():
    logits, scores, _ = random_case()
    logits.requires_grad_()
    scores.requires_grad_()
    assert not pseudo_labels(logits, scores).requires_grad
    pseudo_label_loss(logits, scores).backward()
    assert scores.grad is None
    assert (logits.grad != 0).any()


# Precision


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_gives_the_float32_losses(dtype):
    logits, scores, valid = random_case()
    logits, scores = logits.to(dtype), scores.to(dtype)
    for loss in (
        lambda logits, scores: adversarial_loss(scores, valid),
        lambda logits, scores: discriminator_loss(scores, scores, valid, valid),
        lambda logits, scores: pseudo_label_loss(logits, scores, 0.2, valid),
    ):
        found = loss(logits, scores)
        assert found.dtype == torch.float32
        assert torch.equal(found, loss(logits.float(), scores.float()))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(loss(logits.float(), scores.float()), found)
