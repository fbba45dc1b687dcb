"""Colour targets against colorsys, plain loops and numbers worked by hand."""

from __future__ import annotations

import colorsys
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from color_standards import reference_lab
from two_processes import ROOT, run_two

from lightning_seg.losses.ab_grid import ABGrid
from lightning_seg.losses.color_spaces import hue_chroma, lab_to_rgb, rgb_to_lab
from lightning_seg.losses.colorization import ColorTarget, HueChroma

HALF = [torch.bfloat16, torch.float16]
TARGETS = [HueChroma, ABGrid]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def case(target, count=40, dtype=torch.float64):
    logits = torch.randn(count, target.outputs, dtype=torch.float64).to(dtype)
    return logits, torch.rand(count, 3, dtype=torch.float64), torch.rand(count) < 0.6


# Hue and chroma


def hue_chroma_by_hand(logits, rgb, valid, bins, hue_weight):
    total = 0.0
    for row, each, ok in zip(logits.tolist(), rgb.tolist(), valid.tolist(), strict=True):
        if not ok:
            continue
        hue, chroma = colorsys.rgb_to_hsv(*each)[0], max(each) - min(each)
        hue_row, chroma_row = row[:bins], row[bins:]
        at_hue, at_chroma = int(hue * bins * 0.99999), int(chroma * bins * 0.99999)
        of_hue = math.log(sum(map(math.exp, hue_row))) - hue_row[at_hue]
        of_chroma = math.log(sum(map(math.exp, chroma_row))) - chroma_row[at_chroma]
        total += of_chroma + hue_weight * chroma * of_hue
    return total / max(int(valid.sum()), 1)


@pytest.mark.parametrize(("bins", "hue_weight"), [(32, 5.0), (8, 0.0), (2, 1.5)])
@pytest.mark.parametrize("masked", [False, True])
def test_hue_chroma_loss_equals_the_loop(bins, hue_weight, masked):
    target = HueChroma(bins, hue_weight)
    assert target.outputs == 2 * bins
    logits, rgb, valid = case(target)
    rgb[0], rgb[1], rgb[2] = torch.tensor([1.0, 0.0, 0.0]), 1.0, 0.0
    found = target(logits, rgb, valid if masked else None)
    valid = valid if masked else torch.ones_like(valid)
    expected = hue_chroma_by_hand(logits, rgb, valid, bins, hue_weight)
    assert found.shape == ()
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_the_hue_of_a_gray_location_does_not_count():
    target = HueChroma()
    logits, _, _ = case(target, 3)
    logits.requires_grad_()
    target(logits, torch.full((3, 3), 0.3)).backward()
    assert (logits.grad[:, :32] == 0).all()
    assert (logits.grad[:, 32:] != 0).all()


def true_hue_chroma_logits(rgb, bins, sharp=60.0):
    logits = torch.zeros(len(rgb), 2 * bins, dtype=rgb.dtype)
    for row, each in zip(logits, rgb.tolist(), strict=True):
        hue, chroma = colorsys.rgb_to_hsv(*each)[0], max(each) - min(each)
        row[int(hue * bins * 0.99999)] = sharp
        row[bins + int(chroma * bins * 0.99999)] = sharp
    return logits


@pytest.mark.parametrize("bins", [32, 400])
def test_the_true_bins_give_the_colors_back(bins):
    rgb = torch.rand(400, 3, dtype=torch.float64)
    found = HueChroma(bins).colors(true_hue_chroma_logits(rgb, bins), rgb.mean(1))
    chroma = (rgb.amax(1) - rgb.amin(1))[:, None]
    # Half a bin of chroma and half a bin of hue, which moves a channel 6 chroma as fast. Where
    # the cube ends, what the most saturated channel lacks takes up to twice that off another.
    near = (1 + 6 * chroma) * 0.5 / bins
    assert ((found - rgb).abs() <= 3 * near).all()
    inside = (rgb.amin(1) > 0.1) & (rgb.amax(1) < 0.9) & (bins > 32)
    assert ((found - rgb).abs()[inside] <= near[inside]).all()
    assert inside.any() or bins == 32


