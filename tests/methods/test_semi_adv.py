"""SemiAdvModule against a plain loop in float64: two torch optimizers, gradients asked by name."""

from __future__ import annotations

import contextlib
import math
import warnings
from copy import deepcopy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import yaml
from places import ROOT
from plain_steps import ADAM, SGD, THREE, Player, compare, moved, of_images
from small_runs import cut_labels, fit, quiet_trainer, scenes, tiny
from tiny import TinyNet
from torch import nn

import cli
from lightning_seg import CrossEntropyModule, SemiAdvModule, SetupError
from lightning_seg.networks import FCDiscriminator, PSPNet, StructureAnalyzer
from lightning_seg.training import discriminator_watch
from lightning_seg.training.discriminator_watch import DiscriminatorWatch
from lightning_seg.training.starts import first_iteration

CLASSES = 8
SMALL_D = partial(FCDiscriminator, width=4)
# so that every term and every step is seen
WEIGHTS = {"lambda_adv": 0.5, "lambda_semi": 0.4, "lambda_semi_adv": 0.3, "t_semi": 0.5}
ZERO = {"lambda_adv": 0.0, "lambda_semi": 0.0, "lambda_semi_adv": 0.0}


def module(aux=False, **options):
    torch.manual_seed(0)
    options = {"opponent_optimizer": SGD, "optimizer": SGD, "discriminator": SMALL_D, **options}
    network = TinyNet(CLASSES, aux=aux, dropout=0.0)
    ours = SemiAdvModule(network, num_classes=CLASSES, **options)
    with torch.no_grad():  # a discriminator with opinions: scores of both signs
        for layer in ours.discriminator.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight *= 2.5
    return ours


def semi_scenes(folder, **options):
    """Crops larger than the images, with padding; two by two scores."""
    sizes = {"batch_size": 2, "unlabeled_batch_size": 3, "labeled_real_batch_size": 2}
    sizes |= {"image_size": (64, 80), "crop_size": 72, "labeled": "1/4"}
    return scenes(**{**sizes, "splits_dir": str(folder / "splits"), **options})


def cut_both(batch):
    cut_labels(batch["labeled"])
    if "labeled_real" in batch:
        batch["labeled_real"]["mask"][0, 30:50] = 255


# The reference


def masked(losses, valid):
    return losses[valid].sum() / max(int(valid.sum()), 1)


def bce(scores, label, valid):
    losses = F.binary_cross_entropy_with_logits(
        scores, torch.full_like(scores, float(label)), reduction="none"
    )
    return masked(losses, valid)


def cross_entropy(logits, labels):
    losses = F.cross_entropy(logits, labels, ignore_index=255, reduction="none")
    return masked(losses, labels != 255)


