"""Loss max-pooling against brute force, its dual, closed forms and finite differences.

Nothing here is compared with the code's own output: the references are written from the definition

    L = max { sum_i w_i l_i : w >= 0, ||w||_p <= gamma, ||w||_inf <= tau }
    gamma = n^(-1/q), tau = gamma m^(-1/p), 1/p + 1/q = 1, m = max(1, ratio n).
"""

from __future__ import annotations

import math
from itertools import pairwise, product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linprog, minimize
from two_processes import in_two_processes

from lightning_seg.losses import LossMaxPooling, loss_max_pooling, loss_max_pooling_weights

INF = math.inf
NORMS = [1, 1.0001, 1.01, 1.1, 1.15, 1.3, 1.7, 2, 3, 10, 100, INF]
SIZES = [1, 2, 3, 5, 8, 13, 24, 31]
FAMILIES = {
    "exponential": lambda rng, n: rng.exponential(size=n),
    "lognormal": lambda rng, n: rng.lognormal(0, 2, n),
    "uniform": lambda rng, n: rng.random(n),
    "equal": lambda rng, n: np.full(n, 0.7),
    "zero": lambda rng, n: np.zeros(n),
    "one": lambda rng, n: np.where(np.arange(n) == n // 2, 1.3, 0.0),
    "ties": lambda rng, n: rng.integers(0, 4, n) / 2,
    "half_zero": lambda rng, n: rng.exponential(size=n) * (rng.random(n) < 0.5),
    "small": lambda rng, n: rng.exponential(size=n) * 1e-6,
    "decades": lambda rng, n: 10 ** rng.uniform(-5, 5, n),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# References, from the definition


def conjugate(p: float) -> float:
    return INF if p == 1 else 1.0 if p == INF else p / (p - 1)


def bounds(n: int, p: float, m: float) -> tuple[float, float]:
    gamma = n ** (-1 / conjugate(p))
    return gamma, gamma * m ** (-1 / p)


def norm(values: np.ndarray, p: float) -> float:
    top = np.abs(values).max(initial=0.0)
    if top == 0 or p == INF:
        return top
    return top * ((np.abs(values) / top) ** p).sum() ** (1 / p)


def cap_loss(losses: np.ndarray, p: float, m: float) -> float:
    """The loss `a` at which the cap is reached, by bisection on its logarithm."""
    positive = losses[losses > 0]
    if p == INF or len(positive) <= m:
        return 0.0
    if p == 1:
        return np.sort(losses)[::-1][math.ceil(m) - 1]
    q, logs = conjugate(p), np.log(positive)
    low, high = logs.min(), logs.max() + math.log(len(losses) / m) / q
    for _ in range(200):
        middle = (low + high) / 2
        if np.exp(q * np.minimum(0, logs - middle)).sum() > m:
            low = middle
        else:
            high = middle
    return math.exp(high)


def upper_bound(losses: np.ndarray, p: float, m: float, a: float) -> float:
    """Weak duality: for every a >= 0 no feasible weights reach more than this."""
    gamma, tau = bounds(len(losses), p, m)
    return gamma * norm(np.minimum(losses, a), conjugate(p)) + tau * np.maximum(losses - a, 0).sum()


def optimum(losses: np.ndarray, p: float, m: float) -> float:
    """The value of the optimum in closed form, like conditional value at risk."""
    n, a = len(losses), cap_loss(losses, p, m)
    if p == INF:
        return losses.mean()
    return (m / n) ** (1 / conjugate(p)) * (a + np.maximum(losses - a, 0).sum() / m)


def brute_force(losses: np.ndarray, p: float, m: float) -> float:
    """A general solver's answer: an LP, or SLSQP in w and in t = w^p, where one may give up."""
    n, top = len(losses), losses.max()
    gamma, tau = bounds(n, p, m)
    if p == 1:
        return -linprog(-losses, A_ub=np.ones((1, n)), b_ub=[gamma], bounds=(0, tau)).fun
    if top == 0:
        return 0.0
    scaled = losses / top
    forms = [
        (  # v = w / tau: ||v||_p^p <= (gamma / tau)^p = m
            lambda v: -(v * scaled).sum(),
            lambda v: -scaled,
            lambda v: m - (v**p).sum(),
            lambda v: -p * v ** (p - 1),
        ),
        (  # x = v^p: concave, linearly constrained
            lambda x: -(x ** (1 / p) * scaled).sum(),
            lambda x: -(x ** (1 / p - 1) * scaled) / p,
            lambda x: m - x.sum(),
            lambda x: -np.ones(n),
        ),
    ]
    found = [
        minimize(
            value,
            np.full(n, m / n),
            jac=slope,
            bounds=[(1e-14, 1)] * n,
            constraints={"type": "ineq", "fun": room, "jac": room_slope},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 1000},
        )
        for value, slope, room, room_slope in forms
    ]
    return tau * top * max(-each.fun for each in found)


def supports(n: int) -> list[float]:
    return sorted({1.0, min(1.37, n), max(1.0, 0.3 * n), math.sqrt(n), max(1.0, n - 0.5), float(n)})


def weigh(losses: np.ndarray, p: float, m: float) -> np.ndarray:
    found = loss_max_pooling_weights(torch.from_numpy(losses), p=p, ratio=m / losses.shape[-1])
    assert found.dtype == torch.float64
    return found.numpy()


def cases(p: float, sizes=SIZES, families=FAMILIES):
    for family in families:
        for n in sizes:
            for m in supports(n):
                yield FAMILIES[family](np.random.default_rng([n, int(8 * m)]), n), m, (family, n, m)


# The optimum


@pytest.mark.parametrize("p", NORMS)
def test_weights_are_feasible_and_their_duality_gap_is_nought(p):
    for losses, m, case in cases(p):
        weights, (gamma, tau) = weigh(losses, p, m), bounds(len(losses), p, m)
        value = (weights * losses).sum()
        assert (weights >= 0).all(), case
        assert norm(weights, p) <= gamma * (1 + 1e-9), case
        assert weights.max() <= tau * (1 + 1e-9), case
        assert weights.sum() <= 1 + 1e-9, case
        bound = upper_bound(losses, p, m, cap_loss(losses, p, m))
        assert abs(bound - value) <= 1e-9 * bound, case
        assert value == pytest.approx(optimum(losses, p, m), rel=1e-9), case
        # between the mean and both relaxations
        assert value >= losses.mean() * (1 - 1e-12), case
        assert value <= gamma * norm(losses, conjugate(p)) * (1 + 1e-9), case
        assert value <= tau * losses.sum() * (1 + 1e-9), case


@pytest.mark.parametrize("p", [1, 1.1, 1.3, 1.7, 2, 3, 10])
@pytest.mark.parametrize("family", ["exponential", "uniform", "ties", "half_zero", "one"])
def test_a_general_solver_finds_nothing_better(p, family):
    for losses, m, case in cases(p, sizes=[1, 2, 3, 5, 8], families=[family]):
        value, expected = (weigh(losses, p, m) * losses).sum(), brute_force(losses, p, m)
        assert value == pytest.approx(expected, rel=2e-6, abs=1e-12), case
        assert value >= expected * (1 - 1e-8), case


@pytest.mark.parametrize("p", [1, 1.0001, 1.1, 1.15, 1.7, 3, INF])
@pytest.mark.parametrize("family", ["exponential", "half_zero", "decades", "ties"])
def test_a_hundred_thousand_losses(p, family):
    n = 103041
    losses = FAMILIES[family](np.random.default_rng(3), n)
    for ratio in (0.001, 0.3, 0.999):
        m = ratio * n
        weights, (gamma, tau) = weigh(losses, p, m), bounds(n, p, m)
        value, bound = (weights * losses).sum(), upper_bound(losses, p, m, cap_loss(losses, p, m))
        assert abs(bound - value) <= 1e-9 * bound
        assert norm(weights, p) <= gamma * (1 + 1e-9)
        assert weights.max() <= tau * (1 + 1e-9)


@pytest.mark.parametrize("m", [1, 3, 7, 20])
def test_p_1_is_the_mean_of_the_largest(m):
    losses = torch.rand(20, dtype=torch.float64)
    weights = loss_max_pooling_weights(losses, p=1, ratio=m / 20)
    torch.testing.assert_close((weights * losses).sum(), losses.topk(m).values.mean())
    assert (weights > 1e-12).sum() == m


def test_p_1_gives_the_next_loss_the_rest_of_a_fractional_support():
    weights = weigh(np.array([5.0, 1.0, 4.0, 3.0]), 1, 2.5)
    np.testing.assert_allclose(weights, [0.4, 0.0, 0.4, 0.2], atol=1e-12)


@pytest.mark.parametrize("p", [1, 1.0001, 1.1, 1.7, 3, 100, INF])
def test_equal_losses_get_equal_weights(p):
    weights = weigh(np.array([2.0, 1.0, 2.0, 1.0, 2.0, 0.0]), p, 2.0)
    np.testing.assert_allclose(weights[[2, 4]], weights[0], rtol=1e-12)
    np.testing.assert_allclose(weights[3], weights[1], rtol=1e-12)
    for n in (1, 3, 7, 1000):
        for m in supports(n):
            np.testing.assert_allclose(weigh(np.full(n, 0.3), p, m), 1 / n, rtol=1e-9)


def test_p_1_shares_what_is_left_among_ties():
    weights = weigh(np.array([2.0, 1.0, 1.0, 1.0, 0.0]), 1, 3.0)
    np.testing.assert_allclose(weights, [1 / 3, 2 / 9, 2 / 9, 2 / 9, 0], atol=1e-12)


@pytest.mark.parametrize("p", [1.01, 1.1, 1.15, 1.3, 1.7, 2, 3, 10, 100])
def test_support_1_is_the_power_mean(p):
    q = conjugate(p)
    for family in ("exponential", "uniform", "ties"):
        losses = FAMILIES[family](np.random.default_rng(1), 30)
        value = (weigh(losses, p, 1.0) * losses).sum()
        assert value == pytest.approx(norm(losses, q) / 30 ** (1 / q), rel=1e-9)


@pytest.mark.parametrize(("p", "ratio"), [(INF, 0.3), (1, 1), (1.01, 1), (1.7, 1), (3, 1)])
def test_the_plain_mean(p, ratio):
    for family, draw in FAMILIES.items():
        losses = draw(np.random.default_rng(1), 30)
        value = (weigh(losses, p, ratio * 30) * losses).sum()
        assert value == pytest.approx(losses.mean(), rel=1e-9), family


def test_worked_by_hand():
    # p = q = 2, n = 4, m = 2: a^2 = (sum of the unsaturated l^2) / (m - K), tau = 1 / sqrt(8).
    # K = 1: a^2 = (9 + 1 + 1) / 1 = 11 <= 16, and 9 < 11: the cap holds the 4 only
    weights = weigh(np.array([4.0, 3.0, 1.0, 1.0]), 2, 2.0)
    root, tau = math.sqrt(11), math.sqrt(1 / 8)
    np.testing.assert_allclose(weights, [tau, 3 * tau / root, tau / root, tau / root], rtol=1e-12)


@pytest.mark.parametrize("p", [1.0001, 1.1, 1.7, 3, 100])
def test_few_positive_losses_get_the_cap(p):
    losses = np.zeros(10)
    losses[[2, 7]] = 0.5, 3.0
    _, tau = bounds(10, p, 4.0)
    weights = weigh(losses, p, 4.0)
    np.testing.assert_allclose(weights[[2, 7]], tau, rtol=1e-12)
    assert np.isfinite(weights).all()


@pytest.mark.parametrize("zeros", [0.05, 0.4])
def test_zeros_leave_the_largest_losses_their_weight(zeros):
    """The code in use (mpl.pytorch) gives as many of the largest losses weight 0."""
    rng = np.random.default_rng(0)
    losses = rng.exponential(size=20000)
    losses[rng.random(20000) < zeros] = 0
    weights = weigh(losses, 1.7, 6000.0)
    order = np.argsort(losses)
    assert weights[order[-1]] == weights.max() > 0
    assert (np.diff(weights[order]) >= -1e-18).all()
    assert (weights * losses).sum() == pytest.approx(optimum(losses, 1.7, 6000.0), rel=1e-9)
    assert (weights * losses).sum() > losses.mean()


# Invariances and monotony


@pytest.mark.parametrize("p", [1, 1.01, 1.15, 1.7, 3, INF])
def test_scale_order_void_and_rows_do_not_matter(p):
    rng = np.random.default_rng(5)
    losses = rng.lognormal(0, 1, 40)
    weights = weigh(losses, p, 11.3)
    for scale in (1e-6, 3.0, 1e6):
        np.testing.assert_allclose(weigh(losses * scale, p, 11.3), weights, rtol=1e-8, atol=1e-15)
    order = rng.permutation(40)
    np.testing.assert_allclose(weigh(losses[order], p, 11.3), weights[order], rtol=1e-9, atol=1e-15)

    valid = torch.zeros(60, dtype=torch.bool)
    valid[torch.randperm(60)[:40]] = True
    among = torch.full((60,), 1e9, dtype=torch.float64)
    among[valid] = torch.from_numpy(losses)
    found = loss_max_pooling_weights(among, valid, p, 11.3 / 40)
    assert (found[~valid] == 0).all()
    np.testing.assert_allclose(found[valid].numpy(), weights, rtol=1e-9, atol=1e-15)

    rows = rng.lognormal(0, 2, (2, 3, 17)) * (rng.random((2, 3, 17)) < 0.7)
    together = weigh(rows, p, 5.1)
    for i, j in np.ndindex(2, 3):
        np.testing.assert_allclose(together[i, j], weigh(rows[i, j], p, 5.1), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("p", [1, 1.0001, 1.1, 1.7, 3, INF])
def test_void_rows_and_garbage_under_void(p):
    losses = torch.rand(3, 8, dtype=torch.float64)
    valid = torch.ones(3, 8, dtype=torch.bool)
    valid[1] = False
    valid[2, ::2] = False
    expected = loss_max_pooling_weights(losses, valid, p)
    dirty = losses.clone()
    dirty[~valid] = torch.tensor([math.nan, INF, -1.0, -INF] * 3, dtype=torch.float64)
    found = loss_max_pooling_weights(dirty, valid, p)
    assert torch.equal(found, expected)
    assert (found[1] == 0).all()


@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.77, 1])
def test_value_falls_with_p_and_with_ratio(ratio):
    losses = np.random.default_rng(2).lognormal(0, 1.5, 31)

    def value(p, ratio):
        return (weigh(losses, p, max(1.0, ratio * 31)) * losses).sum()

    by_norm = [value(p, ratio) for p in NORMS]
    assert all(b <= a * (1 + 1e-10) for a, b in pairwise(by_norm))
    for p in NORMS:
        assert value(p, min(1, ratio + 0.05)) <= value(p, ratio) * (1 + 1e-10)