def hue_of(probabilities):
    logits = torch.cat([torch.tensor(probabilities).log(), torch.zeros(len(probabilities))])
    return hue_chroma(HueChroma(len(probabilities)).colors(logits[None], torch.tensor([0.5])))[0]


def test_the_hue_is_a_mean_on_the_circle():
    tiny = 1e-9
    # bins 0 and 7 of 8 are neighbours around 0, bins 1 and 2 around 1/4
    around = hue_of([0.5, *[tiny] * 6, 0.5]).item()
    assert min(around, 1 - around) < 1e-5
    assert hue_of([tiny, 0.5, 0.5, *[tiny] * 5]).item() == pytest.approx(0.25, abs=1e-5)
    vectors = np.array([0.7, 0.1, 0.05, 0.15]) * np.exp(2j * np.pi * (np.arange(4) + 0.5) / 4)
    expected = np.angle(vectors.sum()) / (2 * np.pi) % 1
    assert hue_of([0.7, 0.1, 0.05, 0.15]).item() == pytest.approx(expected, abs=1e-5)


def test_the_chroma_is_a_median_within_its_bin():
    target = HueChroma(4)
    # below 1/4: 0.45; one half is reached at 0.05 / 0.4 of the second bin
    chroma = torch.tensor([0.45, 0.4, 0.1, 0.05]).log()
    logits = torch.cat([torch.tensor([9.0, 0, 0, 0]), chroma])[None].double()
    found = target.colors(logits, torch.tensor([0.5], dtype=torch.float64))
    assert (found.amax() - found.amin()).item() == pytest.approx((1 + 0.125) / 4, abs=1e-6)
    # a long flat tail does not tint what is most likely grey: the mean would be 0.25
    flat = torch.full((32,), 0.5 / 31)
    flat[0] = 0.5 + 1e-4
    logits = torch.cat([torch.zeros(32), flat.log()])[None]
    found = HueChroma().colors(logits, torch.tensor([0.5]))
    assert (found.amax() - found.amin()).item() < 1.05 / 32


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_colors_have_the_gray_value_and_lie_in_the_cube(target, scale):
    target = target()
    gray = torch.cat([torch.rand(200), torch.tensor([0.0, 1.0, 1e-3, 0.999])])
    found = target.colors(torch.randn(204, target.outputs) * scale, gray)
    assert found.shape == (204, 3)
    assert found.min() >= 0
    assert found.max() <= 1
    torch.testing.assert_close(found.mean(1), gray, rtol=0, atol=1e-6)
    assert (found[200] == 0).all()
    assert (found[201] == 1).all()


def test_what_does_not_fit_loses_chroma_and_keeps_its_hue():
    rgb = torch.tensor([[1.0, 0.2, 0.0]], dtype=torch.float64)
    logits = true_hue_chroma_logits(rgb, 32)
    target = HueChroma()
    before = target.colors(logits, rgb.mean(1))
    dark = target.colors(logits, rgb.mean(1) / 8)
    hue, chroma = hue_chroma(torch.cat([before, dark]))
    assert hue[0].item() == pytest.approx(hue[1].item(), abs=1e-9)
    assert chroma[1] < chroma[0] / 4
    # and no more than it has to
    assert dark.min().item() == pytest.approx(0, abs=1e-12)


# The ab grid


def grid_by_hand(spacing):
    level = np.arange(0, 256, 3) / 255
    rgb = np.stack(np.meshgrid(level, level, level), -1).reshape(-1, 3)
    ab = reference_lab(rgb)[:, 1:]
    return {tuple(each) for each in np.round(ab / spacing).astype(int)}


def test_the_grid_has_261_bins():
    target = ABGrid()
    assert target.outputs == 261
    assert {tuple(each) for each in (target.centers / 10).long().tolist()} == grid_by_hand(10)
    assert [0.0, 0.0] in target.centers.tolist()


def test_other_spacings_have_other_bins():
    assert {tuple(each) for each in (ABGrid(20.0).centers / 20).long().tolist()} == grid_by_hand(20)