class Reference:
    """The step of the method: what it logs, and both networks afterwards."""

    def __init__(self, ours, optimizers=(SGD, SGD), *, lambda_adv=0.01, lambda_semi=0.1,
                 lambda_semi_adv=0.001, t_semi=0.2, semi_start=1, semi_start_adv=0,
                 train_discriminator_on_unlabeled=True, reference_padding=False,
                 joint_forward=False, aux=False, lambda_aux=0.4, strong_view=False,
                 softmax_threshold=None, ema_decay=0.0):  # fmt: skip
        self.players = [
            Player(network, make)
            for network, make in zip((ours.network, ours.discriminator), optimizers, strict=True)
        ]
        self.network, self.opponent = (each.network for each in self.players)
        self.adv, self.semi, self.semi_adv = lambda_adv, lambda_semi, lambda_semi_adv
        self.aux, self.t_semi, self.iteration = lambda_aux, t_semi, 0
        self.semi_start, self.semi_start_adv = semi_start, semi_start_adv
        self.shows_unlabeled = train_discriminator_on_unlabeled
        self.reference_padding, self.joint = reference_padding, joint_forward
        self.selected = []
        self.strong, self.sure, self.decay = strong_view, softmax_threshold, ema_decay
        self.mean = deepcopy(self.network).eval()

    def move_mean(self):
        old, new = self.mean.state_dict(), self.network.state_dict()
        for name, value in new.items():
            kept = self.decay * old[name] + (1 - self.decay) * value
            old[name].copy_(kept if value.is_floating_point() else value)

    def pseudo_labels(self, logits, image, known):
        """Class ids of the network or of its mean where they are trusted, else void."""
        with torch.no_grad():
            named = of_images(self.mean, image)["out"] if self.decay else logits.detach()
            trust, least = self.scores(named.softmax(1)).sigmoid(), self.t_semi
            if self.sure is not None:
                trust, least = named.softmax(1).amax(1), self.sure
            return named.argmax(1).where((trust >= least) & known, 255)

    def scores(self, maps):
        low = self.opponent(maps)
        return F.interpolate(low, maps.shape[-2:], mode="bilinear", align_corners=True)[:, 0]

    def outputs(self, image, unlabeled, strong):
        """All outputs of labelled images, the main ones of the others and of their second views."""
        if unlabeled is None:
            return of_images(self.network, image), None, None
        if self.joint:
            together = of_images(self.network, torch.cat([image, unlabeled]))
            ours = {name: each[: len(image)] for name, each in together.items()}
            theirs = together["out"][len(image) :]
        else:
            theirs = of_images(self.network, unlabeled)["out"]
        learns = theirs if strong is None else of_images(self.network, strong)["out"]
        return ours if self.joint else of_images(self.network, image), theirs, learns

    def step(self, batch):
        labeled, unlabeled = batch.get("labeled", batch), batch.get("unlabeled")
        target = labeled["mask"]
        ok = target != 255
        due = (self.semi and self.iteration >= self.semi_start) or (
            self.semi_adv and self.iteration >= self.semi_start_adv
        )
        used = unlabeled is not None and (self.shows_unlabeled or due)
        images = unlabeled["image"] if used else None
        semi = used and self.semi and self.iteration >= self.semi_start
        strong = unlabeled["image_strong"] if semi and self.strong else None
        outputs, theirs, learns = self.outputs(labeled["image"], images, strong)
        ours = outputs["out"]
        row = {"loss": cross_entropy(ours, target)}
        if "aux" in outputs:
            row["loss"] = row["loss"] + self.aux * cross_entropy(outputs["aux"], target)
        row["loss_adv"] = bce(self.scores(ours.softmax(1)), 1, ok)
        loss = row["loss"] + self.adv * row["loss_adv"]
        fake = [(ours, ok)]
        if theirs is not None:
            known = unlabeled["valid"] | self.reference_padding
            scores = self.scores(theirs.softmax(1))
            if self.iteration >= self.semi_start_adv and self.semi_adv:
                row["loss_semi_adv"] = bce(scores, 1, known)
                loss = loss + self.semi_adv * row["loss_semi_adv"]
            labels = self.pseudo_labels(theirs, images, known)
            self.selected.append((labels != 255).sum().item() / known.sum().item())
            row["selected"] = torch.tensor(self.selected[-1])
            if semi:
                row["loss_semi"] = cross_entropy(learns, labels)
                if self.strong:  # the mean over all pixels that are not padding
                    row["loss_semi"] = row["loss_semi"] * self.selected[-1]
                loss = loss + self.semi * row["loss_semi"]
            if self.shows_unlabeled:
                fake.append((theirs, known))
        row["loss"] = loss
        # the discriminator sees the segmenter as it was before its step
        real = batch.get("labeled_real", labeled)["mask"]
        valid = real != 255
        labels = F.one_hot(real.where(valid, 0), CLASSES) * valid[..., None]
        of_real = self.scores(labels.movedim(-1, 1).double())
        of_fake = torch.cat([self.scores(each.detach().softmax(1)) for each, _ in fake])
        of_whom = torch.cat([each for _, each in fake])
        row["loss_d"] = bce(of_fake, 0, of_whom) / 2 + bce(of_real, 1, valid) / 2
        row["d_accuracy_fake"] = masked((of_fake < 0).double(), of_whom)
        row["d_accuracy_real"] = masked((of_real > 0).double(), valid)
        gradients = [
            player.gradients(each)
            for player, each in zip(self.players, (loss, row["loss_d"]), strict=True)
        ]
        for player, found in zip(self.players, gradients, strict=True):
            player.step(found)
        self.move_mean()
        self.iteration += 1
        if not self.adv:
            del row["loss_adv"]
        return {name: value.item() for name, value in row.items()}


