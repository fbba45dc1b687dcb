"""LMPModule against the closed form of the pooled loss and plain cross-entropies."""

from __future__ import annotations

import math
import sys
from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_runs import SMALL_WORDS, cut_labels, fit, outputs, saved, scenes, tiny
from tiny import TinyNet

import cli
from lightning_seg import CrossEntropyModule, LMPModule, SetupError

WORDS = [*SMALL_WORDS, "--model=LMPModule"]


def module(kind=LMPModule, **options):
    return tiny(kind, **options)


def pooled(losses: np.ndarray, p: float, ratio: float) -> tuple[float, np.ndarray]:
    """The optimum and its weights, by bisection on the loss at which the cap is reached."""
    n, m, q = len(losses), max(1.0, ratio * len(losses)), p / (p - 1)
    low, high = 0.0, losses.max() * (n / m) ** (1 / q)
    for _ in range(100):
        middle = (low + high) / 2
        enough = np.minimum(1, (losses / middle) ** q).sum() > m
        low, high = (middle, high) if enough else (low, middle)
    tau = n ** (-1 / q) * m ** (-1 / p)
    weights = tau * np.minimum(1, (losses / high) ** (q - 1))
    return (weights * losses).sum(), weights


def expected_loss(logits, target, p=1.7, ratio=0.3, per_image=True, **options) -> float:
    losses = F.cross_entropy(
        logits.double(), target, ignore_index=255, reduction="none", **options
    ).numpy()
    groups = zip(losses, target, strict=True) if per_image else [(losses, target)]
    kept = [each[(labels != 255).numpy()] for each, labels in groups]
    return float(np.mean([pooled(each, p, ratio)[0] for each in kept if len(each)]))


@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("aux", [False, True])
@pytest.mark.parametrize("p", [1.2, 1.7])
def test_the_loss_of_a_step_is_each_heads_optimum(tmp_path, p, aux, per_image) -> None:
    options = {"p": p, "ratio": 0.4, "per_image": per_image}
    ours = module(aux=aux, lambda_aux=0.3, **options)
    seen, kept = fit(ours, tmp_path, change=cut_labels)
    heads, target = outputs(seen.seen[0])
    parts = {name: expected_loss(logits, target, **options) for name, logits in heads.items()}
    row = kept.rows[0]
    assert row["train/loss"] == pytest.approx(parts["out"] + 0.3 * parts.get("aux", 0), rel=1e-5)
    if aux:
        assert row["train/loss_main"] == pytest.approx(parts["out"], rel=1e-5)
        assert row["train/loss_aux"] == pytest.approx(parts["aux"], rel=1e-5)