def soft_by_hand(target, rgb):
    """Q shares per colour, as in the paper: Gaussians of the nearest bins, divided by their sum."""
    shares = []
    for a, b in rgb_to_lab(rgb)[:, 1:].tolist():
        squares = [(a - x) ** 2 + (b - y) ** 2 for x, y in target.centers.tolist()]
        nearest = sorted(range(len(squares)), key=squares.__getitem__)[: target.neighbors]
        row = [0.0] * len(squares)
        for at in nearest:
            row[at] = math.exp(-squares[at] / (2 * target.sigma**2))
        shares.append([each / sum(row) for each in row])
    return torch.tensor(shares, dtype=torch.float64)


@pytest.mark.parametrize(("neighbors", "sigma"), [(10, 5.0), (1, 5.0), (4, 20.0)])
def test_soft_targets_equal_the_loop(neighbors, sigma):
    target = ABGrid(neighbors=neighbors, sigma=sigma)
    rgb = torch.rand(30, 3, dtype=torch.float64)
    bins, shares = target.soft_target(rgb)
    found = torch.zeros(30, 261, dtype=torch.float64).scatter_(1, bins, shares)
    expected = soft_by_hand(target, rgb)
    torch.testing.assert_close(found, expected)
    assert torch.equal(bins[:, 0], expected.argmax(1))


def weights_by_hand(counts, mix):
    counts = np.array(counts.tolist(), dtype=np.float64)
    prior = counts / counts.sum() if counts.sum() else np.full(len(counts), 1 / len(counts))
    weight = 1 / ((1 - mix) * prior + mix / len(counts))
    return weight / (prior * weight).sum()


@pytest.mark.parametrize("mix", [0.5, 0.1, 1.0])
@pytest.mark.parametrize("masked", [False, True])
def test_grid_loss_equals_the_loop(mix, masked):
    target = ABGrid(mix=mix)
    logits, rgb, valid = case(target)
    seen = torch.randint(1000, (261,))
    target.counts += seen
    valid = valid if masked else torch.ones_like(valid)
    soft = soft_by_hand(target, rgb)
    seen = seen + torch.bincount(soft.argmax(1)[valid], minlength=261)
    weight = torch.tensor(weights_by_hand(seen, mix))
    found = target(logits, rgb, valid if masked else None)
    assert torch.equal(target.counts, seen)
    torch.testing.assert_close(target.weights().double(), weight, rtol=1e-5, atol=0)
    each = F.cross_entropy(logits, soft, reduction="none") * weight[soft.argmax(1)]
    assert found.item() == pytest.approx(each[valid].mean().item(), rel=1e-5)


def test_weights_of_a_prior_worked_by_hand():
    """One bin in all locations: prior 1 there, so it weighs 1 and the others 131 times that."""
    target = ABGrid()
    target.counts[7] = 12
    weight = target.weights()
    assert weight[7].item() == pytest.approx(1)
    others = (0.5 + 0.5 / 261) / (0.5 / 261)
    assert weight[8].item() == pytest.approx(others) == pytest.approx(262)


def test_the_expected_weight_is_1_and_rare_bins_weigh_more():
    target = ABGrid(mix=0.3)
    target.counts += torch.randint(1, 1000, (261,))
    prior = target.counts / target.counts.sum()
    weight = target.weights()
    assert (prior * weight).sum().item() == pytest.approx(1, rel=1e-5)
    order = target.counts.argsort()
    assert (weight[order].diff() <= 0).all()


def test_nothing_is_counted_outside_of_training():
    target = ABGrid()
    logits, rgb, valid = case(target)
    target.eval()
    first = target(logits, rgb, valid)
    assert target.counts.sum() == 0
    assert (target.weights() == 1).all()
    target.train()
    target(logits, rgb, valid)
    assert target.counts.sum() == valid.sum()
    counted = target.counts.clone()
    second = target.eval()(logits, rgb, valid)
    assert torch.equal(target.counts, counted)
    assert first != second


def test_counts_are_in_checkpoints_and_the_grid_is_not():
    target = ABGrid()
    logits, rgb, _ = case(target)
    target(logits, rgb)
    state = target.state_dict()
    assert list(state) == ["counts"]
    other = ABGrid()
    other.load_state_dict(state)
    assert torch.equal(other.weights(), target.weights())
    # many more than float32 could count one by one
    target.counts += 2**26
    before = target.counts.clone()
    target.half()(logits[:1], rgb[:1])
    assert (target.counts - before).sum() == 1