@pytest.mark.parametrize("p", [1, 1.0001, 1.1, 1.7, 3, INF])
def test_value_is_convex_and_monotone_in_the_losses(p):
    rng = np.random.default_rng(4)

    def value(losses):
        return (weigh(losses, p, 4.4) * losses).sum()

    for _ in range(20):
        first, second = rng.lognormal(0, 2, (2, 15))
        assert value((first + second) / 2) <= (value(first) + value(second)) / 2 * (1 + 1e-10)
        assert value(np.maximum(first, second)) >= value(first) * (1 - 1e-10)


@pytest.mark.parametrize("m", [1.0, 6.5, 10.0])
def test_value_is_continuous_in_p_at_its_ends_and_where_the_algorithm_may_change(m):
    losses = np.random.default_rng(6).exponential(size=30)

    def value(p):
        return (weigh(losses, p, m) * losses).sum()

    assert value(1.00001) == pytest.approx(value(1), rel=1e-4)
    assert value(1e6) == pytest.approx(value(INF), rel=1e-4)
    for p in (1.1, 1.1428571, 1.15, 1.2857142, 1.3, 2):
        assert value(p + 1e-7) == pytest.approx(value(p - 1e-7), rel=1e-5)


# Precision


@pytest.mark.parametrize("p", NORMS)
def test_float32_equals_float64(p):
    worst = 0.0
    for losses, m, _ in cases(p, sizes=[5, 24, 20000]):
        wide = torch.from_numpy(losses).float().double()
        ratio = m / len(losses)
        single = loss_max_pooling_weights(wide.float(), p=p, ratio=ratio)
        assert single.dtype == torch.float32
        value = (single.double() * wide).sum()
        expected = optimum(wide.numpy(), p, m)
        worst = max(worst, abs(value.item() - expected) / max(expected, 1e-30))
    assert worst < 1e-5