def check(
    folder,
    data=None,
    change=cut_both,
    optimizers=(SGD, SGD),
    precision="64-true",
    close=1e-10,
    **options,
):
    """In float64: float32 rounds the gradient of a convolution before a batch norm to 1e-5."""
    ours = module(optimizer=optimizers[0], opponent_optimizer=optimizers[1], **options)
    reference = Reference(ours, optimizers, **options)
    data = data or semi_scenes(folder)
    compare(ours, reference, folder, data, change, close, precision=precision)
    return reference


# The whole step


@pytest.mark.parametrize(
    "options",
    [{}, {"joint_forward": True}, {"reference_padding": True},
     {"train_discriminator_on_unlabeled": False},
     {"joint_forward": True, "reference_padding": True, "train_discriminator_on_unlabeled": False}],
)  # fmt: skip
@pytest.mark.parametrize("optimizers", [(SGD, SGD), (SGD, ADAM), (ADAM, ADAM)])
def test_three_steps_equal_the_plain_loop(tmp_path, optimizers, options) -> None:
    found = check(tmp_path, optimizers=optimizers, semi_start=0, **WEIGHTS, **options)
    assert any(0 < share < 1 for share in found.selected)  # or the threshold would show little


@pytest.mark.parametrize(
    "options",
    [{"strong_view": True}, {"softmax_threshold": 0.2}, {"ema_decay": 0.6},
     {"strong_view": True, "softmax_threshold": 0.2, "ema_decay": 0.9, "joint_forward": True}],
)  # fmt: skip
def test_the_additions_equal_the_plain_loop(tmp_path, options) -> None:
    data = semi_scenes(tmp_path, strong_augmentation="strong")
    found = check(tmp_path, data, semi_start=1, **WEIGHTS, **options)
    assert any(0 < share < 1 for share in found.selected)


def test_without_a_second_view_the_option_to_set_is_named(tmp_path) -> None:
    with pytest.raises(SetupError, match="strong_augmentation=strong"):
        fit(module(strong_view=True, semi_start=0), tmp_path, semi_scenes(tmp_path))


def test_pseudo_labels_by_softmax_need_no_discriminator(tmp_path) -> None:
    """D neither trains nor is logged, and its weights stay as they are."""
    options = {"lambda_adv": 0.0, "lambda_semi_adv": 0.0, "softmax_threshold": 0.2}
    ours = module(semi_start=0, **options)
    before = deepcopy(ours.discriminator.state_dict())
    _, kept = fit(ours, tmp_path, semi_scenes(tmp_path), **THREE)
    assert kept.rows[2]["train/loss_semi"] > 0
    assert 0 < kept.rows[2]["train/selected"] <= 1
    assert "train/loss_d" not in kept.rows[2]
    assert all(
        torch.equal(value, before[name]) for name, value in ours.discriminator.state_dict().items()
    )


def test_the_running_mean_is_resumed(tmp_path) -> None:
    """A run that is resumed after its first step equals one that is not interrupted."""
    means = []
    for steps in ((3,), (1, 3)):
        path = None
        for count in steps:
            ours = module(ema_decay=0.5, semi_start=0, **WEIGHTS)
            trainer = quiet_trainer(tmp_path, max_steps=count, max_epochs=-1)
            trainer.fit(ours, semi_scenes(tmp_path), ckpt_path=path)
            path = tmp_path / "a.ckpt"
            trainer.save_checkpoint(path)
        means.append(ours.teacher.state_dict())
    assert all(torch.equal(value, means[1][name]) for name, value in means[0].items())


