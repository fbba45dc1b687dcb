"""Structure matching against plain loops, closed forms and numbers worked by hand.

The reference follows the authors' code in TensorFlow: features times the mask, each vector times
`rsqrt(max(sum of squares, 1e-12))`, and means over all places; in Python's floats.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from lightning_seg.losses import (
    log_depth,
    one_hot_map,
    structure_hinge_loss,
    structure_matching_loss,
    unit_vectors,
)
from lightning_seg.networks import StructureAnalyzer

LOSSES = [structure_matching_loss, structure_hinge_loss]
SHAPES = [(2, 3, 3, 4), (2, 5, 2, 2)]  # two taps
HALF = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# The reference


def tf_normalized(vector):
    scale = 1 / math.sqrt(max(sum(value * value for value in vector), 1e-12))
    return [value * scale for value in vector]


def vectors_of(features):
    return features.double().movedim(1, -1).flatten(0, -2).tolist()


def reference(features, others, valid=None, reference_mean=False, margin=None, normalize=True):
    total = 0.0
    for tap, (a, b) in enumerate(zip(features, others, strict=True)):
        known = [True] * len(vectors_of(a)) if valid is None else valid[tap].flatten().tolist()
        values = []
        for one, other, ok in zip(vectors_of(a), vectors_of(b), known, strict=True):
            if not ok and not reference_mean:
                continue
            one, other = ([value * ok for value in vector] for vector in (one, other))
            if normalize:
                one, other = tf_normalized(one), tf_normalized(other)
            distance = sum((x - y) ** 2 for x, y in zip(one, other, strict=True))
            values.append(distance if margin is None else max(0.0, margin - distance))
        total += sum(values) / max(len(values), 1)
    return total


def two_maps(dtype=torch.float32, near=0.0):
    """Features of two maps, and which places count; a small `near` makes the maps alike."""
    a = [torch.randn(shape, dtype=torch.float64) for shape in SHAPES]
    b = [torch.randn_like(each) for each in a]
    if near:
        b = [one.lerp(other, 1 - near) for one, other in zip(b, a, strict=True)]
    valid = [torch.rand(shape[0], *shape[2:]) < 0.6 for shape in SHAPES]
    return [each.to(dtype) for each in a], [each.to(dtype) for each in b], valid


def test_the_reference_is_twice_the_cosine_distance():
    a, b, _ = two_maps(torch.float64)
    similar = [F.cosine_similarity(x, y).mean().item() for x, y in zip(a, b, strict=True)]
    assert reference(a, b) == pytest.approx(sum(2 - 2 * each for each in similar), rel=1e-12)


@pytest.mark.parametrize("reference_mean", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_matching_equals_the_reference(normalize, masked, reference_mean):
    a, b, valid = two_maps()
    options = {"reference_mean": reference_mean, "normalize": normalize}
    found = structure_matching_loss(a, b, valid if masked else None, **options)
    assert found.shape == ()
    assert found.dtype == torch.float32
    expected = reference(a, b, valid if masked else None, **options)
    assert found.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("reference_mean", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("margin", [0.3, 0.8, 4.0])
def test_hinge_equals_the_reference(margin, masked, reference_mean):
    a, b, valid = two_maps(near=0.3)
    valid = valid if masked else None
    expected = reference(a, b, valid, reference_mean, margin)
    assert expected > 0
    found = structure_hinge_loss(a, b, valid, reference_mean, margin)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    if margin == 0.8:
        assert torch.equal(found, structure_hinge_loss(a, b, valid, reference_mean))


@pytest.mark.parametrize("loss", LOSSES)
def test_the_authors_mean_is_that_of_masked_features(loss):
    a, b, valid = two_maps(near=0.3)
    masked = [[each * ok[:, None] for each, ok in zip(one, valid, strict=True)] for one in (a, b)]
    found = loss(a, b, valid, reference_mean=True)
    torch.testing.assert_close(found, loss(*masked))


# Worked by hand


def vectors(*values):
    """One place per vector: (1, K, 1, n)."""
    return torch.tensor(values).T[None, :, None, :]


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [
        ([3.0, 4.0], [6.0, 8.0], 0.0),
        ([3.0, 4.0], [-3.0, -4.0], 4.0),
        ([1.0, 0.0], [0.0, 7.0], 2.0),
        ([2.0, 0.0], [3.0, 3.0], 2 - math.sqrt(2)),
        ([0.0, 0.0], [0.0, 9.0], 1.0),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        # shorter than 1e-6: v 1e6, as TensorFlow does
        ([0.0, 0.0], [1e-7, 0.0], 0.01),
        ([5e-7, 0.0], [-5e-7, 0.0], 1.0),
    ],
)
def test_distances_of_two_vectors(one, other, distance):
    pair = [vectors(one)], [vectors(other)]
    assert structure_matching_loss(*pair).item() == pytest.approx(distance, abs=1e-6)
    hinge = max(0.0, 0.8 - distance)
    assert structure_hinge_loss(*pair).item() == pytest.approx(hinge, abs=1e-6)


def test_void_places_dilute_the_authors_mean_and_owe_them_the_margin():
    """Three places: distances 2 and 2 - sqrt 2 = 0.5858, and a void one."""
    pair = (
        [vectors([1.0, 0.0], [1.0, 0.0], [1.0, 0.0])],
        [vectors([0.0, 1.0], [1.0, 1.0], [-1.0, 0.0])],
    )
    valid = [torch.tensor([[[True, True, False]]])]
    near = 2 - math.sqrt(2)
    for mean, matching, hinge in (
        (False, (2 + near) / 2, (0 + 0.8 - near) / 2),
        (True, (2 + near) / 3, (0 + 0.8 - near + 0.8) / 3),
    ):
        found = structure_matching_loss(*pair, valid, mean)
        assert found.item() == pytest.approx(matching, rel=1e-6)
        assert structure_hinge_loss(*pair, valid, mean).item() == pytest.approx(hinge, rel=1e-5)


def test_without_normalization_it_is_the_squared_distance():
    found = structure_matching_loss([vectors([3.0, 4.0])], [vectors([0.0, 1.0])], normalize=False)
    assert found.item() == 18


# Invariants


@pytest.mark.parametrize("loss", LOSSES)
def test_the_two_maps_may_be_exchanged(loss):
    a, b, valid = two_maps(near=0.3)
    torch.testing.assert_close(loss(a, b, valid), loss(b, a, valid), rtol=0, atol=0)


@pytest.mark.parametrize("reference_mean", [False, True])
def test_bounds(reference_mean):
    for near in (0.0, 0.1, 0.5):
        a, b, valid = two_maps(near=near)
        assert 0 <= structure_matching_loss(a, b, valid, reference_mean) <= 8
        assert 0 <= structure_hinge_loss(a, b, valid, reference_mean) <= 1.6 + 1e-6
    opposite = [-each for each in a]
    assert structure_matching_loss(a, opposite).item() == pytest.approx(8, rel=1e-6)


@pytest.mark.parametrize("factor", [1e-3, 7.0, 1e4])
def test_the_length_of_features_does_not_count(factor):
    a, b, valid = two_maps()
    longer = [each * factor for each in a]
    for loss in LOSSES:
        torch.testing.assert_close(loss(longer, b, valid), loss(a, b, valid))


def gradients(loss, features, *rest):
    leaves = [each.clone().requires_grad_() for each in features]
    value = loss(leaves, *rest)
    return value.detach(), torch.autograd.grad(value, leaves)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF])
def test_equal_maps_cost_nothing_and_earn_the_margin_without_any_gradient(dtype):
    a, _, valid = two_maps(dtype)
    a[0][0, :, 0, 0] = 0  # a zero vector among them
    for mask in (None, valid):
        for loss, expected in zip(LOSSES, (0.0, 1.6), strict=True):
            value, found = gradients(loss, a, a, mask)
            assert value.item() == pytest.approx(expected, rel=1e-6)
            assert all(torch.equal(each, torch.zeros_like(each)) for each in found)


def test_the_margin_saturates():
    a, b, _ = two_maps()
    b = [-each for each in a]
    value, found = gradients(structure_hinge_loss, a, b)
    assert value == 0
    assert all((each == 0).all() for each in found)
    near = [each + 0.05 * torch.randn_like(each) for each in a]
    value, found = gradients(structure_hinge_loss, a, near)
    assert 0 < value < 1.6
    assert all((each != 0).any() for each in found)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_nothing_valid(dtype):
    a, b, valid = two_maps(dtype)
    nothing = [torch.zeros_like(each) for each in valid]
    expected = {
        (structure_matching_loss, False): 0.0,
        (structure_matching_loss, True): 0.0,
        (structure_hinge_loss, False): 0.0,
        (structure_hinge_loss, True): 1.6,
    }
    for (loss, reference_mean), wanted in expected.items():
        value, found = gradients(loss, a, b, nothing, reference_mean)
        assert value.item() == pytest.approx(wanted, rel=1e-6)
        assert all((each == 0).all() for each in found)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("reference_mean", [False, True])
def test_places_that_are_not_valid_do_not_matter(reference_mean, loss):
    a, b, valid = two_maps(near=0.3)
    other = [
        each.where(ok[:, None], torch.randn_like(each) * 100)
        for each, ok in zip(b, valid, strict=True)
    ]
    clean = gradients(lambda leaves: loss(a, leaves, valid, reference_mean), b)
    dirty = gradients(lambda leaves: loss(a, leaves, valid, reference_mean), other)
    assert torch.equal(clean[0], dirty[0])
    for gradient, same, ok in zip(clean[1], dirty[1], valid, strict=True):
        torch.testing.assert_close(gradient, same, rtol=0, atol=0)
        assert (gradient.movedim(1, -1)[~ok] == 0).all()


@pytest.mark.parametrize("normalize", [False, True])
def test_matching_passes_gradcheck(normalize):
    a, b, valid = two_maps(torch.float64)

    def loss(*leaves):
        return structure_matching_loss(leaves, b, valid, normalize=normalize)

    assert torch.autograd.gradcheck(loss, [each.requires_grad_() for each in a])


@pytest.mark.parametrize("margin", [0.8, 4.0])
def test_hinge_passes_gradcheck(margin):
    a, b, valid = two_maps(torch.float64, near=0.3)

    def loss(*leaves):
        return structure_hinge_loss(leaves[:2], leaves[2:], valid, True, margin)

    assert torch.autograd.gradcheck(loss, [each.requires_grad_() for each in (*a, *b)])


# Precision


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_features_give_the_float32_loss(dtype, loss):
    a, b, valid = two_maps(dtype, near=0.3)
    value, found = gradients(loss, a, b, valid)
    single = [each.float() for each in a], [each.float() for each in b]
    expected, wanted = gradients(loss, *single, valid)
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)
    for each, want in zip(found, wanted, strict=True):
        assert each.dtype == dtype
        torch.testing.assert_close(each, want.to(dtype))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", HALF)
def test_zero_vectors_give_no_nan(dtype, loss):
    for a, b in ((0, 0), (0, 1), (1, 0)):
        features = [torch.full((1, 4, 2, 2), float(a), dtype=dtype)]
        others = [torch.full((1, 4, 2, 2), float(b), dtype=dtype)]
        value, found = gradients(loss, features, others)
        distance = float(a != b)
        wanted = distance if loss is structure_matching_loss else max(0.0, 0.8 - distance)
        assert value.item() == pytest.approx(wanted, rel=1e-6)
        assert not found[0].isnan().any()


@pytest.mark.parametrize("loss", LOSSES)
def test_autocast_changes_nothing(loss):
    a, b, valid = two_maps(near=0.3)
    plain = gradients(loss, a, b, valid)
    with torch.autocast("cpu", torch.bfloat16):
        inside = gradients(loss, a, b, valid)
    assert inside[0].dtype == torch.float32
    torch.testing.assert_close(inside, plain, rtol=0, atol=0)


def test_long_half_precision_features_do_not_overflow():
    a = [torch.full((1, 8, 1, 1), 6e4, dtype=torch.float16)]
    b = [-a[0]]
    assert structure_matching_loss(a, b).item() == pytest.approx(4, rel=1e-6)


# Maps of classes, depth and normals


def test_labels_as_maps():
    target = torch.tensor([[[0, 2, 255], [1, 1, 0]]])
    found = one_hot_map(target, 3)
    assert found.dtype == torch.float32
    for y in range(2):
        for x in range(3):
            wanted = [float(target[0, y, x] == c) for c in range(3)]
            assert found[0, :, y, x].tolist() == wanted
    assert torch.equal(found.sum(1), (target != 255).float())
    assert torch.equal(one_hot_map(target.where(target != 255, -1), 3, -1), found)


def test_depths_as_maps():
    depth = torch.tensor([0.0, 0.005, 0.01, 1.0, math.e, 80.0], dtype=torch.float64)
    wanted = [math.log(max(value, 1e-2)) for value in depth.tolist()]
    assert log_depth(depth).tolist() == pytest.approx(wanted, rel=1e-12)
    half = log_depth(depth.half())
    assert half.dtype == torch.float32
    assert half.isfinite().all()


def test_normals_as_maps():
    normals = torch.randn(2, 3, 4, 5) * 3
    normals[0, :, 0, 0] = 0
    found = unit_vectors(normals)
    for vector, unit in zip(vectors_of(normals), vectors_of(found), strict=True):
        assert unit == pytest.approx(tf_normalized(vector), abs=1e-6)


def class_maps():
    target = torch.randint(4, (2, 17, 22))
    target[0, 3:6] = 255
    return one_hot_map(target, 4), torch.randn(2, 4, 17, 22), lambda raw: raw.softmax(1), target


def depth_maps():
    depth = torch.rand(2, 1, 17, 22) * 9
    return log_depth(depth), torch.rand(2, 1, 17, 22) * 9 + 0.1, log_depth, depth[:, 0].long()


def normal_maps():
    normals, raw = torch.randn(2, 2, 3, 17, 22)
    return unit_vectors(normals), raw, unit_vectors, normals[:, 0].long()


@pytest.mark.parametrize("maps", [class_maps, depth_maps, normal_maps])
def test_prediction_descends_towards_the_truth(maps):
    truth, raw, encode, target = maps()
    analyzer = StructureAnalyzer(truth.shape[1]).requires_grad_(False)
    features, valid = analyzer.features(truth), analyzer.valid(target != 255)

    def matching(raw):
        return structure_matching_loss(features, analyzer.features(encode(raw)), valid)

    assert structure_matching_loss(features, analyzer.features(truth), valid) == 0
    start = matching(raw)
    for _ in range(20):
        leaf = raw.clone().requires_grad_()
        before = matching(leaf)
        (gradient,) = torch.autograd.grad(before, leaf)
        raw = raw - 0.1 * gradient / gradient.abs().max()
    assert 0 < matching(raw) < start
    # and a single small step goes down too
    small = leaf.detach() - 1e-3 * gradient / gradient.abs().max()
    assert matching(small) < before


def wrong_labels():
    """A truth with void in it, wrong labels, and an analyzer with its valid places."""
    truth = torch.randint(4, (2, 40, 40))
    truth[0, 10:18, 12:30] = 255
    wrong = torch.randint(4, truth.shape)
    analyzer = StructureAnalyzer(4)
    return truth, wrong, analyzer, analyzer.valid(truth != 255)


@pytest.mark.parametrize("reference_mean", [False, True])
def test_predictions_under_void_do_not_matter(reference_mean):
    truth, _, analyzer, valid = wrong_labels()
    logits = torch.randn(2, 4, 40, 40)
    changed = logits.where((truth != 255)[:, None], torch.randn_like(logits) * 9)
    assert not torch.equal(changed, logits)
    features = analyzer.features(one_hot_map(truth, 4))
    for loss in LOSSES:
        one, other = (
            loss(features, analyzer.features(each.softmax(1)), valid, reference_mean)
            for each in (logits, changed)
        )
        assert torch.equal(one, other)


@pytest.mark.parametrize("factor", [0.01, 3.0, 250.0])
def test_the_scale_of_the_first_kernel_does_not_count_without_a_bias(factor):
    truth, wrong, analyzer, _ = wrong_labels()
    first = analyzer.encoder[0]
    torch.nn.init.zeros_(first.bias)

    def distance():
        pair = (analyzer.features(one_hot_map(each, 4))[:1] for each in (truth, wrong))
        return structure_matching_loss(*pair)

    before = distance()
    with torch.no_grad():
        first.weight *= factor
    torch.testing.assert_close(distance(), before)


def test_equal_labels_are_the_margin_without_a_gradient_to_the_analyzer():
    truth, _, analyzer, _ = wrong_labels()
    maps = one_hot_map(truth, 4)
    pair = analyzer.features(maps), analyzer.features(maps.clone())
    loss = structure_hinge_loss(*pair)
    loss.backward()
    assert loss.item() == pytest.approx(1.6, rel=1e-6)
    found = [each.grad for each in analyzer.parameters() if each.grad is not None]
    assert found
    assert all((each == 0).all() for each in found)
    assert structure_matching_loss(*pair) == 0


def test_the_analyzer_learns_to_tell_wrong_labels_from_right_ones():
    truth, _, analyzer, valid = wrong_labels()
    wrong = truth.where(torch.rand(truth.shape) < 0.9, 0)
    pair = one_hot_map(truth, 4), one_hot_map(wrong.where(wrong != 255, 0), 4)
    optimizer = torch.optim.SGD(analyzer.parameters(), lr=0.05)
    distances = []
    for _ in range(6):
        features, others = (analyzer.features(each) for each in pair)
        distances.append(structure_matching_loss(features, others, valid).item())
        optimizer.zero_grad()
        structure_hinge_loss(features, others, valid).backward()
        optimizer.step()
    assert distances[1] > distances[0]
    assert distances[-1] > distances[1]


# Arguments


@pytest.mark.parametrize("loss", LOSSES)
def test_features_that_do_not_fit(loss):
    a, b, valid = two_maps()
    for one, other in (([], []), (a, b[:1]), (a, b[::-1]), (a, [b[0], b[1][:, :4]])):
        with pytest.raises(ValueError, match="do not fit"):
            loss(one, other)
    with pytest.raises(ValueError, match="zip"):
        loss(a, b, valid[:1])


@pytest.mark.parametrize("strange", [(1, 3, 4), (2, 1, 4), (2, 3, 1), (3, 4), (2, 2, 3, 4)])
def test_valid_places_that_do_not_fit(strange):
    """(2, 3, 4) is right; nothing else may be spread over the places in silence."""
    a, b, _ = two_maps()
    for loss in LOSSES:
        for reference_mean in (False, True):
            with pytest.raises((ValueError, RuntimeError)):
                loss(a[:1], b[:1], [torch.ones(strange, dtype=torch.bool)], reference_mean)