def test_extreme_losses_neither_overflow_nor_vanish():
    for scale in (1e-30, 1e-12, 1e12, 1e30):
        for p in NORMS:
            losses = torch.linspace(0, 1, 50) * scale
            weights = loss_max_pooling_weights(losses, p=p)
            value = (weights.double() * losses.double()).sum().item()
            assert value == pytest.approx(optimum(losses.double().numpy(), p, 15.0), rel=1e-5), p


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("p", [1, 1.1, 1.7, INF])
def test_half_precision_logits_give_the_float32_loss(dtype, p):
    logits, target = make_batch(dtype)
    leaf, wide = logits.clone().requires_grad_(), logits.float().requires_grad_()
    loss, expected = (loss_max_pooling(each, target, p=p) for each in (leaf, wide))
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
    (gradient,) = torch.autograd.grad(loss, leaf)
    (expected_gradient,) = torch.autograd.grad(expected, wide)
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient, expected_gradient.to(dtype))


def test_half_precision_losses_are_weighed_in_float32():
    losses = torch.rand(2, 30)
    for dtype in (torch.bfloat16, torch.float16):
        found = loss_max_pooling_weights(losses.to(dtype))
        assert found.dtype == torch.float32
        assert torch.equal(found, loss_max_pooling_weights(losses.to(dtype).float()))