@pytest.mark.parametrize("optimizers", [(SGD, SGD), (SGD, ADAM), (ADAM, ADAM)])
def test_three_steps_in_single_precision(tmp_path, optimizers) -> None:
    precise = {"precision": "32-true", "close": 1e-4}
    check(tmp_path, optimizers=optimizers, semi_start=0, **WEIGHTS, **precise)


@pytest.mark.filterwarnings("ignore:the training has 3 iterations")
@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize(("semi_start", "semi_start_adv"), [(1, 2), (2, 1), (0, 3), (3, 0), (9, 9)])
def test_both_losses_of_unlabelled_images_have_their_start(
    tmp_path, semi_start, semi_start_adv, shown
) -> None:
    starts = {"semi_start": semi_start, "semi_start_adv": semi_start_adv}
    check(tmp_path, train_discriminator_on_unlabeled=shown, **starts, **WEIGHTS)


def test_unlabelled_images_that_no_loss_uses_do_not_go_through_the_segmenter(tmp_path) -> None:
    """Until the start even the statistics of batch norms are those of cross-entropy."""
    off = {"semi_start": 2, "semi_start_adv": 2, "train_discriminator_on_unlabeled": False}
    two = {"max_steps": 3, "limit_train_batches": 2, "max_epochs": 1}
    for joint_forward in (False, True):
        nets = []
        for kind, settings in (
            (SemiAdvModule, {**off, "lambda_adv": 0.0, "joint_forward": joint_forward}),
            (CrossEntropyModule, {}),
        ):
            ours = tiny(kind, dropout=0.2, **settings)
            torch.manual_seed(1)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="the training has 2 iterations")
                fit(ours, tmp_path, semi_scenes(tmp_path), cut_both, **two)
            nets.append(ours.network.state_dict())
        assert all(torch.equal(value, nets[0][name]) for name, value in nets[1].items())


# (share, length) -> the first iteration, worked by hand
@pytest.mark.parametrize(
    ("share", "length", "first"),
    [
        (0.25, 20000, 5000),
        (0.25, 3, 1),
        (0.1, 30, 3),
        (0.7, 10, 7),
        (0.0, 9, 0),
        (0.999, 10, 9),
        (0.25, 1, 0),
    ],
)
def test_a_share_of_the_training_is_an_iteration(share, length, first) -> None:
    trainer = SimpleNamespace(estimated_stepping_batches=length)
    assert first_iteration(trainer, share, "semi_start") == first


def test_a_start_may_be_a_share_of_the_training(tmp_path) -> None:
    """Of three iterations 0.5 are 1.5, so that the third one is the first with the term."""
    ours = module(semi_start=0.5, semi_start_adv=0.3, **WEIGHTS)
    _, kept = fit(ours, tmp_path, semi_scenes(tmp_path), **THREE)
    assert ["train/loss_semi" in kept.rows[step] for step in range(3)] == [False, False, True]
    assert ["train/loss_semi_adv" in kept.rows[step] for step in range(3)] == [False, True, True]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"semi_start": 3}, "semi_start=3"),
        ({"semi_start": 5000, "semi_start_adv": 4}, "semi_start=5000 and semi_start_adv=4"),
        ({"semi_start": 0.9}, None),
        ({"semi_start": 2, "semi_start_adv": 2}, None),
        ({"semi_start": 9, "lambda_semi": 0.0}, None),
    ],
)
def test_a_run_that_ends_before_a_start_says_so_once(tmp_path, options, expected) -> None:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        fit(module(**options), tmp_path, semi_scenes(tmp_path), **THREE)
    late = [str(each.message) for each in found if "never start" in str(each.message)]
    assert len(late) == (expected is not None)
    if expected is not None:
        assert f"3 iterations and ends before {expected}:" in late[0]


