"""The probability gradient loss against a literal dense form, and numbers worked by hand.

The reference convolves every class map of the labels and of the probabilities, as the authors' code
does, with kernels typed from their tables, in float64, where `!= 0` can be told from rounding.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from two_processes import in_two_processes

from lightning_seg.losses import (
    ProbabilityGradientLoss,
    boundary_pixels,
    probability_gradient_loss,
)

SIZES = [3, 5, 7]
VOID = ["strict", "reference", "nearest"]
FORMS = ["sparse", "dense"]
# the columns right of the middle, rows from -reach to +reach; the left ones are their negatives
TABLES = {
    3: [[1 / 2], [1], [1 / 2]],
    5: [[4 / 20, 5 / 20], [10 / 20, 8 / 20], [20 / 20, 10 / 20], [10 / 20, 8 / 20],
        [4 / 20, 5 / 20]],
    7: [[1 / 10, 2 / 13, 3 / 18], [1 / 5, 2 / 8, 3 / 13], [1 / 2, 2 / 5, 3 / 10], [1, 1 / 2, 1 / 3],
        [1 / 2, 2 / 5, 3 / 10], [1 / 5, 2 / 8, 3 / 13], [1 / 10, 2 / 13, 3 / 18]],
}  # fmt: skip


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# The reference


def kernel_of(size):
    right = torch.tensor(TABLES[size], dtype=torch.float64)
    return torch.cat([-right.flip(1), torch.zeros(size, 1, dtype=torch.float64), right], 1)


def gradients(maps, size):
    """(B, C, H, W) float64 -> (B, C, 2, H, W): cross-correlation with replicated borders."""
    kernel, reach = kernel_of(size), size // 2
    batch, classes, height, width = maps.shape
    # replication by index: F.pad refuses nothing, but this also serves images below the reach
    rows = torch.arange(-reach, height + reach).clamp(0, height - 1)
    columns = torch.arange(-reach, width + reach).clamp(0, width - 1)
    padded = maps[:, :, rows][..., columns].flatten(0, 1)[:, None]
    found = F.conv2d(padded, torch.stack([kernel, kernel.T])[:, None])
    return found.view(batch, classes, 2, height, width)


def nearest_labels(target, ignore_index):
    """Every void pixel gets the label at the least Euclidean distance, the smallest of several."""
    filled = target.clone()
    for image, out in zip(target, filled, strict=True):
        known = [(y, x, image[y, x].item()) for y, x in (image != ignore_index).nonzero().tolist()]
        for y, x in (image == ignore_index).nonzero().tolist():
            if known:
                out[y, x] = min(((v - y) ** 2 + (u - x) ** 2, label) for v, u, label in known)[1]
    return filled


def truth(target, classes, size=3, void="strict", ignore_index=255):
    """The gradient of the labels and the entries that count, both (B, C, 2, H, W)."""
    valid = target != ignore_index
    labels = nearest_labels(target, ignore_index) if void == "nearest" else target
    known = labels != ignore_index
    one_hot = F.one_hot(labels.where(known, 0), classes).movedim(-1, 1) * known[:, None]
    gradient = gradients(one_hot.double(), size)
    centre = valid
    if void == "strict":
        reach = size // 2
        centre = valid.clone()
        for b, y, x in (~valid).nonzero().tolist():
            centre[b, max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1] = False
    return gradient, (gradient.abs() > 1e-9) & centre[:, None, None]


def reference(logits, target, kernel_size=3, void="strict", ignore_index=255, normalize=False, **_):
    wanted, counts = truth(target, logits.shape[1], kernel_size, void, ignore_index)
    found = gradients(logits.double().softmax(1), kernel_size)
    squares = (found - wanted)[counts].square()
    scale = kernel_of(kernel_size).clamp(min=0).sum() if normalize else 1.0
    return squares.sum() / max(len(squares), 1) / scale**2


def flat_reference(
    logits, target, kernel_size=3, void="strict", ignore_index=255, normalize=False, **_
):
    """The mean, over the pixels that may have entries and have none, of all squared gradients."""
    classes = logits.shape[1]
    _, entries = truth(target, classes, kernel_size, void, ignore_index)
    allowed = target != ignore_index
    if void == "strict":
        reach = kernel_size // 2
        for b, y, x in (target == ignore_index).nonzero().tolist():
            allowed[b, max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1] = False
    flat = allowed & ~entries.any(2).any(1)
    squares = gradients(logits.double().softmax(1), kernel_size).square().sum((1, 2))[flat]
    scale = kernel_of(kernel_size).clamp(min=0).sum() if normalize else 1.0
    return squares.sum() / max(len(squares), 1) / scale**2


def whole_reference(logits, target, false_edges=0.0, **options):
    edges = reference(logits, target, **options)
    return edges + false_edges * flat_reference(logits, target, **options)


def value_and_gradient(loss, logits, target, **options):
    leaf = logits.detach().clone().requires_grad_()
    value = loss(leaf, target, **options)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


def scene(size=(2, 13, 17), classes=5, void=0.0, dtype=torch.float64):
    """Rectangles of classes, some one pixel wide, and void strips along some of them."""
    batch, height, width = size
    target = torch.randint(classes, (batch, 1, 1)).repeat(1, height, width)
    for image in target:
        for _ in range(5):
            y, x = torch.randint(height, ()), torch.randint(width, ())
            h, w = torch.randint(1, 7, ()), torch.randint(1, 7, ())
            image[y : y + h, x : x + w] = torch.randint(classes, ())
        if void:
            y, x = torch.randint(height, ()), torch.randint(width, ())
            image[y : y + 2, x : x + 5] = 255
            image[torch.rand(height, width) < void] = 255
    return torch.randn(batch, classes, height, width, dtype=dtype) * 2, target


def test_the_tables_have_the_closed_form():
    for size, reach in ((3, 1), (5, 2), (7, 3)):
        for y in range(-reach, reach + 1):
            for x in range(-reach, reach + 1):
                expected = x / (x * x + y * y) if x or y else 0.0
                assert kernel_of(size)[y + reach, x + reach].item() == pytest.approx(expected)
    sums = [kernel_of(size).clamp(min=0).sum().item() for size in SIZES]
    assert sums == pytest.approx([2, 4.2, 6.4359], abs=1e-4)


def test_the_reference_is_the_literal_sum():
    """Pixel by pixel and tap by tap, on one small image."""
    logits = torch.randn(1, 3, 4, 5, dtype=torch.float64)
    target = torch.randint(3, (1, 4, 5))
    probabilities = logits.softmax(1)[0]
    for size in SIZES:
        kernel, reach, squares = kernel_of(size), size // 2, []
        for c in range(3):
            for y in range(4):
                for x in range(5):
                    both = torch.zeros(2, 2, dtype=torch.float64)
                    for dy in range(-reach, reach + 1):
                        for dx in range(-reach, reach + 1):
                            v, u = min(max(y + dy, 0), 3), min(max(x + dx, 0), 4)
                            weight = torch.stack(
                                [kernel[dy + reach, dx + reach], kernel[dx + reach, dy + reach]]
                            )
                            both[0] += weight * (target[0, v, u] == c)
                            both[1] += weight * probabilities[c, v, u]
                    kept = both[0].abs() > 1e-9
                    squares += (both[1] - both[0])[kept].square().tolist()
        expected = sum(squares) / len(squares)
        assert reference(logits, target, size).item() == pytest.approx(expected, rel=1e-12)


# Value and gradient


@pytest.mark.parametrize("form", [*FORMS, "auto"])
@pytest.mark.parametrize("void", VOID)
@pytest.mark.parametrize("size", SIZES)
def test_value_and_gradient_equal_the_reference(size, void, form):
    for share in (0.0, 0.02, 0.3):
        logits, target = scene(void=share)
        options = {"kernel_size": size, "void": void}
        expected = value_and_gradient(reference, logits, target, **options)
        found = value_and_gradient(probability_gradient_loss, logits, target, **options, form=form)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)
        single = value_and_gradient(
            probability_gradient_loss, logits.float(), target, **options, form=form
        )
        assert single[0].dtype == single[1].dtype == torch.float32
        assert single[0].item() == pytest.approx(expected[0].item(), rel=1e-5)
        worst = (single[1].double() - expected[1]).abs().max()
        assert worst <= 1e-5 * expected[1].abs().max()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("void", VOID)
def test_random_labels_of_single_pixels(void, form):
    for size in SIZES:
        logits = torch.randn(2, 4, 9, 8, dtype=torch.float64)
        target = torch.randint(4, (2, 9, 8))
        target[torch.rand(2, 9, 8) < 0.1] = 255
        options = {"kernel_size": size, "void": void}
        expected = value_and_gradient(reference, logits, target, **options)
        found = value_and_gradient(probability_gradient_loss, logits, target, **options, form=form)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("classes", [1, 2, 150])
def test_any_number_of_classes(classes, form):
    for void in VOID:
        logits, target = scene((2, 9, 8), classes, void=0.05)
        for size in SIZES:
            options = {"kernel_size": size, "void": void}
            expected = value_and_gradient(reference, logits, target, **options)
            found = value_and_gradient(
                probability_gradient_loss, logits, target, **options, form=form
            )
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (2, 2), (1, 9), (9, 1), (3, 4), (6, 6)])
def test_images_smaller_than_the_kernel(shape, form):
    logits = torch.randn(3, 3, *shape, dtype=torch.float64)
    target = torch.randint(3, (3, *shape))
    target[0, 0, 0] = 255
    for size in SIZES:
        for void in VOID:
            options = {"kernel_size": size, "void": void}
            expected = value_and_gradient(reference, logits, target, **options)
            found = value_and_gradient(
                probability_gradient_loss, logits, target, **options, form=form
            )
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)
            wanted = truth(target, 3, size, void)[1].any(2).any(1)
            assert torch.equal(boundary_pixels(target, size, void), wanted)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("void", VOID)
@pytest.mark.parametrize("size", SIZES)
def test_gradient_passes_gradcheck(size, void, form):
    logits = torch.randn(1, 3, 6, 5, dtype=torch.float64)
    target = torch.randint(3, (1, 6, 5))
    target[0, 0, 0] = 255
    assert truth(target, 3, size, void)[1].any()

    def loss(values):
        return probability_gradient_loss(values, target, size, void, form=form)

    assert torch.autograd.gradcheck(loss, logits.requires_grad_())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("void", VOID)
def test_normalized_kernels(void, form):
    logits, target = scene(void=0.02)
    for size in SIZES:
        options = {"kernel_size": size, "void": void, "normalize": True}
        expected = value_and_gradient(reference, logits, target, **options)
        found = value_and_gradient(probability_gradient_loss, logits, target, **options, form=form)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


# Worked by hand


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("size", "gradients_across"),
    [
        (3, [2.0]),
        # all columns, and from the second on: 2 (1/4 + 2/5) + 1/2
        (5, [4.2, 1.8]),
        # columns of 2.6 = 1 + 2 (1/2 + 1/5 + 1/10), of 2.107692 and of 1.728205
        (7, [6.4358974, 3.8358974, 1.7282051]),
    ],
)
def test_a_straight_edge_and_uniform_probabilities(size, gradients_across, form):
    target = torch.zeros(1, 9, 12, dtype=torch.int64)
    target[..., 6:] = 1
    expected = sum(each**2 for each in gradients_across) / len(gradients_across)
    for classes in (2, 6):
        logits = torch.zeros(1, classes, 9, 12, dtype=torch.float64)
        for turned in (target, target.transpose(1, 2)):
            each = logits.view(1, classes, *turned.shape[1:])
            loss = probability_gradient_loss(each, turned, size, form=form)
            assert loss.item() == pytest.approx(expected, rel=1e-7)
    pixels = boundary_pixels(target, size)
    assert pixels[0, 4].tolist() == [abs(x - 5.5) < size // 2 for x in range(12)]
    total = sum(TABLES[size][y][x] for y in range(size) for x in range(size // 2))
    loss = probability_gradient_loss(logits, target, size, normalize=True, form=form)
    assert loss.item() == pytest.approx(expected / total**2, rel=1e-7)


@pytest.mark.parametrize("form", FORMS)
def test_both_maps_of_two_classes_count_alike(form):
    """P of the right class 3/4 left and 1/4 right of the edge: gradients 1 and 2, (2 - 1)^2 = 1."""
    target = torch.tensor([[[0, 0, 0, 1, 1, 1]] * 3])
    right = torch.where(target == target.new_tensor(1), 0.75, 0.25).double()
    logits = torch.stack([1 - right, right], 1).log()
    assert probability_gradient_loss(logits, target, form=form).item() == pytest.approx(1.0)


@pytest.mark.parametrize("form", FORMS)
def test_a_line_one_pixel_wide_is_seen_from_its_sides(form):
    """On the line itself its class does not change across it: an entry that does not count."""
    target = torch.tensor([[[0, 0, 1, 2, 2]] * 4])
    gradient, counts = truth(target, 3)
    assert gradient[0, 1, 0, 1].tolist() == [0, 2, 0, -2, 0]
    assert counts[0, :, 0, 1].sum() == 6  # 0 on two pixels, 1 on two, 2 on two
    loss = probability_gradient_loss(torch.zeros(1, 3, 4, 5), target, form=form)
    assert loss.item() == pytest.approx(4.0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("form", FORMS)
def test_void_strip_in_a_flat_field(size, width, form):
    target = torch.zeros(1, 12, 20, dtype=torch.int64)
    target[..., 9 : 9 + width] = 255
    perfect = torch.zeros(1, 2, 12, 20, dtype=torch.float64)
    perfect[:, 0] = 50
    for void in ("strict", "nearest"):
        value, gradient = value_and_gradient(
            probability_gradient_loss, perfect, target, kernel_size=size, void=void, form=form
        )
        assert value.item() == 0
        assert torch.equal(gradient, torch.zeros_like(gradient))
        assert not boundary_pixels(target, size, void).any()
    cost = probability_gradient_loss(perfect, target, size, "reference", form=form).item()
    assert cost > 1
    if size == 3:
        assert cost == pytest.approx(4.0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", SIZES)
def test_a_perfect_prediction_costs_nothing(size, form):
    for void, share in (("strict", 0.05), ("nearest", 0.05), ("reference", 0.0)):
        _, target = scene(void=share)
        # what the labels become: void pixels too must be predicted as the rule wants them
        labels = nearest_labels(target, 255)
        logits = F.one_hot(labels, 5).movedim(-1, 1).double() * 100
        loss = probability_gradient_loss(logits, target, size, void, form=form)
        assert 0 <= loss.item() < 1e-10
        assert void == "strict" or boundary_pixels(target, size, void).any()


# Invariances


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("void", VOID)
@pytest.mark.parametrize("size", SIZES)
def test_what_changes_nothing(size, void, form):
    logits, target = scene(void=0.03)

    def loss(logits, target):
        return probability_gradient_loss(logits, target, size, void, form=form)

    value = loss(logits, target)
    assert value > 0
    others = {
        "a constant per pixel": (logits + torch.randn_like(logits[:, :1]) * 5, target),
        "a horizontal flip": (logits.flip(3), target.flip(2)),
        "a vertical flip": (logits.flip(2), target.flip(1)),
        "a transpose": (logits.transpose(2, 3), target.transpose(1, 2)),
        "the order of the images": (logits.flip(0), target.flip(0)),
        "every image twice": (logits.repeat(2, 1, 1, 1), target.repeat(2, 1, 1)),
    }
    if void != "nearest":  # of two labels at one distance the smaller fills
        order = torch.randperm(5)
        moved = order.argsort()[target.where(target != 255, 0)].where(target != 255, 255)
        others["another order of classes"] = (logits[:, order], moved)
    for name, (each, labels) in others.items():
        torch.testing.assert_close(loss(each, labels), value, msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_an_object_may_be_anywhere_in_a_flat_field(form):
    values = []
    for y, x in ((4, 4), (6, 9), (8, 5)):
        target = torch.zeros(1, 16, 18, dtype=torch.int64)
        target[:, y : y + 3, x : x + 4] = 1
        logits = F.one_hot(target, 2).movedim(-1, 1).double() * 1.3
        values.append(probability_gradient_loss(logits, target, 7, form=form))
    torch.testing.assert_close(values[1:], [values[0]] * 2)


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "transposed"])
@pytest.mark.parametrize("form", FORMS)
def test_any_layout_in_memory(form, layout):
    logits, target = scene(void=0.02)
    if layout == "channels_last":
        other, labels = logits.to(memory_format=torch.channels_last), target
    elif layout == "sliced":
        other, labels = logits.repeat_interleave(2, 3)[..., ::2], target.repeat(1, 1, 2)[..., :17]
    else:
        other = logits.transpose(2, 3).contiguous().transpose(2, 3)
        labels = target.transpose(1, 2).contiguous().transpose(1, 2)
    assert not other.is_contiguous()
    leaf = other.detach().requires_grad_()
    value = probability_gradient_loss(leaf, labels, form=form)
    (gradient,) = torch.autograd.grad(value, leaf)
    expected = value_and_gradient(reference, logits, target)
    torch.testing.assert_close((value, gradient), expected, rtol=1e-10, atol=1e-11)


# Where there is nothing to see


@pytest.mark.parametrize("form", [*FORMS, "auto"])
@pytest.mark.parametrize("void", VOID)
@pytest.mark.parametrize("size", SIZES)
def test_no_boundary_gives_zero_with_zero_gradient(size, void, form):
    logits = torch.randn(2, 3, 8, 9)
    for label in (0, 2, 255):
        target = torch.full((2, 8, 9), label)
        value, gradient = value_and_gradient(
            probability_gradient_loss, logits, target, kernel_size=size, void=void, form=form
        )
        assert value.item() == 0
        assert torch.equal(gradient, torch.zeros_like(gradient))
        assert not boundary_pixels(target, size, void).any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", SIZES)
def test_strict_sends_no_gradient_to_void(size, form):
    logits, target = scene((2, 20, 24), void=0.01)
    void = (target == 255)[:, None].expand_as(logits)
    value, gradient = value_and_gradient(
        probability_gradient_loss, logits, target, kernel_size=size, form=form
    )
    assert value > 0
    assert (gradient[void] == 0).all()
    assert (gradient != 0).any()


@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", SIZES)
def test_strict_is_not_harmed_by_garbage_under_void(size, form, garbage):
    logits, target = scene((2, 20, 24), void=0.01)
    void = (target == 255)[:, None].expand_as(logits)
    assert boundary_pixels(target, size).any()
    assert void.any()
    clean, dirty = (
        value_and_gradient(probability_gradient_loss, each, target, kernel_size=size, form=form)
        for each in (logits, logits.masked_fill(void, garbage))
    )
    torch.testing.assert_close(dirty, clean, rtol=1e-10, atol=1e-12)
    assert (dirty[1][void] == 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_nan_at_a_boundary_is_not_hidden(form):
    logits, target = scene()
    b, y, x = boundary_pixels(target).nonzero()[0].tolist()
    logits[b, :, y, x] = math.nan
    assert probability_gradient_loss(logits, target, form=form).isnan()


def test_sparse_visits_only_the_entries_that_count():
    logits, target = torch.randn(1, 2, 9, 20), torch.zeros(1, 9, 20, dtype=torch.int64)
    target[..., 15:] = 1
    dirty = logits.clone()
    dirty[..., :5] = math.nan
    clean, found = (
        value_and_gradient(probability_gradient_loss, each, target, form="sparse")
        for each in (logits, dirty)
    )
    assert torch.equal(clean[0], found[0])
    assert torch.equal(clean[1], found[1])


# Which pixels


@pytest.mark.parametrize("void", VOID)
@pytest.mark.parametrize("size", SIZES)
def test_boundary_pixels_are_those_of_the_entries(size, void):
    for share in (0.0, 0.02, 0.3):
        _, target = scene((3, 13, 17), void=share)
        expected = truth(target, 5, size, void)[1].any(2).any(1)
        found = boundary_pixels(target, size, void)
        assert found.dtype == torch.bool
        assert torch.equal(found, expected)
        module = ProbabilityGradientLoss(size, void)
        assert torch.equal(module.boundary(target), expected)


@pytest.mark.parametrize("void", VOID)
@pytest.mark.parametrize("size", SIZES)
def test_boundary_pixels_do_not_depend_on_autocast(size, void):
    _, target = scene(void=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = boundary_pixels(target, size, void)
    assert torch.equal(found, boundary_pixels(target, size, void))


@pytest.mark.parametrize("size", SIZES)
def test_a_cancelling_window_is_no_boundary(size):
    """A chessboard and crossing stripes: windows of several classes whose gradients are all 0."""
    rows, columns = torch.arange(12)[:, None], torch.arange(12)
    for target in ((rows + columns) % 2, (columns % 2).expand(12, 12), rows * columns % 3):
        expected = truth(target[None], 3, size)[1].any(2).any(1)
        assert torch.equal(boundary_pixels(target[None].contiguous(), size), expected)
        logits = torch.randn(1, 3, 12, 12, dtype=torch.float64)
        for form in FORMS:
            loss = probability_gradient_loss(logits, target[None], size, form=form)
            torch.testing.assert_close(loss, reference(logits, target[None], size))


@pytest.mark.parametrize("void", VOID)
@pytest.mark.parametrize("ignore_index", [0, -1, -100])
def test_another_ignore_index(ignore_index, void):
    logits, target = scene(void=0.03)
    other = target.where(target != 255, ignore_index)
    options = {"void": void, "ignore_index": ignore_index}
    expected = value_and_gradient(reference, logits, other, **options)
    for form in FORMS:
        found = value_and_gradient(probability_gradient_loss, logits, other, **options, form=form)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)
    wanted = truth(other, 5, 3, **options)[1].any(2).any(1)
    assert torch.equal(boundary_pixels(other, **options), wanted)


# Precision


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_give_the_float32_loss(dtype, form):
    logits, target = scene(void=0.02)
    low = logits.to(dtype)
    value, gradient = value_and_gradient(probability_gradient_loss, low, target, form=form)
    expected, wanted = value_and_gradient(probability_gradient_loss, low.float(), target, form=form)
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, wanted.to(dtype))
    assert value.item() == pytest.approx(reference(low, target).item(), rel=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_autocast_changes_nothing(form):
    logits, target = scene(void=0.02, dtype=torch.float32)
    plain = value_and_gradient(probability_gradient_loss, logits, target, form=form)
    with torch.autocast("cpu", torch.bfloat16):
        inside = value_and_gradient(probability_gradient_loss, logits, target, form=form)
    torch.testing.assert_close(inside, plain, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_large_logits_stay_finite(form):
    logits, target = scene(dtype=torch.float32)
    value, gradient = value_and_gradient(probability_gradient_loss, logits * 1e4, target, form=form)
    assert value.item() == pytest.approx(reference(logits * 1e4, target).item(), rel=1e-5)
    assert gradient.isfinite().all()


# Arguments


@pytest.mark.parametrize("size", [0, 1, 2, 4, 9])
def test_other_kernel_sizes(size):
    logits, target = scene()
    for call in (
        lambda: probability_gradient_loss(logits, target, size),
        lambda: boundary_pixels(target, size),
        lambda: ProbabilityGradientLoss(size),
    ):
        with pytest.raises(ValueError, match=f"3, 5 or 7, not {size}"):
            call()


def test_other_void_rules():
    logits, target = scene()
    for call in (
        lambda: probability_gradient_loss(logits, target, void="lenient"),
        lambda: boundary_pixels(target, void="lenient"),
        lambda: ProbabilityGradientLoss(void="lenient"),
    ):
        with pytest.raises(ValueError, match="lenient"):
            call()


@pytest.mark.parametrize("size", [(2, 12, 18), (2, 12, 17), (1, 13, 17), (2, 221), (2, 1, 13, 17)])
def test_shapes_that_do_not_fit(size):
    logits, _ = scene()
    with pytest.raises(ValueError, match=r"logits \(2, 5, 13, 17\) and target .* do not fit"):
        probability_gradient_loss(logits, torch.zeros(size, dtype=torch.int64))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("strange", [5, 254, -1])
def test_target_that_is_no_class_raises(strange, form):
    """Never a value that is wrong in silence, also for callers without a loss of pixels."""
    logits, target = scene()
    target[0, 4, 4] = strange
    with pytest.raises((IndexError, ValueError, RuntimeError)):
        probability_gradient_loss(logits, target, form=form)


def test_module_equals_function():
    logits, target = scene(void=0.03)
    target[target == 255] = 3
    module = ProbabilityGradientLoss(5, "nearest", 3, True, False, "dense")
    expected = probability_gradient_loss(logits, target, 5, "nearest", 3, True, False, "dense")
    assert torch.equal(module(logits, target), expected)
    assert module.state_dict() == {}
    default = ProbabilityGradientLoss()(logits, target)
    assert torch.equal(default, probability_gradient_loss(logits, target))


# Processes


def test_two_processes_equal_one_with_all_images(tmp_path):
    cases = []
    for form in FORMS:
        for void in VOID:
            for flat in ((), (0,), (1,), (0, 1)):
                parts = [scene((2, 8, 9), 3, void=0.03) for _ in range(2)]
                logits, target = (torch.stack(each) for each in zip(*parts, strict=True))
                for rank in flat:  # a process without an edge
                    target[rank] = 1 if rank else 255
                weight = 0.5 * (len(cases) % 2)
                cases.append((logits, target, {"void": void, "form": form, "false_edges": weight}))
    loss = "probability_gradient_loss(leaf, labels, **rest[0], across_ranks=True)"
    found = in_two_processes(cases, loss, "ProbabilityGradientLoss(across_ranks=True)", tmp_path)
    for (logits, target, options), *ranks in zip(cases, *found, strict=True):
        expected, gradient = value_and_gradient(
            lambda values, labels, **options: whole_reference(
                values.flatten(0, 1), labels.flatten(0, 1), **options
            ),
            logits,
            target,
            **options,
        )
        # DDP averages: two gradients of their own images, divided by two
        together = torch.stack([own for _, own in ranks]) / 2
        torch.testing.assert_close(together, gradient, rtol=1e-9, atol=1e-12)
        mean = sum(value.item() for value, _ in ranks) / 2
        assert mean == pytest.approx(expected.item(), rel=1e-9)


# The term against false edges


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("void", VOID)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("normalize", [False, True])
def test_false_edges_equal_the_reference(size, void, form, normalize):
    for shape, classes in (((2, 13, 17), 5), ((1, 24, 31), 2), ((1, 2, 3), 3), ((2, 9, 1), 70)):
        logits, target = scene(shape, classes, void=0.05)
        options = {"kernel_size": size, "void": void, "normalize": normalize}
        value, gradient = value_and_gradient(
            probability_gradient_loss, logits, target, form=form, false_edges=0.7, **options
        )

        wanted, slope = value_and_gradient(
            whole_reference, logits, target, false_edges=0.7, **options
        )
        torch.testing.assert_close(value, wanted, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(gradient, slope, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", SIZES)
def test_false_edges_pass_gradcheck(size, form):
    logits, target = scene((1, 6, 7), 3, void=0.05)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda leaf: probability_gradient_loss(leaf, target, size, form=form, false_edges=2.0),
        logits,
    )


@pytest.mark.parametrize("form", FORMS)
def test_without_weight_the_loss_is_the_papers_bit_for_bit(form):
    logits, target = scene((2, 13, 17), 5, void=0.05, dtype=torch.float32)
    found = value_and_gradient(probability_gradient_loss, logits, target, form=form)
    zero = value_and_gradient(probability_gradient_loss, logits, target, form=form, false_edges=0)
    assert torch.equal(found[0], zero[0])
    assert torch.equal(found[1], zero[1])


@pytest.mark.parametrize("form", FORMS)
def test_a_false_edge_in_a_flat_field(form):
    """Two classes whose probabilities swap across a line: +-2 at the pixels on both sides, so
    2 classes x 4 x 2 columns of W columns."""
    logits = torch.zeros(1, 2, 5, 10)
    logits[0, 0, :, :4], logits[0, 1, :, 4:] = 99, 99
    target = torch.zeros(1, 5, 10, dtype=torch.int64)
    assert probability_gradient_loss(logits, target, form=form) == 0
    found = probability_gradient_loss(logits, target, form=form, false_edges=1)
    assert found.item() == pytest.approx(2 * 4 * 2 / 10)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
def test_false_edges_are_not_harmed_by_garbage_under_void(form, garbage):
    logits, target = scene((2, 13, 17), 5, void=0.05, dtype=torch.float32)
    clean = value_and_gradient(probability_gradient_loss, logits, target, form=form, false_edges=1)
    logits.movedim(1, -1)[target == 255] = garbage
    found = value_and_gradient(probability_gradient_loss, logits, target, form=form, false_edges=1)
    torch.testing.assert_close(found, clean, rtol=1e-6, atol=1e-8)
    assert (found[1].movedim(1, -1)[target == 255] == 0).all()


def test_false_edges_of_all_void_and_half_precision():
    logits, target = scene((2, 13, 17), 5, dtype=torch.float32)
    void = torch.full_like(target, 255)
    value, gradient = value_and_gradient(probability_gradient_loss, logits, void, false_edges=1)
    assert value == 0
    assert (gradient == 0).all()
    half = logits.half()
    found = probability_gradient_loss(half, target, false_edges=1)
    assert found == probability_gradient_loss(half.float(), target, false_edges=1)
    assert found.dtype == torch.float32


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match="false_edges"):
        ProbabilityGradientLoss(false_edges=-1)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_false_edges_with_any_layout(layout):
    logits, target = scene((2, 13, 17), 5, void=0.05)
    loss = ProbabilityGradientLoss(false_edges=1)
    assert loss(logits.to(memory_format=layout), target).item() == pytest.approx(
        loss(logits, target).item(), rel=1e-12
    )
    edges, false = loss.terms(logits, target)
    assert edges + false == loss(logits, target)


@pytest.mark.parametrize("void", VOID)
@pytest.mark.parametrize("size", SIZES)
def test_bands_of_rows_join_without_a_seam(size, void, monkeypatch):
    logits, target = scene((2, 23, 17), 5, void=0.05)
    options = {"kernel_size": size, "void": void, "false_edges": 0.7}
    wanted = value_and_gradient(whole_reference, logits, target, **options)
    monkeypatch.setattr("lightning_seg.losses.false_edges._BLOCK", 0)
    for rows in (1, 2, 5, 22, 23):
        monkeypatch.setattr("lightning_seg.losses.false_edges._ROWS", rows)
        found = value_and_gradient(probability_gradient_loss, logits, target, **options)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
        single = value_and_gradient(probability_gradient_loss, logits.float(), target, **options)
        assert single[0].item() == pytest.approx(wanted[0].item(), rel=1e-6)
        worst = (single[1].double() - wanted[1]).abs().max()
        assert worst <= 1e-6 * wanted[1].abs().max()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("factors", [(1, 0.7), (3, 2.1), (1, 0), (0, 1), (2, -5)])
def test_both_terms_may_have_any_factor(form, factors):
    logits, target = scene(void=0.05)
    leaf = logits.clone().requires_grad_()
    terms = ProbabilityGradientLoss(form=form, false_edges=0.7).terms(leaf, target)
    loss = factors[0] * terms[0] + factors[1] * terms[1]
    (gradient,) = torch.autograd.grad(loss, leaf)
    parts = [value_and_gradient(each, logits, target)[1] for each in (reference, flat_reference)]
    expected = factors[0] * parts[0] + factors[1] * parts[1]
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_a_graph_that_is_kept_gives_the_same_gradient_again(form, weight):
    logits, target = scene(void=0.05)
    leaf = logits.clone().requires_grad_()
    loss = 3 * probability_gradient_loss(leaf, target, form=form, false_edges=weight)
    first = torch.autograd.grad(loss, leaf, retain_graph=True)[0]
    kept = first.clone()
    first.zero_()  # the caller's own
    second = torch.autograd.grad(loss, leaf, retain_graph=True)[0]
    (2 * loss).backward()
    torch.testing.assert_close(second, kept, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(leaf.grad, 2 * kept, rtol=1e-12, atol=1e-14)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_a_second_derivative_is_refused():
    logits, target = scene(void=0.05)
    leaf = logits.requires_grad_()
    for weight in (0.0, 0.7):
        loss = probability_gradient_loss(leaf, target, false_edges=weight)
        (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
        with pytest.raises(RuntimeError, match="require grad"):
            gradient.sum().backward()


def test_false_edges_without_a_gradient():
    logits, target = scene(void=0.05)
    expected = whole_reference(logits, target, false_edges=0.7)
    found = probability_gradient_loss(logits, target, false_edges=0.7)
    assert not found.requires_grad
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
