"""ASMLModule against a plain loop in float64: two torch optimizers, gradients asked for by name."""

from __future__ import annotations

import math
from copy import deepcopy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from plain_steps import ADAM, SGD, THREE, Player, compare, moved, of_images, same_weights
from small_runs import cut_labels, fit, scenes, tiny
from tiny import TinyNet

from lightning_seg import ASMLModule, CrossEntropyModule, SetupError
from lightning_seg.networks import StructureAnalyzer


def module(classes=8, aux=False, **options):
    torch.manual_seed(0)
    options = {"opponent_optimizer": SGD, "optimizer": SGD, **options}
    return ASMLModule(TinyNet(classes, aux=aux, dropout=0.0), num_classes=classes, **options)


# The reference


def unit(features):
    return features * features.square().sum(1, keepdim=True).clamp(min=1e-12).rsqrt()


def one_hot(labels, classes):
    valid = labels != 255
    return (F.one_hot(labels.where(valid, 0), classes) * valid[..., None]).movedim(-1, 1).double()


def seen_void(void, times):
    """Void spreads through every stride: a place counts it if one of its 3x3 pixels is void."""
    for _ in range(times):
        void = (F.conv2d(void, torch.ones(1, 1, 3, 3).to(void), stride=2, padding=1) > 0).double()
    return void[:, 0] > 0


class Reference:
    """The step of the method: what it logs, and both networks afterwards."""

    def __init__(self, ours, optimizers=(SGD, SGD), steps=3, *, lambda_pixel=1.0, lambda_asm=1.0,
                 lambda_adv=0.012, lambda_rec=1.0, order="analyzer_first", mode="hinge",
                 margin=0.8, single_channel=False, reference_mean=False, decay_steps=None,
                 lambda_aux=0.4):  # fmt: skip
        self.segmenter = Player(ours.network, optimizers[0])
        self.analyzer = Player(ours.analyzer, optimizers[1])
        self.network, self.opponent = self.segmenter.network, self.analyzer.network
        self.classes = ours.num_classes
        self.weights = SimpleNamespace(
            pixel=lambda_pixel, asm=lambda_asm, adv=lambda_adv, rec=lambda_rec, aux=lambda_aux
        )
        self.order, self.mode, self.margin = order, mode, margin
        self.single_channel, self.reference_mean = single_channel, reference_mean
        self.length, self.iteration = decay_steps or steps, 0

    def encode(self, maps):
        return maps[:, 1:2] if self.single_channel else maps

    def mean_over_places(self, maps, others, target, value):
        total = 0.0
        both = (self.opponent.features(self.encode(each)) for each in (maps, others))
        for tap, a, b in zip(self.opponent.taps, *both, strict=True):
            void = seen_void((target == 255)[:, None].double(), tap)
            a, b = (each * ~void[:, None] for each in (a, b))
            if self.mode == "hinge":
                a, b = unit(a), unit(b)
            values = value((a - b).square().sum(1))
            values = values.flatten() if self.reference_mean else values[~void]
            total = total + values.sum() / max(len(values), 1)
        return total

    def matching(self, truth, soft, target):
        distance = self.mean_over_places(truth, soft, target, lambda d: d)
        return distance if self.mode == "hinge" else distance / 2

    def analyzer_losses(self, truth, soft, target):
        if self.mode == "hinge":
            negative = one_hot(soft.argmax(1), self.classes)
            told = self.mean_over_places(
                truth, negative, target, lambda d: (self.margin - d).clamp(min=0)
            )
        else:
            told = -self.matching(truth, soft, target)
        rebuilt, valid = self.opponent(self.encode(truth))[1], target != 255
        if self.single_channel:
            rebuilt = rebuilt[:, 0][valid]
            rec = F.binary_cross_entropy_with_logits(rebuilt, (target[valid] == 1).double())
        else:
            rec = F.cross_entropy(rebuilt, target, ignore_index=255)
        return told, rec

    def prepared(self, told, rec):
        """The analyzer's step, as something to call; gradients are those of now."""
        weight = self.weights.adv * 10 ** -min(1.0, self.iteration / self.length)
        gradients = self.analyzer.gradients(weight * told + self.weights.rec * rec)
        return lambda: self.analyzer.step(gradients)

    def step(self, batch):
        target = batch["mask"]
        found = of_images(self.network, batch["image"])
        soft, truth = found["out"].softmax(1), one_hot(target, self.classes)
        pixel = F.cross_entropy(found["out"], target, ignore_index=255)
        if "aux" in found:
            aux = F.cross_entropy(found["aux"], target, ignore_index=255)
            pixel = pixel + self.weights.aux * aux
        told, rec = self.analyzer_losses(truth, soft.detach(), target)
        step_analyzer = self.prepared(told, rec)
        if self.order == "analyzer_first":
            step_analyzer()
        match = self.matching(truth, soft, target)
        loss = self.weights.pixel * pixel + self.weights.asm * match
        self.segmenter.step(self.segmenter.gradients(loss))
        if self.order == "simultaneous":
            step_analyzer()
        self.iteration += 1
        row = {"loss": loss, "loss_pixel": pixel, "loss_match": match, "loss_rec": rec}
        if self.mode == "hinge":
            row["loss_hinge"] = told
            assert 0 < told < self.margin * len(self.opponent.taps)  # or it would show little
        return {name: value.item() for name, value in row.items()}