def test_a_share_of_a_training_without_an_end_is_told_at_its_start(tmp_path) -> None:
    endless = {"max_steps": -1, "max_epochs": -1, "max_time": {"hours": 1}}
    with pytest.raises(SetupError, match=r"semi_start is a share .*no end.*max_steps"):
        fit(module(), tmp_path, semi_scenes(tmp_path), **endless)


@pytest.mark.parametrize(
    ("word", "expected"), [("0.25", 0.25), ("5000", 5000), ("0", 0), ("1", 1), ("0.0", 0.0)]
)
def test_the_command_keeps_shares_and_iterations_apart(word, expected, capsys) -> None:
    words = ["-c", f"{ROOT}/configs/method/semi_adv.yaml", f"--model.semi_start={word}"]
    words += [f"--model.semi_start_adv={word}", "--data=SyntheticScenesDataModule"]
    with contextlib.suppress(SystemExit):
        cli.main(["fit", *words, "--print_config"])
    found = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    for name in ("semi_start", "semi_start_adv"):
        assert found[name] == expected
        assert type(found[name]) is type(expected)


@pytest.mark.parametrize("name", ["lambda_adv", "lambda_semi", "lambda_semi_adv"])
def test_one_weight_may_be_0(tmp_path, name) -> None:
    check(tmp_path, semi_start=0, **{**WEIGHTS, name: 0.0})


def test_the_published_settings_are_the_defaults(tmp_path) -> None:
    """lambda_adv 0.01, lambda_semi 0.1 from a quarter on, lambda_semi_adv 0.001, T 0.2."""
    check(tmp_path)
    check(tmp_path, semi_start=0)


def test_without_a_second_stream_the_labels_of_the_batch_are_the_real_ones(tmp_path) -> None:
    data = semi_scenes(tmp_path, labeled_real_batch_size=0)
    check(tmp_path, data, semi_start=0, **WEIGHTS)


def test_labelled_images_alone(tmp_path) -> None:
    data = scenes(image_size=(64, 80), crop_size=72, batch_size=2)
    options = {"lambda_semi": 0.0, "lambda_semi_adv": 0.0, "lambda_adv": 0.5}
    check(tmp_path, data, cut_labels, **options)


@pytest.mark.parametrize("joint_forward", [False, True])
def test_one_unlabelled_image(tmp_path, joint_forward) -> None:
    data = semi_scenes(tmp_path, unlabeled_batch_size=1)
    check(tmp_path, data, semi_start=0, joint_forward=joint_forward, **WEIGHTS)


@pytest.mark.parametrize("joint_forward", [False, True])
def test_labelled_images_without_labels(tmp_path, joint_forward) -> None:
    def change(batch):
        batch["labeled"]["mask"].fill_(255)
        batch["labeled_real"]["mask"].fill_(255)

    check(tmp_path, None, change, semi_start=0, joint_forward=joint_forward, **WEIGHTS)


@pytest.mark.parametrize("joint_forward", [False, True])
def test_auxiliary_logits_are_of_labelled_images(tmp_path, joint_forward) -> None:
    check(tmp_path, aux=True, lambda_aux=0.3, semi_start=0, joint_forward=joint_forward, **WEIGHTS)


def test_another_void_id(tmp_path) -> None:
    nets = []
    for void in (255, -1):

        def change(batch, void=void):
            cut_both(batch)
            for name in ("labeled", "labeled_real"):
                mask = batch[name]["mask"]
                mask[mask == 255] = void

        ours = module(ignore_index=void, semi_start=0, **WEIGHTS)
        fit(ours, tmp_path, semi_scenes(tmp_path), change, **THREE)
        nets.append(ours.state_dict())
    assert all(torch.equal(value, nets[1][name]) for name, value in nets[0].items())


def test_nothing_at_all_to_learn_from(tmp_path) -> None:
    """Every loss is 0 and finite, and no weight moves."""
    data = scenes(image_size=(64, 80), crop_size=72, batch_size=2)
    ours = module(lambda_semi=0.0, lambda_semi_adv=0.0)
    still = moved(ours, tmp_path, data, lambda batch: batch["mask"].fill_(255), **THREE)
    assert still == [False, False]