def test_autocast_changes_nothing():
    logits, target = make_batch()
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_max_pooling(logits, target)
    assert torch.equal(loss, loss_max_pooling(logits, target))


# From logits

CLASSES = 4
WEIGHTS = [0.5, 1.0, 2.0, 0.0]


def make_batch(dtype=torch.float32, void=0.3, size=(3, 5, 7)):
    logits = torch.randn(size[0], CLASSES, *size[1:], dtype=dtype) * 2
    target = torch.randint(CLASSES, size)
    target[torch.rand(size) < void] = 255
    return logits, target


def expected_loss(logits, target, p=1.7, ratio=0.3, ignore_index=255, per_image=True, **options):
    """Plain cross-entropies, pooled by the closed form; the mean over images with a label."""
    losses = F.cross_entropy(
        logits.double(), target, ignore_index=ignore_index, reduction="none", **options
    ).numpy()
    groups = zip(losses, target, strict=True) if per_image else [(losses, target)]
    kept = [loss[(each != ignore_index).numpy()] for loss, each in groups]
    values = [optimum(loss, p, max(1.0, ratio * len(loss))) for loss in kept if len(loss)]
    return float(np.mean(values)) if values else 0.0


@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("p", [1, 1.1, 1.7, 3, INF])
@pytest.mark.parametrize("ratio", [0.001, 0.3, 1])
def test_images_of_different_void_shares(p, ratio, per_image):
    logits, target = make_batch(torch.float64)
    target[1, :, 1:] = 255
    target[2] = torch.randint(CLASSES, (5, 7))
    loss = loss_max_pooling(logits, target, p, ratio, per_image=per_image)
    assert loss.item() == pytest.approx(
        expected_loss(logits, target, p, ratio, per_image=per_image), rel=1e-9
    )