def test_class_weights_and_smoothing_reach_the_loss(tmp_path) -> None:
    weights = [1.0, 0.5, 2.0, 1.0, 3.0, 1.0, 1.0, 0.1]
    ours = module(class_weights=weights, label_smoothing=0.1)
    seen, kept = fit(ours, tmp_path)
    heads, target = outputs(seen.seen[0])
    expected = expected_loss(
        heads["out"], target, weight=torch.tensor(weights).double(), label_smoothing=0.1
    )
    assert kept.rows[0]["train/loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("options", [{"ratio": 1.0}, {"p": math.inf}, {"p": 1.0, "ratio": 1.0}])
def test_the_plain_mean_of_a_batch_trains_bit_for_bit_like_cross_entropy(tmp_path, options) -> None:
    """The values may round otherwise, the gradients do not: 1 / n for each pixel.

    The auxiliary weight is a power of two, because 0.4 / n is not always 0.4 * (1 / n) in floats.
    """
    nets = []
    for kind, extra in ((LMPModule, {"per_image": False, **options}), (CrossEntropyModule, {})):
        ours = module(kind, aux=True, lambda_aux=0.5, **extra)
        fit(ours, tmp_path, change=cut_labels, max_steps=3, max_epochs=-1)
        nets.append(ours.network.state_dict())
    for name, value in nets[1].items():
        assert torch.equal(nets[0][name], value), name


def test_what_is_logged_says_where_the_loss_looks(tmp_path) -> None:
    names = [f"name {index}" for index in range(8)]
    ours = module(class_names=names)
    seen, kept = fit(ours, tmp_path, change=cut_labels)
    heads, target = outputs(seen.seen[0])
    row, valid = kept.rows[0], target != 255
    cross_entropy = F.cross_entropy(heads["out"], target, ignore_index=255)
    assert row["train/loss_ce"] == pytest.approx(cross_entropy.item(), rel=1e-5)
    losses = F.cross_entropy(heads["out"].double(), target, ignore_index=255, reduction="none")
    weights = torch.zeros_like(losses)
    for image in (0, 2, 3):
        _, found = pooled(losses[image][valid[image]].numpy(), 1.7, 0.3)
        weights[image][valid[image]] = torch.from_numpy(found)
    support = weights.sum() ** 2 / weights.square().sum() / valid.sum()
    assert row["train/support"] == pytest.approx(support.item(), rel=1e-4)
    assert 0 < row["train/support"] <= 1
    for index, name in enumerate(names):
        share = weights[target == index].sum() / weights.sum()
        assert row[f"train/weight/{name}"] == pytest.approx(share.item(), rel=1e-4, abs=1e-7)
        pixels = (target == index).sum() / valid.sum()
        assert row[f"train/pixels/{name}"] == pytest.approx(pixels.item(), rel=1e-5)
    assert sum(v for k, v in row.items() if k.startswith("train/weight/")) == pytest.approx(1)


def test_it_is_computed_at_the_steps_that_are_logged_only(tmp_path, monkeypatch) -> None:
    ours, steps = module(), []
    look = LMPModule.attention

    def counted(self, *args):
        steps.append(self.trainer.global_step)
        return look(self, *args)

    monkeypatch.setattr(LMPModule, "attention", counted)
    _, kept = fit(ours, tmp_path, max_steps=8, max_epochs=-1, log_every_n_steps=3)
    assert steps == [2, 5]
    for step, row in kept.rows.items():
        assert step in (2, 5)
        assert {"train/loss", "train/loss_ce", "train/support"} <= set(row)


def test_the_labelled_group_of_a_semi_supervised_batch(tmp_path) -> None:
    data = scenes(
        batch_size=2, unlabeled_batch_size=3, labeled="1/4", splits_dir=str(tmp_path / "splits")
    )
    seen, kept = fit(module(), tmp_path, data)
    batch, network = seen.seen[0]
    assert set(batch) == {"labeled", "unlabeled"}
    heads, target = outputs((batch["labeled"], network))
    assert kept.rows[0]["train/loss"] == pytest.approx(
        expected_loss(heads["out"], target), rel=1e-5
    )


# The picture


def test_weight_map_is_in_multiples_of_the_uniform_weight() -> None:
    image = torch.randint(0, 256, (3, 3, 10, 12), dtype=torch.uint8)
    target = torch.randint(8, (3, 10, 12))
    cut_labels({"mask": target})
    for per_image in (True, False):
        uniform = module(ratio=1.0, per_image=per_image).eval().weight_map(image, target)
        assert uniform.shape == target.shape
        assert (uniform[target == 255] == 0).all()
        torch.testing.assert_close(uniform[target != 255], torch.ones(int((target != 255).sum())))

        ours = module(p=1.3, ratio=0.2, per_image=per_image).eval()
        with torch.no_grad():
            losses = F.cross_entropy(ours(image), target, ignore_index=255, reduction="none")
        found, valid = ours.weight_map(image, target), target != 255
        assert (found[~valid] == 0).all()
        groups = [0, 2] if per_image else [slice(None)]
        for group in groups:
            each = losses[group][valid[group]].double().numpy()
            _, weights = pooled(each, 1.3, 0.2)
            expected = torch.from_numpy(weights * len(weights)).float()
            torch.testing.assert_close(found[group][valid[group]], expected, rtol=1e-4, atol=1e-5)


def test_weight_map_leaves_the_module_as_it_was() -> None:
    ours = module()
    before = deepcopy(ours.state_dict())
    image = torch.randint(0, 256, (2, 3, 10, 12), dtype=torch.uint8)
    ours.eval()
    found = ours.weight_map(image, torch.randint(8, (2, 10, 12)))
    assert not found.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())


