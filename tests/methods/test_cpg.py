"""CPGModule against a plain dense form of its loss, computed from the network's logits."""

from __future__ import annotations

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from small_runs import SMALL_WORDS, cut_labels, fit, outputs, saved, scenes, tiny
from tiny import TinyNet

import cli
from lightning_seg import CPGModule, CrossEntropyModule, SetupError
from lightning_seg.losses import CrossEntropy, LossMaxPooling

WORDS = [*SMALL_WORDS, "--model=CPGModule"]


def module(kind=CPGModule, **options):
    return tiny(kind, **options)


def gradients(maps, size):
    reach = size // 2
    steps = torch.arange(-reach, reach + 1, dtype=torch.float64)
    squares = steps**2 + steps[:, None] ** 2
    squares[reach, reach] = 1
    kernel = steps / squares
    padded = F.pad(maps, [reach] * 4, mode="replicate").flatten(0, 1)[:, None]
    found = F.conv2d(padded, torch.stack([kernel, kernel.T])[:, None])
    return found.view(*maps.shape[:2], 2, *maps.shape[2:]), kernel.clamp(min=0).sum()


def entries(target, classes, size=3, void="strict"):
    valid = target != 255
    one_hot = F.one_hot(target.where(valid, 0), classes).movedim(-1, 1) * valid[:, None]
    wanted, scale = gradients(one_hot.double(), size)
    centre = valid
    if void == "strict":
        near = F.max_pool2d((~valid)[:, None].double(), size, 1, size // 2)[:, 0] > 0
        centre = ~near
    return wanted, (wanted.abs() > 1e-9) & centre[:, None, None], scale


def expected_cpg(logits, target, kernel_size=3, void="strict", normalize=False) -> float:
    wanted, counts, scale = entries(target, logits.shape[1], kernel_size, void)
    found, _ = gradients(logits.double().softmax(1), kernel_size)
    assert counts.any()
    return (((found - wanted)[counts] / (scale if normalize else 1)) ** 2).mean().item()


def expected_false_edges(logits, target, kernel_size=3, **_) -> float:
    """The mean of the squared gradients at labelled pixels without void or an entry in reach."""
    _, counts, _ = entries(target, logits.shape[1], kernel_size)
    near_void = F.max_pool2d((target == 255)[:, None].double(), kernel_size, 1, kernel_size // 2)
    flat = (near_void[:, 0] == 0) & ~counts.any(2).any(1)
    found, _ = gradients(logits.double().softmax(1), kernel_size)
    return found.square().sum((1, 2))[flat].mean().item()


def expected_ce(logits, target) -> float:
    return F.cross_entropy(logits.double(), target, ignore_index=255).item()


@pytest.mark.parametrize("options", [
    {}, {"kernel_size": 5}, {"kernel_size": 7, "normalize": True}, {"void": "reference"},
])  # fmt: skip
@pytest.mark.parametrize("heads", ["one", "aux", "on_aux"])
def test_the_loss_of_a_step(tmp_path, heads, options) -> None:
    ours = module(
        aux=heads != "one",
        on_aux=heads == "on_aux",
        lambda_aux=0.3,
        lambda_cpg=0.7,
        **options,
    )
    seen, kept = fit(ours, tmp_path, change=cut_labels)
    logits, target = outputs(seen.seen[0])
    pixel = expected_ce(logits["out"], target)
    cpg = expected_cpg(logits["out"], target, **options)
    if heads != "one":
        pixel += 0.3 * expected_ce(logits["aux"], target)
    if heads == "on_aux":
        cpg += 0.3 * expected_cpg(logits["aux"], target, **options)
    row = kept.rows[0]
    assert row["train/loss_pixel"] == pytest.approx(pixel, rel=1e-5)
    assert row["train/loss_cpg"] == pytest.approx(cpg, rel=1e-5)
    assert row["train/loss"] == pytest.approx(pixel + 0.7 * cpg, rel=1e-5)
    size, void = options.get("kernel_size", 3), options.get("void", "strict")
    at_boundary = entries(target, 8, size, void)[1].any(2).any(1).sum()
    share = at_boundary / (target != 255).sum()
    assert row["train/boundary"] == pytest.approx(share.item(), rel=1e-5)


@pytest.mark.parametrize("heads", ["one", "on_aux"])
def test_the_term_against_false_edges(tmp_path, heads) -> None:
    ours = module(aux=heads != "one", on_aux=True, lambda_cpg=0.7, false_edges=2.0, lambda_aux=0.3)
    seen, kept = fit(ours, tmp_path, change=cut_labels)
    logits, target = outputs(seen.seen[0])
    terms = {"pixel": expected_ce, "cpg": expected_cpg, "false_edges": expected_false_edges}
    expected = {
        name: term(logits["out"], target)
        + (0.3 * term(logits["aux"], target) if heads != "one" else 0)
        for name, term in terms.items()
    }
    row = kept.rows[0]
    for name, value in expected.items():
        assert row[f"train/loss_{name}"] == pytest.approx(value, rel=1e-5), name
    total = expected["pixel"] + 0.7 * (expected["cpg"] + 2 * expected["false_edges"])
    assert row["train/loss"] == pytest.approx(total, rel=1e-5)


def test_a_step_follows_the_gradient_of_both_terms(tmp_path) -> None:
    ours = module(lambda_cpg=0.5)
    seen, _ = fit(ours, tmp_path)
    batch, network = seen.seen[0]
    network.train()
    mean = torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1)
    std = torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1)
    logits = network((batch["image"].float() / 255 - mean) / std)
    wanted, counts, _ = entries(batch["mask"], 8)
    found, _ = gradients(logits.double().softmax(1), 3)
    loss = F.cross_entropy(logits, batch["mask"], ignore_index=255)
    (loss + 0.5 * (found - wanted)[counts].square().mean()).backward()
    for ours_after, before in zip(ours.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(
            ours_after.detach(), before.detach() - 0.05 * before.grad, rtol=1e-5, atol=1e-7
        )


def test_lambda_0_is_bit_identical_to_cross_entropy(tmp_path) -> None:
    nets = []
    for ours in (
        module(lambda_cpg=0.0, dropout=0.2, aux=True, on_aux=True),
        module(CrossEntropyModule, dropout=0.2, aux=True),
    ):
        torch.manual_seed(1)
        fit(ours, tmp_path, change=cut_labels, max_steps=3, max_epochs=-1)
        nets.append(ours.network.state_dict())
    for name, value in nets[1].items():
        assert torch.equal(nets[0][name], value), name


def test_the_share_of_boundaries_is_computed_at_the_steps_that_are_logged_only(
    tmp_path, monkeypatch
) -> None:
    steps, look = [], CPGModule.boundary_share

    def counted(self, *args):
        steps.append(self.trainer.global_step)
        return look(self, *args)

    monkeypatch.setattr(CPGModule, "boundary_share", counted)
    _, kept = fit(module(), tmp_path, max_steps=8, max_epochs=-1, log_every_n_steps=3)
    assert steps == [2, 5]
    for step, row in kept.rows.items():
        assert step in (2, 5)
        assert {"train/loss", "train/loss_pixel", "train/loss_cpg", "train/boundary"} <= set(row)


def test_the_labelled_group_of_a_semi_supervised_batch(tmp_path) -> None:
    data = scenes(
        batch_size=2, unlabeled_batch_size=3, labeled="1/4", splits_dir=str(tmp_path / "splits")
    )
    seen, kept = fit(module(), tmp_path, data)
    batch, network = seen.seen[0]
    assert set(batch) == {"labeled", "unlabeled"}
    logits, target = outputs((batch["labeled"], network))
    expected = expected_ce(logits["out"], target) + expected_cpg(logits["out"], target)
    assert kept.rows[0]["train/loss"] == pytest.approx(expected, rel=1e-5)


# Loss max-pooling as the loss of pixels


def test_max_pooling_goes_as_the_loss_of_pixels(tmp_path) -> None:
    """p = 1: the mean of the largest cross-entropies of each image."""
    ours = module(pixel_loss=LossMaxPooling(p=1.0, ratio=0.25))
    seen, kept = fit(ours, tmp_path, change=lambda batch: batch["mask"].clamp_(max=7))
    logits, target = outputs(seen.seen[0])
    losses = F.cross_entropy(logits["out"].double(), target, reduction="none").flatten(1)
    pixel = losses.topk(24 * 24 // 4).values.mean().item()
    assert kept.rows[0]["train/loss_pixel"] == pytest.approx(pixel, rel=1e-5)
    expected = pixel + expected_cpg(logits["out"], target)
    assert kept.rows[0]["train/loss"] == pytest.approx(expected, rel=1e-5)


def test_max_pooling_by_configuration_alone(tmp_path) -> None:
    words = [*WORDS, f"--trainer.default_root_dir={tmp_path}", "--model.pixel_loss=LossMaxPooling"]
    run = cli.main(["fit", *words, "--trainer.fast_dev_run=true"])
    assert isinstance(run.model.loss, LossMaxPooling)

    words += ["--model.pixel_loss.p=1.3", "--model.pixel_loss.ratio=0.2", "--model.lambda_cpg=0.5"]
    words += ["--trainer.max_epochs=1", "--model.kernel_size=5", "--model.void=nearest"]
    run = cli.main(["fit", *words])
    assert (run.model.loss.p, run.model.loss.ratio) == (1.3, 0.2)
    (path,) = tmp_path.rglob("*.ckpt")
    loaded = CPGModule.load_from_checkpoint(path, weights_only=True)
    assert isinstance(loaded.loss, LossMaxPooling)
    assert (loaded.loss.p, loaded.loss.ratio) == (1.3, 0.2)
    assert loaded.lambda_cpg == 0.5
    assert (loaded.cpg.kernel_size, loaded.cpg.void) == (5, "nearest")
    trained = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(value, trained[name]) for name, value in loaded.state_dict().items())
    cli.main(["validate", *words, f"--ckpt_path={path}"])


def test_a_python_made_checkpoint_loads_back(tmp_path) -> None:
    ours = module(
        pixel_loss=LossMaxPooling(1.3, 0.2), lambda_cpg=0.4, kernel_size=7, normalize=True
    )
    again = CPGModule.load_from_checkpoint(
        saved(ours, tmp_path),
        network=TinyNet(8),
        pixel_loss=LossMaxPooling(1.3, 0.2),
        weights_only=True,
    )
    assert (again.lambda_cpg, again.cpg.kernel_size, again.cpg.normalize) == (0.4, 7, True)
    assert isinstance(again.loss, LossMaxPooling)
    assert all(torch.equal(v, ours.state_dict()[k]) for k, v in again.state_dict().items())


def test_the_default_loss_of_pixels_is_cross_entropy() -> None:
    ours = module(ignore_index=7)
    assert isinstance(ours.loss, CrossEntropy)
    assert ours.loss.ignore_index == ours.cpg.ignore_index == 7


# Settings


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"lambda_cpg": -0.1}, "lambda_cpg"),
        ({"lambda_cpg": math.nan}, "lambda_cpg"),
        ({"kernel_size": 4}, "3, 5 or 7, not 4"),
        ({"void": "lenient"}, "lenient"),
    ],
)
def test_wrong_settings_are_told_at_once(options, told) -> None:
    with pytest.raises(SetupError, match=told):
        module(**options)


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("--model.kernel_size=4", "kernel_size"),
        ("--model.void=lenient", "lenient"),
        ("--model.lambda_cpg=-1", "lambda_cpg must be at least 0"),
        ("--model.pixel_loss=LossMaxPoling", "LossMaxPoling"),
        ("--model.pixel_loss.p=0.5", "p of loss max-pooling must lie in [1, inf], not 0.5"),
    ],
)
def test_wrong_settings_on_the_command_line_are_one_message(
    word, told, tmp_path, capsys, monkeypatch
) -> None:
    words = ["cli.py", "fit", *WORDS, f"--trainer.default_root_dir={tmp_path}"]
    if "pixel_loss." in word:
        words.append("--model.pixel_loss=LossMaxPooling")
    monkeypatch.setattr(sys, "argv", [*words, word])
    with pytest.raises(SystemExit) as stop:
        cli.run()
    message = capsys.readouterr().err
    if isinstance(stop.value.code, str):
        message = stop.value.code  # what Python prints on leaving
    assert stop.value.code not in (0, None)
    assert told in message
    assert "Traceback" not in message
    assert len(message) < 700