@pytest.mark.parametrize("per_image", [True, False])
def test_ratio_1_is_cross_entropy(per_image):
    logits, target = make_batch(torch.float64, void=0.0)
    loss = loss_max_pooling(logits, target, ratio=1, per_image=per_image)
    torch.testing.assert_close(loss, F.cross_entropy(logits, target))


def test_an_image_without_labels_does_not_count():
    logits, target = make_batch(torch.float64)
    target[1] = 255
    both = [0, 2]
    torch.testing.assert_close(
        loss_max_pooling(logits, target), loss_max_pooling(logits[both], target[both])
    )
    assert loss_max_pooling(logits, target).item() == pytest.approx(expected_loss(logits, target))


@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("p", [1, 1.1, 1.7, INF])
def test_a_batch_without_labels_gives_zero_with_zero_gradient(p, per_image):
    logits, target = make_batch(void=1.1)
    logits[0, 0, 0, 0] = math.nan
    leaf = logits.requires_grad_()
    loss = loss_max_pooling(leaf, target, p, per_image=per_image, label_smoothing=0.1)
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert loss.item() == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("garbage", [math.nan, INF, -INF])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("p", [1, 1.1, 1.7, INF])
def test_garbage_under_void_is_harmless(p, per_image, smoothing, garbage):
    logits, target = make_batch()
    target[0] = 255
    void = (target == 255)[:, None].expand_as(logits)
    values, gradients = [], []
    for each in (logits, logits.masked_fill(void, garbage)):
        leaf = each.clone().requires_grad_()
        values.append(
            loss_max_pooling(leaf, target, p, per_image=per_image, label_smoothing=smoothing)
        )
        gradients += torch.autograd.grad(values[-1], leaf)
    assert torch.equal(values[0], values[1])
    assert torch.equal(gradients[0], gradients[1])
    assert (gradients[0][void] == 0).all()
    assert (gradients[0] != 0).any()


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("p", [1, 1.7, INF])
def test_class_weights_and_smoothing_come_before_pooling(p, smoothing, weights):
    logits, target = make_batch(torch.float64)
    weight = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    loss = loss_max_pooling(logits, target, p, class_weights=weight, label_smoothing=smoothing)
    expected = expected_loss(logits, target, p, weight=weight, label_smoothing=smoothing)
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_another_ignore_index():
    logits, target = make_batch(torch.float64)
    other = target.where(target != 255, -100)
    assert torch.equal(loss_max_pooling(logits, other, ignore_index=-100),
                       loss_max_pooling(logits, target))  # fmt: skip
    low = target.where(target != 255, 0)
    loss = loss_max_pooling(logits, low, ignore_index=0)
    assert loss.item() == pytest.approx(expected_loss(logits, low, ignore_index=0))