# Settings


@pytest.mark.parametrize("options", [
    {"p": 0.5}, {"p": math.nan}, {"ratio": 0.0}, {"ratio": 1.5},
    {"class_weights": [1.0, 2.0]}, {"label_smoothing": 1.5}, {"label_smoothing": -0.1},
])  # fmt: skip
def test_wrong_settings_are_told_at_once(options) -> None:
    with pytest.raises(SetupError):
        module(**options)


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("--model.p=0.5", "p of loss max-pooling must lie in [1, inf], not 0.5"),
        ("--model.ratio=0", "ratio of loss max-pooling must lie in (0, 1], not 0"),
        ("--model.ratio=1.1", "not 1.1"),
        ("--model.ratio=.nan", "not nan"),
        ("--model.p=steep", "steep"),
        ("--model.class_weights=[1,2]", "2 class_weights for 8 classes"),
    ],
)
def test_wrong_settings_on_the_command_line_are_one_message(
    word, told, tmp_path, capsys, monkeypatch
) -> None:
    words = ["cli.py", "fit", *WORDS, f"--trainer.default_root_dir={tmp_path}", word]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stop:
        cli.run()
    message = capsys.readouterr().err
    if isinstance(stop.value.code, str):
        message = stop.value.code  # what Python prints on leaving
    assert stop.value.code not in (0, None)
    assert told in message
    assert "Traceback" not in message
    assert len(message) < 700


def test_the_command_trains_and_its_checkpoint_loads_back(tmp_path) -> None:
    words = [*WORDS, f"--trainer.default_root_dir={tmp_path}", "--trainer.max_epochs=1"]
    cli.main(["fit", *words, "--model.p=1.3", "--model.ratio=0.25", "--model.lr=0.01"])
    (path,) = tmp_path.rglob("*.ckpt")
    loaded = LMPModule.load_from_checkpoint(path, weights_only=True)
    assert (loaded.loss.p, loaded.loss.ratio) == (1.3, 0.25)
    trained = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(value, trained[name]) for name, value in loaded.state_dict().items())
    cli.main(["validate", *words, f"--ckpt_path={path}"])


@pytest.mark.parametrize("word", ["inf", ".inf"])
def test_an_infinite_norm_goes_through_the_command_and_a_checkpoint(tmp_path, word) -> None:
    words = [*WORDS, f"--trainer.default_root_dir={tmp_path}", "--trainer.max_epochs=1"]
    cli.main(["fit", *words, f"--model.p={word}"])
    (path,) = tmp_path.rglob("*.ckpt")
    assert LMPModule.load_from_checkpoint(path, weights_only=True).loss.p == math.inf


def test_a_python_made_checkpoint_loads_back(tmp_path) -> None:
    ours = module(p=1.4, ratio=0.2, per_image=False)
    again = LMPModule.load_from_checkpoint(
        saved(ours, tmp_path), network=TinyNet(8), weights_only=True
    )
    assert (again.loss.p, again.loss.ratio, again.loss.per_image) == (1.4, 0.2, False)
    assert all(torch.equal(v, ours.state_dict()[k]) for k, v in again.state_dict().items())


def test_the_loss_in_another_method_takes_inf_too(tmp_path) -> None:
    words = [*SMALL_WORDS, "--model=CPGModule", "--model.pixel_loss=LossMaxPooling"]
    words += ["--model.pixel_loss.p=inf", f"--trainer.default_root_dir={tmp_path}"]
    assert cli.main(["fit", *words, "--trainer.max_steps=1"]).model.loss.p == math.inf