# The whole step


@pytest.mark.parametrize("order", ["analyzer_first", "simultaneous"])
@pytest.mark.parametrize("mode", ["hinge", "literal"])
@pytest.mark.parametrize("reference_mean", [False, True])
def test_three_steps_equal_the_plain_loop(tmp_path, reference_mean, mode, order) -> None:
    # weights that let every term be seen
    options = {"order": order, "mode": mode, "reference_mean": reference_mean}
    options |= {"lambda_adv": 0.5, "lambda_asm": 2.0, "lambda_rec": 0.3, "lambda_pixel": 0.7}
    ours = module(**options)
    compare(ours, Reference(ours, **options), tmp_path, change=cut_labels)


@pytest.mark.parametrize("order", ["analyzer_first", "simultaneous"])
def test_three_steps_of_adam(tmp_path, order) -> None:
    ours = module(optimizer=ADAM, opponent_optimizer=ADAM, order=order, lambda_adv=0.5)
    reference = Reference(ours, (ADAM, ADAM), order=order, lambda_adv=0.5)
    compare(ours, reference, tmp_path, change=cut_labels)


@pytest.mark.parametrize(
    "options",
    [{}, {"lambda_pixel": 0.0}, {"lambda_rec": 0.0}, {"lambda_adv": 0.5, "decay_steps": 2},
     {"lambda_adv": 0.5, "decay_steps": 50}, {"lambda_adv": 0.5, "margin": 0.2}],
)  # fmt: skip
def test_three_steps_with_other_weights(tmp_path, options) -> None:
    ours = module(**options)
    compare(ours, Reference(ours, **options), tmp_path, change=cut_labels)


@pytest.mark.parametrize("taps", [(1,), (1, 2, 3)])
def test_three_steps_with_other_taps(tmp_path, taps) -> None:
    ours = module(analyzer=partial(StructureAnalyzer, taps=taps, widths=(4, 6, 8)), lambda_adv=1.0)
    compare(ours, Reference(ours, lambda_adv=1.0), tmp_path, change=cut_labels)


def test_auxiliary_logits_are_pixels_only(tmp_path) -> None:
    ours = module(aux=True, lambda_aux=0.3)
    compare(ours, Reference(ours, lambda_aux=0.3), tmp_path, change=cut_labels)


def foreground(batch):
    """Two classes: sky and what is not, and the same void."""
    cut_labels(batch)
    mask = batch["mask"]
    mask.copy_(torch.where(mask == 255, 255, (mask > 0).long()))


@pytest.mark.parametrize("single_channel", [False, True])
def test_three_steps_of_two_classes(tmp_path, single_channel) -> None:
    options = {"single_channel": single_channel, "lambda_adv": 0.5}
    ours = module(2, **options)
    assert ours.analyzer.encoder[0].in_channels == (1 if single_channel else 2)
    compare(ours, Reference(ours, **options), tmp_path, change=foreground)


def test_another_void_id(tmp_path) -> None:
    nets = []
    for void in (255, -1):

        def change(batch, void=void):
            cut_labels(batch)
            batch["mask"][batch["mask"] == 255] = void

        ours = module(ignore_index=void, lambda_adv=0.5)
        fit(ours, tmp_path, change=change, **THREE)
        nets.append(ours.state_dict())
    assert all(torch.equal(value, nets[1][name]) for name, value in nets[0].items())


def test_the_labelled_group_of_a_semi_supervised_batch(tmp_path) -> None:
    ours = module()
    reference = Reference(ours)
    data = scenes(
        batch_size=2, unlabeled_batch_size=3, labeled="1/4", splits_dir=str(tmp_path / "splits")
    )
    seen, kept = fit(ours, tmp_path, data, **THREE)
    for step, (batch, _) in enumerate(seen.seen):
        expected = reference.step(batch["labeled"])
        assert kept.rows[step]["train/loss"] == pytest.approx(expected["loss"], rel=1e-5)
    same_weights(ours.network, reference.network)