def test_nothing_selected_is_a_loss_of_0(tmp_path) -> None:
    """T = 1: not even a sure discriminator reaches it in floating point."""
    found = check(tmp_path, semi_start=0, **{**WEIGHTS, "t_semi": 1.0})
    assert found.selected == [0, 0, 0]


def test_threshold_0_selects_everything(tmp_path) -> None:
    found = check(tmp_path, semi_start=0, **{**WEIGHTS, "t_semi": 0.0})
    assert found.selected == [1, 1, 1]


# The logs


def test_at_the_start_the_discriminator_guesses(tmp_path) -> None:
    """L_D and L_adv are log 2, and with T = 0.2 everything is selected."""
    ours = tiny(SemiAdvModule)
    _, kept = fit(ours, tmp_path, semi_scenes(tmp_path))
    assert kept.rows[0]["train/loss_d"] == pytest.approx(math.log(2), abs=0.02)
    assert kept.rows[0]["train/loss_adv"] == pytest.approx(math.log(2), abs=0.05)
    assert kept.rows[0]["train/selected"] == 1


def test_how_right_pseudo_labels_are(tmp_path) -> None:
    def give_masks(batch):
        torch.manual_seed(3)
        mask = torch.randint(CLASSES, batch["unlabeled"]["valid"].shape)
        mask[torch.rand(mask.shape) < 0.3] = 255
        batch["unlabeled"]["mask"] = mask

    ours = module(**WEIGHTS)
    before = Reference(ours)
    seen, kept = fit(ours, tmp_path, semi_scenes(tmp_path), give_masks)
    group = seen.seen[0][0]["unlabeled"]
    logits = of_images(before.network, group["image"])["out"]
    kept_pixels = (before.scores(logits.softmax(1)).sigmoid() >= 0.5) & group["valid"]
    known = kept_pixels & (group["mask"] != 255)
    assert known.any()
    expected = masked((logits.argmax(1) == group["mask"]).double(), known).item()
    assert kept.rows[0]["train/selected_accuracy"] == pytest.approx(expected, rel=1e-5)
    share = masked(kept_pixels.double(), group["valid"]).item()
    assert kept.rows[0]["train/selected"] == pytest.approx(share, rel=1e-5)


def test_the_confidence_map_of_an_image(tmp_path) -> None:
    ours = module().eval()
    image = torch.randint(256, (2, 3, 72, 70), dtype=torch.uint8)
    reference = Reference(ours)
    maps = of_images(reference.network, image)["out"].softmax(1)
    found = ours.confidence_map(image)
    assert not found.requires_grad
    torch.testing.assert_close(found.double(), reference.scores(maps).sigmoid().detach())


# What changes when


def test_without_weights_it_is_bit_identical_to_cross_entropy(tmp_path) -> None:
    nets = []
    for kind, settings in ((SemiAdvModule, ZERO), (CrossEntropyModule, {})):
        ours = tiny(kind, dropout=0.2, aux=True, **settings)
        before = deepcopy(ours.state_dict())
        torch.manual_seed(1)
        fit(ours, tmp_path, semi_scenes(tmp_path), cut_both, **THREE)
        nets.append(ours.network.state_dict())
        for name, value in ours.state_dict().items():
            assert not name.startswith("discriminator") or torch.equal(value, before[name])
    for name, value in nets[1].items():
        assert torch.equal(nets[0][name], value), name


def test_each_player_steps_with_its_own_optimizer(tmp_path) -> None:
    options = {"semi_start": 0, **WEIGHTS}
    data = semi_scenes(tmp_path)
    assert moved(module(**options), tmp_path, data) == [True, True]
    assert moved(module(lr=0.0, **options), tmp_path, data) == [False, True]
    assert moved(module(opponent_lr=0.0, **options), tmp_path, data) == [True, False]