# The gradient


@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("p", [1, 1.01, 1.1, 1.15, 1.3, 1.7, 2, 3, 10, INF])
def test_gradient_of_the_logits_passes_gradcheck(p, per_image):
    logits, target = make_batch(torch.float64, size=(2, 3, 3))

    def loss(values):
        return loss_max_pooling(values, target, p, 0.47, per_image=per_image)

    assert torch.autograd.gradcheck(loss, logits.requires_grad_())


def test_weighted_and_smoothed_gradient_passes_gradcheck():
    logits, target = make_batch(torch.float64, size=(2, 3, 3))
    weight = torch.tensor([0.5, 1.0, 2.0, 0.7], dtype=torch.float64)

    def loss(values):
        return loss_max_pooling(
            values, target, ratio=0.47, class_weights=weight, label_smoothing=0.1
        )

    assert torch.autograd.gradcheck(loss, logits.requires_grad_())


@pytest.mark.parametrize("p", [1, 1.01, 1.1, 1.15, 1.7, 3, 100, INF])
def test_weights_are_the_central_differences_of_the_optimum(p):
    losses = np.random.default_rng(8).exponential(size=24) + 0.01
    weights = weigh(losses, p, 7.3)
    step = 1e-6
    for i in range(24):
        aside = np.eye(24)[i] * step
        slope = (optimum(losses + aside, p, 7.3) - optimum(losses - aside, p, 7.3)) / (2 * step)
        assert slope == pytest.approx(weights[i], abs=3e-6 * weights.max())