def test_one_sgd_for_the_analyzer_equals_the_authors_two(tmp_path) -> None:
    """Momentum is linear in the gradient: one optimizer per term, with the same settings."""
    ours = module(lambda_adv=0.5)
    reference = Reference(ours, lambda_adv=0.5)
    analyzer = reference.analyzer
    first, second = SGD(analyzer.parameters), SGD(analyzer.parameters)

    def prepared(told, rec):
        weight = 0.5 * 10 ** -(reference.iteration / 3)
        adversarial, rebuilding = analyzer.gradients(weight * told), analyzer.gradients(rec)
        return lambda: (analyzer.step(adversarial, first), analyzer.step(rebuilding, second))

    reference.prepared = prepared
    compare(ours, reference, tmp_path, change=cut_labels)


# What changes when


@pytest.mark.parametrize(
    "options",
    [{"lambda_asm": 0.0}, {"lambda_asm": 0.0, "lambda_adv": 0.0, "lambda_rec": 0.0}],
)
def test_without_matching_it_is_bit_identical_to_cross_entropy(tmp_path, options) -> None:
    nets = []
    for kind, settings in ((ASMLModule, options), (CrossEntropyModule, {})):
        ours = tiny(kind, dropout=0.2, aux=True, **settings)
        before = deepcopy(ours.state_dict())
        torch.manual_seed(1)
        fit(ours, tmp_path, change=cut_labels, **THREE)
        nets.append(ours.network.state_dict())
        for name, value in ours.state_dict().items():
            assert not name.startswith("analyzer") or torch.equal(value, before[name])
    for name, value in nets[1].items():
        assert torch.equal(nets[0][name], value), name


@pytest.mark.parametrize("order", ["analyzer_first", "simultaneous"])
def test_each_player_steps_with_its_own_optimizer(tmp_path, order) -> None:
    assert moved(module(order=order), tmp_path) == [True, True]
    assert moved(module(order=order, lr=0.0), tmp_path) == [False, True]
    assert moved(module(order=order, opponent_lr=0.0), tmp_path) == [True, False]
    still = {"lambda_adv": 0.0, "lambda_rec": 0.0}
    assert moved(module(order=order, **still), tmp_path) == [True, False]


def test_the_decoder_learns_from_the_reconstruction_alone(tmp_path) -> None:
    ours = module(lambda_rec=0.0, lambda_adv=1.0)
    before = deepcopy(ours.analyzer)
    fit(ours, tmp_path, **THREE)
    learnt = [
        not torch.equal(a, b)
        for a, b in zip(before.parameters(), ours.analyzer.parameters(), strict=True)
    ]
    assert learnt == [True] * 4 + [False] * (len(learnt) - 4)  # blocks 1 and 2


def predictions():
    torch.manual_seed(1)
    target = torch.randint(8, (2, 24, 24))
    target[0, 3:8] = 255
    logits = torch.randn(2, 8, 24, 24, requires_grad=True)
    ours = module()
    ours.adversarial_weight = lambda: 1.0
    truth = one_hot(target, 8).float()
    return ours, logits, target, truth, ours.analyzer.valid(target != 255)


def test_matching_leaves_the_analyzer_alone() -> None:
    ours, logits, _, truth, valid = predictions()
    for features in (None, [each.detach() for each in ours.analyzer.features(truth)]):
        ours.matching_loss(logits, truth, valid, features).backward()
        assert (logits.grad != 0).any()
        assert all(each.grad is None for each in ours.analyzer.parameters())
        assert all(each.requires_grad for each in ours.analyzer.parameters())


@pytest.mark.parametrize("mode", ["hinge", "literal"])
def test_the_analyzers_loss_leaves_the_segmenter_alone(mode) -> None:
    ours, logits, target, truth, valid = predictions()
    ours.mode = mode
    loss, terms, features = ours.analyzer_loss(logits.detach(), target, truth, valid)
    assert not any(each.requires_grad for each in [*terms.values(), *features])
    loss.backward()
    assert logits.grad is None
    assert all(each.grad is None for each in ours.network.parameters())
    assert all((each.grad != 0).any() for each in ours.analyzer.parameters())