def judged():
    torch.manual_seed(2)
    ours = module(semi_start=0, **WEIGHTS)
    ours.trainer = SimpleNamespace(global_step=0, log_every_n_steps=1)
    logits = [torch.randn(2, CLASSES, 72, 72, requires_grad=True) for _ in range(2)]
    valid = torch.rand(2, 72, 72) < 0.7
    return ours, logits, [ours.judge(each, valid) for each in logits]


def test_the_segmenters_terms_leave_the_discriminator_alone() -> None:
    ours, logits, both = judged()
    terms = ours.labeled_terms(both[0]) | ours.unlabeled_terms(both[1])
    assert set(terms) == {"adv", "semi_adv", "semi"}
    for name, term in terms.items():
        found = torch.autograd.grad(term, logits, allow_unused=True, retain_graph=True)
        learns = [each is not None and bool((each != 0).any()) for each in found]
        assert learns == ([True, False] if name == "adv" else [False, True])
    torch.stack(list(terms.values())).sum().backward()
    assert all(each.grad is None for each in ours.discriminator.parameters())
    assert all(each.requires_grad for each in ours.discriminator.parameters())


def test_the_discriminators_term_leaves_the_segmenter_alone() -> None:
    ours, logits, both = judged()
    loss, accuracies = ours.discriminator_term(both, torch.randint(CLASSES, (3, 72, 72)))
    loss.backward()
    assert all(each.grad is None for each in logits)
    assert all((each.grad != 0).any() for each in ours.discriminator.parameters())
    assert not any(each.requires_grad for each in accuracies.values())


def test_nothing_of_the_discriminator_is_needed_to_predict() -> None:
    ours = module()
    ours.discriminator.forward = None
    image = torch.randint(256, (1, 3, 24, 24), dtype=torch.uint8)
    assert ours.eval()(image).shape == (1, CLASSES, 24, 24)


# Settings and data that cannot work


@pytest.mark.parametrize("weights", [{}, {"lambda_semi": 0.0}, {"lambda_semi_adv": 0.0}])
def test_no_unlabelled_images(tmp_path, weights) -> None:
    data = scenes(image_size=(64, 80), crop_size=64)
    with pytest.raises(
        SetupError, match=r"unlabelled.*data\.unlabeled_batch_size=8.*lambda_semi_adv=0"
    ):
        fit(module(**weights), tmp_path, data)


def test_crops_that_are_too_small_for_the_discriminator(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"32x32.*crop_size"):
        fit(module(), tmp_path, semi_scenes(tmp_path, crop_size=24))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        *(
            ({name: value}, name)
            for name in ("lambda_adv", "lambda_semi", "lambda_semi_adv")
            for value in (-0.1, math.nan, math.inf)
        ),
        *(({"t_semi": value}, "t_semi") for value in (-0.1, 1.1, math.nan)),
        ({"softmax_threshold": 1.1}, "softmax_threshold"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"semi_start": -1}, "semi_start"),
        ({"semi_start_adv": -1}, "semi_start_adv"),
        ({"semi_start": 1.0}, "semi_start must be an iteration.*or a share"),
        ({"semi_start": 5000.5}, "semi_start must be an iteration.*or a share"),
        ({"semi_start_adv": math.nan}, "semi_start_adv"),
        ({"discriminator": FCDiscriminator(5, 4)}, "FCDiscriminator .* 8 channels"),
        ({"discriminator": lambda classes: FCDiscriminator(classes + 3, 4)}, "8 channels"),
    ],
)
def test_wrong_settings_are_told_at_once(options, told) -> None:
    with pytest.raises(SetupError, match=told):
        module(**options)


# The watch

LN2 = math.log(2)
REASONS = {"won": "has won", "guessing": "only guesses", "nothing": "no pixel"}