def test_the_true_bins_give_the_colors_back_on_the_grid():
    rgb = 0.2 + 0.6 * torch.rand(300, 3, dtype=torch.float64)
    target = ABGrid()
    own = soft_by_hand(target, rgb).argmax(1)
    found = target.colors(60 * F.one_hot(own, 261).double(), rgb.mean(1))
    difference = (rgb_to_lab(found) - rgb_to_lab(rgb))[:, 1:].abs()
    assert difference.max() <= 5 + 1e-3  # half the spacing
    # exact where the centre of the bin is meant
    meant = lab_to_rgb(torch.cat([torch.full((261, 1), 70.0), target.centers], 1).double())
    fits = (rgb_to_lab(meant)[:, 1:] - target.centers).abs().amax(1) < 1e-3
    assert 20 < fits.sum() < 261
    found = target.colors(99 * torch.eye(261, dtype=torch.float64), meant.mean(1))
    torch.testing.assert_close(found[fits], meant[fits], rtol=0, atol=1e-5)


def test_colors_are_the_expected_ab_at_a_temperature():
    logits = torch.randn(50, 261, dtype=torch.float64) * 0.7
    gray = torch.full((50,), 0.5, dtype=torch.float64)
    for temperature in (1.0, 0.38):
        target = ABGrid(temperature=temperature)
        expected = (logits / temperature).exp()
        expected = expected / expected.sum(1, keepdim=True) @ target.centers.double()
        found = target.colors(logits, gray)
        # all of these fit into the cube
        torch.testing.assert_close(rgb_to_lab(found)[:, 1:], expected, rtol=0, atol=1e-3)


COUNTING = """
import os, sys, types
# losses need torch alone: without the package's __init__ a process starts sooner
package = sys.modules["lightning_seg"] = types.ModuleType("lightning_seg")
package.__path__ = [sys.argv[2] + "/lightning_seg"]
import torch
import torch.distributed as dist
from lightning_seg.losses.ab_grid import ABGrid

rank, folder = int(os.environ["RANK"]), sys.argv[1]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
target = ABGrid()
cases = torch.load(f"{folder}/cases.pt")
for logits, rgb, valid in cases:
    target(logits[rank], rgb[rank], valid[rank])
if rank == 0:  # alone: evaluation talks to nobody, or this hangs
    target.eval()(*(each[0] for each in cases[0]))
torch.save(target.counts, f"{folder}/rank{rank}.pt")
dist.barrier()
dist.destroy_process_group()
"""


def test_two_processes_count_like_one(tmp_path: Path):
    target = ABGrid()
    cases = [
        (torch.randn(2, 20, 261), torch.rand(2, 20, 3), torch.rand(2, 20) < 0.6) for _ in range(2)
    ]
    torch.save(cases, tmp_path / "cases.pt")
    for each in cases:
        target(*(part.flatten(0, 1) for part in each))
    run_two(["-c", COUNTING, str(tmp_path), str(ROOT)], {}, timeout=120)
    for rank in (0, 1):
        assert torch.equal(torch.load(tmp_path / f"rank{rank}.pt"), target.counts)


# Both


@pytest.mark.parametrize("target", TARGETS)
def test_they_are_color_targets(target):
    assert isinstance(target(), ColorTarget)
    with pytest.raises(TypeError, match="abstract"):
        ColorTarget()


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_valid_costs_nothing(target):
    target = target()
    for count, valid in ((5, torch.zeros(5, dtype=torch.bool)), (0, None)):
        logits = torch.randn(count, target.outputs, requires_grad=True)
        loss = target(logits, torch.rand(count, 3), valid)
        assert loss.item() == 0
        (gradient,) = torch.autograd.grad(loss, logits)
        assert (gradient == 0).all()