def test_nothing_of_the_analyzer_is_needed_to_predict(tmp_path) -> None:
    ours = module()
    ours.analyzer.forward = ours.analyzer.features = None
    image = torch.randint(256, (1, 3, 24, 24), dtype=torch.uint8)
    assert ours.eval()(image).shape == (1, 8, 24, 24)


# The weight of the analyzer's gain


@pytest.mark.parametrize(
    ("iteration", "share"),
    [(0, 1.0), (10, 10**-0.1), (50, 10**-0.5), (100, 0.1), (101, 0.1), (400, 0.1)],
)
@pytest.mark.parametrize("given", [True, False])
def test_the_weight_falls_to_a_tenth(iteration, share, given) -> None:
    ours = module(lambda_adv=0.012, decay_steps=100 if given else None)
    ours.trainer = SimpleNamespace(
        global_step=iteration, estimated_stepping_batches=7 if given else 100
    )
    assert ours.adversarial_weight() == pytest.approx(0.012 * share, rel=1e-12)


def test_a_training_without_end_needs_the_length_of_the_fall(tmp_path) -> None:
    endless = {"max_steps": -1, "max_epochs": -1, "limit_train_batches": 1}
    with pytest.raises(SetupError, match="decay_steps"):
        fit(module(), tmp_path, **endless)


# Batches and settings that are at the edge


@pytest.mark.parametrize("order", ["analyzer_first", "simultaneous"])
@pytest.mark.parametrize("options", [{}, {"reference_mean": True}, {"mode": "literal"}])
def test_a_batch_without_labels_trains_nothing(tmp_path, options, order) -> None:
    ours = module(order=order, **options)
    before = deepcopy((ours.network, ours.analyzer))
    _, kept = fit(ours, tmp_path, change=lambda batch: batch["mask"].fill_(255), **THREE)
    for row in kept.rows.values():
        assert row["train/loss"] == row["train/loss_match"] == row["train/loss_rec"] == 0
        if "mode" not in options:
            hinge = 1.6 if "reference_mean" in options else 0.0
            assert row["train/loss_hinge"] == pytest.approx(hinge)
    for old, new in zip(before, (ours.network, ours.analyzer), strict=True):
        for a, b in zip(old.parameters(), new.parameters(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("mode", ["hinge", "literal"])
def test_crops_whose_sides_are_odd(tmp_path, mode) -> None:
    options = {"mode": mode, "lambda_adv": 0.5}
    ours = module(**options)
    compare(ours, Reference(ours, **options), tmp_path, scenes(crop_size=27))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        *(
            ({name: value}, name)
            for name in ("lambda_pixel", "lambda_asm", "lambda_adv", "lambda_rec")
            for value in (-0.1, math.nan, math.inf)
        ),
        ({"margin": -1.0}, "margin"),
        ({"margin": 4.1}, "margin"),
        ({"margin": 0.0}, "margin"),
        ({"decay_steps": 0}, "decay_steps"),
        ({"single_channel": True, "classes": 3}, "single_channel .* not 3"),
        ({"analyzer": StructureAnalyzer(5)}, "StructureAnalyzer .* 8 channels"),
        ({"analyzer": lambda channels: StructureAnalyzer(channels - 1)}, "8 channels"),
        ({"order": "segmenter_first"}, "order"),
        ({"mode": "unbounded"}, "mode"),
    ],
)
def test_wrong_settings_are_told_at_once(options, told) -> None:
    with pytest.raises(SetupError, match=told):
        module(**options)


# Precision


class _Knows(torch.nn.Module):
    """Predicts what it was told, as surely as softmax can."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.labels = torch.nn.Parameter(torch.ones(())), None

    def forward(self, image):
        return 1e4 * one_hot(self.labels, 8).to(image.dtype) * self.weight


@pytest.mark.parametrize("order", ["analyzer_first", "simultaneous"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_truth_matches_itself_however_fast_the_analyzer_changes(
    tmp_path, precision, order
) -> None:
    """Both maps have to meet the same weights, also those that autocast keeps in half precision."""
    torch.manual_seed(0)
    options = {"order": order, "opponent_optimizer": SGD, "opponent_lr": 1.0, "lambda_adv": 1.0}
    network = _Knows()
    ours = ASMLModule(network, num_classes=8, optimizer=SGD, **options)

    def tell(batch):
        cut_labels(batch)
        network.labels = batch["mask"]

    before = deepcopy(ours.analyzer)
    _, kept = fit(ours, tmp_path, change=tell, precision=precision)
    assert not torch.equal(before.encoder[0].weight, ours.analyzer.encoder[0].weight)
    assert kept.rows[0]["train/loss_match"] == 0