def told(losses, semi=None, watch=None):
    """The reasons that are told, in order, of made-up losses."""
    watch = watch or DiscriminatorWatch()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for loss_d, loss_semi in zip(losses, semi or [None] * len(losses), strict=True):
            watch.watch(
                torch.tensor(loss_d), None if loss_semi is None else torch.tensor(loss_semi)
            )
    messages = [str(each.message) for each in found]
    assert all("opponent_lr" in each or "t_semi" in each for each in messages)
    named = [[name for name, text in REASONS.items() if text in each] for each in messages]
    return [name for (name,) in named]


@pytest.mark.parametrize(
    ("losses", "semi", "expected"),
    [
        ([0.3] * 600, [0.1] * 600, []),
        ([0.5] * 600, None, []),
        ([0.01] * 199, None, []),
        ([0.01] * 200, None, ["won"]),
        ([0.01] * 1000, None, ["won"]),
        ([0.0, 0.09] * 100, None, ["won"]),
        ([0.0, 0.11] * 100, None, []),
        ([LN2] * 199, None, []),
        ([LN2] * 200, None, ["guessing"]),
        ([LN2 - 0.009, LN2 + 0.009] * 500, None, ["guessing"]),
        ([LN2] * 150 + [0.6] + [LN2] * 49, None, []),
        ([0.3] * 200, [0.0] * 200, ["nothing"]),
        ([0.3] * 1000, [0.0] * 1000, ["nothing"]),
        ([0.3] * 200, [0.0] * 199 + [0.1], []),
        ([0.3] * 200, [None] + [0.0] * 199, []),
        ([0.3] * 199, [0.0] * 199, []),
        ([0.01] * 200, [0.0] * 200, ["won", "nothing"]),
        ([LN2] * 200 + [0.01] * 200, [0.1] * 200 + [0.0] * 200, ["guessing", "won", "nothing"]),
    ],
)
def test_when_the_watch_warns(losses, semi, expected) -> None:
    assert told(losses, semi) == expected


def test_the_watch_of_another_run_tells_again() -> None:
    watch = DiscriminatorWatch()
    assert told([0.01] * 200, watch=watch) == ["won"]
    assert told([0.01] * 200, watch=watch) == []
    assert told([0.01] * 200) == ["won"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"t_semi": 1.0, "semi_start": 0}, "no pixel of an unlabelled image"),
        ({"discriminator": lambda c: nn.Sequential(SMALL_D(c), _Times(0.0))}, "only guesses"),
    ],
)
def test_a_training_warns_once(tmp_path, monkeypatch, options, reason) -> None:
    monkeypatch.setattr(discriminator_watch, "WINDOW", 2)
    with pytest.warns(UserWarning, match=reason) as found:
        fit(module(**options), tmp_path, semi_scenes(tmp_path), max_steps=5, max_epochs=-1)
    assert sum("in the last 2 batches" in str(each.message) for each in found) == 1


def test_before_pseudo_labels_start_none_is_missed(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(discriminator_watch, "WINDOW", 2)
    fit(module(t_semi=1.0), tmp_path, semi_scenes(tmp_path), max_steps=3, max_epochs=-1)


class _Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, scores):
        return self.factor * scores


@pytest.mark.parametrize(
    "opponent", [lambda classes: nn.Conv2d(classes, 2, 1), StructureAnalyzer, nn.Identity]
)
def test_a_discriminator_returns_one_logit_per_place(opponent) -> None:
    with pytest.raises(SetupError, match=r"option: discriminator="):
        module(discriminator=opponent)


def test_one_unlabelled_image_where_images_are_pooled_names_the_ways_out(tmp_path) -> None:
    torch.manual_seed(0)
    network = PSPNet(CLASSES, "resnet18")
    ours = SemiAdvModule(network, num_classes=CLASSES, semi_start=0)
    told = "unlabeled_batch_size.*joint_forward"
    with pytest.raises(SetupError, match=told):
        fit(
            ours,
            tmp_path,
            scenes(
                crop_size=64,
                image_size=(64, 64),
                labeled="1/2",
                splits_dir=str(tmp_path),
                unlabeled_batch_size=1,
            ),
        )