@pytest.mark.parametrize("target", TARGETS)
def test_locations_that_are_not_valid_do_not_matter(target):
    target = target()
    logits, rgb, valid = case(target)
    alone = target.eval()(logits[valid], rgb[valid])
    other = logits.where(valid[:, None], 50 * torch.randn_like(logits)).requires_grad_()
    loss = target(other, rgb.where(valid[:, None], 0.5), valid)
    torch.testing.assert_close(loss, alone)
    (gradient,) = torch.autograd.grad(loss, other)
    assert (gradient[~valid] == 0).all()
    assert (gradient[valid] != 0).any(1).all()


@pytest.mark.parametrize("target", TARGETS)
def test_gradcheck(target):
    target = target().eval()
    logits, rgb, valid = case(target, 4)
    valid[0] = True
    assert torch.autograd.gradcheck(lambda x: target(x, rgb, valid), logits.requires_grad_())


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_gives_the_float32_loss(target, dtype):
    target = target().eval()
    logits, rgb, valid = case(target, dtype=dtype)
    rgb = rgb.float()
    loss = target(logits.requires_grad_(), rgb, valid)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, target(logits.float(), rgb, valid))
    loss.backward()
    assert logits.grad.dtype == dtype
    colors = target.colors(logits, rgb.mean(1))
    assert colors.dtype == torch.float32
    torch.testing.assert_close(colors.mean(1), rgb.mean(1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("target", TARGETS)
def test_autocast_changes_nothing(target):
    target = target().eval()
    logits, rgb, valid = case(target, dtype=torch.float32)
    rgb = rgb.float()
    plain = target(logits, rgb, valid), target.colors(logits, rgb.mean(1))
    with torch.autocast("cpu", torch.bfloat16):
        inside = target(logits, rgb, valid), target.colors(logits, rgb.mean(1))
    torch.testing.assert_close(inside, plain, rtol=0, atol=0)


@pytest.mark.parametrize("target", TARGETS)
def test_descent_finds_the_colors(target):
    target = target()
    rgb = 0.2 + 0.6 * torch.rand(30, 3)
    logits = torch.zeros(30, target.outputs, requires_grad=True)
    optimizer = torch.optim.Adam([logits], 0.3)
    before = (target.colors(logits.detach(), rgb.mean(1)) - rgb).abs().mean()
    for _ in range(60):
        optimizer.zero_grad()
        target(logits, rgb).backward()
        optimizer.step()
    after = (target.colors(logits.detach(), rgb.mean(1)) - rgb).abs().mean()
    assert after < before / 5


@pytest.mark.parametrize("target", TARGETS)
def test_shapes_that_do_not_fit(target):
    target = target()
    logits, rgb, valid = case(target, 6)
    expected = rf"\(6, {target.outputs}\), rgb \(5, 3\).*\(N, {target.outputs}\), \(N, 3\)"
    with pytest.raises(ValueError, match=expected):
        target(logits, rgb[:5])
    with pytest.raises(ValueError, match="do not fit"):
        target(logits[:, 1:], rgb)
    with pytest.raises(ValueError, match="mask"):
        target(logits, rgb, valid[:, None])
    with pytest.raises(ValueError, match=r"gray \(6, 1\).*\(N,\)"):
        target.colors(logits, rgb[:, :1])


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: HueChroma(bins=1), "bins"),
        (lambda: HueChroma(hue_weight=-0.1), "hue_weight"),
        (lambda: HueChroma(hue_weight=math.nan), "hue_weight"),
        (lambda: ABGrid(spacing=0.5), "spacing"),
        (lambda: ABGrid(spacing=math.nan), "spacing"),
        (lambda: ABGrid(neighbors=0), "neighbors"),
        (lambda: ABGrid(neighbors=262), "neighbors"),
        (lambda: ABGrid(sigma=0.0), "sigma"),
        (lambda: ABGrid(sigma=math.inf), "sigma"),
        (lambda: ABGrid(mix=0.0), "mix"),
        (lambda: ABGrid(mix=1.1), "mix"),
        (lambda: ABGrid(temperature=0.0), "temperature"),
    ],
)
def test_settings_out_of_range(make, named):
    with pytest.raises(ValueError, match=rf"^{named} must .* \(option: {named}=\)$"):
        make()