def test_weights_carry_no_gradient():
    losses = torch.rand(9, requires_grad=True)
    assert not loss_max_pooling_weights(losses).requires_grad


def test_confident_pixels_have_finite_gradients():
    """Cross-entropies that are exactly 0, all of them or all but one."""
    target = torch.randint(CLASSES, (1, 5, 5))
    logits = F.one_hot(target, CLASSES).movedim(-1, 1).float() * 200
    for p in NORMS:
        for wrong in (False, True):
            leaf = logits.clone()
            if wrong:
                leaf[0, :, 2, 2] = leaf[0, :, 2, 2].roll(1)
            leaf.requires_grad_()
            loss = loss_max_pooling(leaf, target, p)
            (gradient,) = torch.autograd.grad(loss, leaf)
            assert gradient.isfinite().all()
            assert loss.item() == pytest.approx(
                expected_loss(leaf.detach(), target, p) if wrong else 0, rel=1e-5
            )


# Losses that are no losses


@pytest.mark.parametrize("bad", [math.nan, INF, -INF, -0.5])
@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_bad_loss_is_never_hidden(p, bad, dtype):
    losses = torch.rand(3, 20, dtype=dtype)
    clean = loss_max_pooling_weights(losses, p=p)
    losses[1, 4] = bad
    for ratio in (0.3, 1.0):
        weights = loss_max_pooling_weights(losses, p=p, ratio=ratio)
        assert weights[1].isnan().all()
        assert not weights[[0, 2]].isnan().any()
    assert torch.equal(loss_max_pooling_weights(losses, p=p)[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("p", [1, 1.1, 1.7, INF])
def test_a_bad_logit_at_a_labelled_pixel_gives_nan(p, per_image):
    logits, target = make_batch()
    target[0, 0, 0] = 2
    for bad in (math.nan, -INF, INF):
        dirty = logits.clone()
        dirty[0, 2, 0, 0] = bad
        assert loss_max_pooling(dirty, target, p, per_image=per_image).isnan()
    weight = torch.tensor([1.0, 1.0, -1.0, 1.0])
    assert loss_max_pooling(logits, target, p, per_image=per_image, class_weights=weight).isnan()


# Arguments


@pytest.mark.parametrize(
    "options",
    [{"p": 0.99}, {"p": -1}, {"p": math.nan}, {"p": -INF}]
    + [{"ratio": value} for value in (0, 1.1, -0.3, math.nan, INF)],
)
def test_p_and_ratio_out_of_range(options):
    logits, target = make_batch()
    (name,) = options
    with pytest.raises(ValueError, match=rf"{name} of .* must lie in"):
        loss_max_pooling(logits, target, **options)
    with pytest.raises(ValueError, match=rf"{name} of .* must lie in"):
        loss_max_pooling_weights(torch.rand(4), **options)
    with pytest.raises(ValueError, match=rf"{name} of .* must lie in"):
        LossMaxPooling(**options)


@pytest.mark.parametrize("size", [(3, 4, 8), (3, 4, 7), (2, 5, 7), (3, 35), (3, 1, 5, 7)])
def test_shapes_that_do_not_fit(size):
    logits, _ = make_batch()
    target = torch.zeros(size, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"logits \(3, 4, 5, 7\) and target .* do not fit"):
        loss_max_pooling(logits, target)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("strange", [CLASSES, 254, -1])
def test_target_that_is_no_class_raises(strange, weights):
    logits, target = make_batch()
    target[0, 0, 0] = strange
    with pytest.raises(IndexError, match=f"{strange}"):
        LossMaxPooling(class_weights=weights)(logits, target)


# The module


def test_module_equals_function():
    logits, target = make_batch()
    target[target == 255] = 3
    module = LossMaxPooling(1.3, 0.2, 3, False, WEIGHTS, 0.1)
    expected = loss_max_pooling(logits, target, 1.3, 0.2, 3, False, torch.tensor(WEIGHTS), 0.1)
    assert torch.equal(module(logits, target), expected)
    assert module.state_dict() == {}
    assert torch.equal(LossMaxPooling()(logits, target), loss_max_pooling(logits, target))


@pytest.mark.parametrize("per_image", [True, False])
def test_pooled_tells_what_the_loss_is_made_of(per_image):
    logits, target = make_batch()
    target[1] = 255
    found = LossMaxPooling(per_image=per_image).pooled(logits, target)
    expected = F.cross_entropy(logits, target, ignore_index=255, reduction="none")
    torch.testing.assert_close(found.losses, expected)
    assert found.weights.shape == target.shape
    assert (found.weights[target == 255] == 0).all()
    assert found[0].item() == pytest.approx(
        expected_loss(logits, target, per_image=per_image), rel=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_module_works_in_a_network_of_another_dtype(dtype):
    logits, target = make_batch(dtype)
    loss = LossMaxPooling(class_weights=[1, 2, 3, 4]).to(dtype)(logits, target)
    expected = expected_loss(
        logits, target, weight=torch.tensor([1.0, 2, 3, 4], dtype=torch.float64)
    )
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("options", [
    {"p": 1}, {"p": 1.05}, {"p": 1.7}, {"p": INF}, {"p": 1.7, "per_image": False},
])  # fmt: skip
def test_compiled_equals_eager(options):
    logits, target = make_batch()
    target[1] = 255
    torch._dynamo.reset()
    compiled = torch.compile(loss_max_pooling, fullgraph=True, backend="aot_eager")
    found = []
    for function in (loss_max_pooling, compiled):
        leaf = logits.clone().requires_grad_()
        value = function(leaf, target, **options)
        found.append((value.detach(), *torch.autograd.grad(value, leaf)))
    torch.testing.assert_close(found[1], found[0])


# Processes


def test_two_processes_equal_one_with_all_images(tmp_path):
    cases = []
    pools = ((1, 0.3), (1.05, 0.3), (1.7, 0.3), (1.7, 1.0), (INF, 0.3))
    for (p, ratio), per_image in product(pools, (False, True)):
        for void in ((0.0, 0.0), (0.2, 0.7), (1.1, 0.2), (0.2, 1.1), (1.1, 1.1)):
            parts = [make_batch(torch.float64, each, (2, 3, 4)) for each in void]
            logits, target = (torch.stack(each) for each in zip(*parts, strict=True))
            logits[0] *= 3
            target[0, 0] = 255  # without per_image, an image without labels changes nothing
            cases.append((logits, target, p, ratio, 255, per_image))
    loss = "loss_max_pooling(leaf, labels, *rest, across_ranks=True)"
    found = in_two_processes(
        cases, loss, "LossMaxPooling(per_image=False, across_ranks=True)", tmp_path
    )
    for (logits, target, p, ratio, _, per_image), *ranks in zip(cases, *found, strict=True):
        leaf = logits.clone().requires_grad_()
        alone = loss_max_pooling(leaf.flatten(0, 1), target.flatten(0, 1), p, ratio,
                                 per_image=per_image)  # fmt: skip
        (gradient,) = torch.autograd.grad(alone, leaf)
        expected = expected_loss(
            logits.flatten(0, 1), target.flatten(0, 1), p, ratio, per_image=per_image
        )
        assert alone.item() == pytest.approx(expected, rel=1e-9)
        for rank, (value, own) in enumerate(ranks):
            assert value.item() == pytest.approx(expected, rel=1e-9)
            # DDP averages: two gradients of their own images, divided by two
            torch.testing.assert_close(own / 2, gradient[rank], rtol=1e-9, atol=1e-12)
