"""The two-player step on players whose gradients are known: they come with the batch."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from small_runs import Kept, fit, needs_compiler, scenes, tiny
from torch import nn
from torch.utils.data import DataLoader

from lightning_seg import (
    ASMLModule,
    CrossEntropyModule,
    NonFiniteLossError,
    SemiAdvModule,
    SetupError,
    TwoPlayerModule,
)
from lightning_seg.training.gradients import frozen
from lightning_seg.training.optimization import PolyLR

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
LR = 0.5
PLAIN = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}


class Weights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))


class Pulled(TwoPlayerModule):
    """Both players' weights move against what the batch says."""

    def __init__(self, in_turn: bool = False, **options) -> None:
        kinds = {"optimizer": torch.optim.SGD, "opponent_optimizer": torch.optim.SGD}
        super().__init__(
            Weights(), num_classes=2, lr=LR, opponent_lr=2 * LR, **{**kinds, **options}
        )
        self.other = Weights()
        self.in_turn = in_turn
        self.history = []

    @property
    def opponent(self) -> nn.Module:
        return self.other

    def training_step(self, batch, batch_idx) -> None:
        ours, theirs = batch["pull"][0]
        theirs = (self.other.weight * theirs).sum()
        if self.in_turn:
            self.update(batch_idx, opponent=theirs)
            self.update(batch_idx, segmenter=(self.network.weight * ours).sum())
        else:
            ours = (self.network.weight * ours).sum()
            self.update(batch_idx, segmenter=ours, opponent=theirs)

    def on_train_batch_end(self, outputs, batch, batch_idx) -> None:
        self.log("score", 1.0)
        self.history.append(
            [group["lr"] for each in self.trainer.optimizers for group in each.param_groups]
        )


class PulledByLightning(L.LightningModule):
    """The segmenter of `Pulled` under automatic optimization."""

    def __init__(self, scheduler=None, interval="step") -> None:
        super().__init__()
        self.network, self.scheduler, self.interval = Weights(), scheduler, interval
        self.history = []

    def training_step(self, batch, batch_idx):
        return (self.network.weight * batch["pull"][0, 0]).sum()

    def on_train_batch_end(self, outputs, batch, batch_idx) -> None:
        self.log("score", 1.0)
        self.history.append(self.optimizers().param_groups[0]["lr"])

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=LR)
        if self.scheduler is None:
            return optimizer
        scheduler = {"scheduler": self.scheduler(optimizer), "interval": self.interval}
        return {"optimizer": optimizer, "lr_scheduler": scheduler | {"monitor": "score"}}


def pulls(count: int) -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(7)
    return [{"pull": torch.randn(2, 3)} for _ in range(count)]


def train(module, batches, half: bool = False, **options) -> L.Trainer:
    """Train on the batches; `half` scales gradients as float16 needs, by a scale that grows."""
    if half:
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1)
        options["plugins"] = [MixedPrecision("16-mixed", "cpu", scaler)]
    defaults = {"max_epochs": 1, "logger": False, "enable_checkpointing": False}
    trainer = L.Trainer(**PLAIN, **{**defaults, "limit_val_batches": 0, **options})
    trainer.fit(module, DataLoader(batches, batch_size=1))
    return trainer


def moved(*gradients, lr=LR) -> torch.Tensor:
    return 1 - lr * torch.stack(gradients).sum(0)


@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_both_players_move_by_their_gradients_in_every_precision(precision, in_turn) -> None:
    module, batches = Pulled(in_turn), pulls(5)
    half = precision == "16-mixed"
    trainer = train(module, batches, half, **({} if half else {"precision": precision}))
    for row, weight, lr in ((0, module.network.weight, LR), (1, module.other.weight, 2 * LR)):
        expected = moved(*(batch["pull"][row] for batch in batches), lr=lr)
        torch.testing.assert_close(weight.detach(), expected)
    if half:  # once per iteration, not once per player
        assert trainer.precision_plugin.scaler.get_scale() == 4 * 2**5


@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize("broken", [0, 1])
def test_an_overflow_of_one_player_skips_that_player_only(broken: int, in_turn: bool) -> None:
    batches = pulls(4)
    batches[1]["pull"][broken, 0] = torch.inf
    module = Pulled(in_turn)
    trainer = train(module, batches, half=True)
    for row, weight, lr in ((0, module.network.weight, LR), (1, module.other.weight, 2 * LR)):
        counted = [batch for number, batch in enumerate(batches) if (row, number) != (broken, 1)]
        expected = moved(*(batch["pull"][row] for batch in counted), lr=lr)
        torch.testing.assert_close(weight.detach(), expected)
    assert trainer.precision_plugin.scaler.get_scale() == 4 * 2 / 2 * 2 * 2


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_gradients_are_clipped_behind_unscaling_each_by_its_own_limit(half, fused) -> None:
    batches = [{"pull": torch.tensor([[3.0, 4.0, 0.0], [0.0, 6.0, 8.0]])}]

    def sgd(groups):
        return torch.optim.SGD(groups, fused=fused)

    module = Pulled(
        optimizer=sgd, opponent_optimizer=sgd, gradient_clip_val=1.0, opponent_gradient_clip_val=5.0
    )
    train(module, batches, half)
    ours, theirs = moved(torch.tensor([0.6, 0.8, 0])), moved(torch.tensor([0.0, 3, 4]), lr=2 * LR)
    torch.testing.assert_close(module.network.weight.detach(), ours)
    torch.testing.assert_close(module.other.weight.detach(), theirs)


def test_gradients_are_clipped_by_value() -> None:
    batches = [{"pull": torch.tensor([[3.0, -4.0, 0.5], [0.0, 6.0, 8.0]])}]
    module = Pulled(gradient_clip_val=1.0, gradient_clip_algorithm="value")
    train(module, batches)
    torch.testing.assert_close(module.network.weight.detach(), moved(torch.tensor([1, -1, 0.5])))
    torch.testing.assert_close(module.other.weight.detach(), moved(batches[0]["pull"][1], lr=1.0))


@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("every", [2, 3])
def test_accumulation_is_lightnings(every: int, half: bool, in_turn: bool) -> None:
    """Also where an epoch ends inside of an iteration."""
    batches = pulls(7)
    module, theirs = Pulled(in_turn, accumulate_grad_batches=every), PulledByLightning()
    trainer = train(module, batches, half, max_epochs=2)
    other = train(theirs, batches, max_epochs=2, accumulate_grad_batches=every)
    torch.testing.assert_close(module.network.weight, theirs.network.weight)
    expected = moved(*(batch["pull"][1] / every for batch in 2 * batches), lr=2 * LR)
    torch.testing.assert_close(module.other.weight.detach(), expected)
    assert trainer.global_step == other.global_step == 2 * -(-7 // every)
    assert trainer.accumulate_grad_batches == 1  # the trainer is as before


def stretch(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)


def poly(optimizer):
    return PolyLR(optimizer, total_iters=9)


def plateau(optimizer):
    from lightning.pytorch.cli import ReduceLROnPlateau

    return ReduceLROnPlateau(optimizer, monitor="score", patience=0, factor=0.5)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize(
    ("scheduler", "interval"),
    [(stretch, "step"), (poly, "step"), (stretch, "epoch"), (plateau, "epoch")],
)
def test_schedules_advance_as_lightning_advances_them(scheduler, interval, every) -> None:
    batches = pulls(3)
    module = Pulled(
        lr_scheduler=scheduler,
        opponent_lr_scheduler=scheduler,
        lr_interval=interval,
        accumulate_grad_batches=every,
    )
    theirs = PulledByLightning(scheduler, interval)
    train(module, batches, max_epochs=4)
    train(theirs, batches, max_epochs=4, accumulate_grad_batches=every)
    assert len(set(theirs.history)) > 1
    # Lightning advances schedules before that hook, too
    assert [ours for ours, _ in module.history] == theirs.history
    assert [other / 2 for _, other in module.history] == theirs.history


def test_a_schedule_that_waits_for_a_score_is_left_where_max_steps_cuts_an_epoch_off() -> None:
    module = Pulled(opponent_lr_scheduler=plateau)
    module.on_train_batch_end = lambda *args: None  # nothing is logged
    trainer = train(module, pulls(4), max_steps=3)
    assert trainer.global_step == 3


def test_a_score_that_is_missing_is_told() -> None:
    module = Pulled(opponent_lr_scheduler=plateau)
    module.on_train_batch_end = lambda *args: None
    with pytest.raises(SetupError, match="waits for score, which is not logged"):
        train(module, pulls(2))


def test_poly_schedules_end_with_the_last_iteration() -> None:
    options = {"lr_scheduler": PolyLR, "opponent_lr_scheduler": PolyLR}
    module = Pulled(accumulate_grad_batches=2, **options)
    train(module, pulls(6), max_epochs=2)
    rates = [LR * (1 - step // 2 / 6) ** 0.9 for step in range(1, 13)]
    assert [ours for ours, _ in module.history] == pytest.approx(rates)
    assert [other for _, other in module.history] == pytest.approx([2 * each for each in rates])


@pytest.mark.parametrize("in_turn", [False, True])
def test_max_steps_checkpoints_and_logs_count_iterations(tmp_path: Path, in_turn: bool) -> None:
    """What breaks if a Lightning release counts other optimizers' steps."""
    kept = Kept()
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1)
    module = Pulled(in_turn)
    trainer = train(
        module,
        pulls(4),
        max_epochs=-1,
        max_steps=10,
        logger=kept,
        callbacks=[saving],
        enable_checkpointing=True,
        log_every_n_steps=2,
    )
    assert trainer.global_step == len(module.history) == 10
    names = sorted(path.name for path in tmp_path.glob("*.ckpt"))
    assert names == ["epoch=0-step=3.ckpt", "epoch=1-step=6.ckpt", "epoch=2-step=9.ckpt"]
    assert list(kept.rows) == [1, 3, 5, 7, 9]


def test_logs_count_iterations_with_accumulation_too() -> None:
    kept = Kept()
    train(Pulled(accumulate_grad_batches=3), pulls(12), logger=kept, log_every_n_steps=2)
    assert list(kept.rows) == [1, 3]


def test_flags_are_as_before_behind_an_exception() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].bias.requires_grad_(False)
    before = [weight.requires_grad for weight in module.parameters()]
    with pytest.raises(RuntimeError), frozen(module):
        module(torch.ones(1, 3))
    assert [weight.requires_grad for weight in module.parameters()] == before


def test_a_frozen_module_passes_gradients_to_its_input_alone() -> None:
    module, value = nn.Linear(2, 1), torch.ones(1, 2, requires_grad=True)
    with frozen(module):
        through = module(value).sum()
    (through + module(value.detach()).sum()).backward()
    assert torch.equal(value.grad, module.weight.detach())
    assert torch.equal(module.weight.grad, torch.ones(1, 2))  # of the second pass only


def test_weight_decay_leaves_out_the_same_for_both_players() -> None:
    decay = {"optimizer": partial(torch.optim.SGD, weight_decay=0.1)}
    decay["opponent_optimizer"] = decay["optimizer"]
    batches = [{"pull": torch.zeros(2, 3)}]
    for decay_all, left in ((True, [1 - LR * 0.1, 1 - 2 * LR * 0.1]), (False, [1, 1])):
        module = Pulled(**decay, decay_all=decay_all)  # its weights have one dimension
        train(module, batches)
        found = [weight.detach()[0].item() for weight in module.parameters()]
        assert found == pytest.approx(left)


@pytest.mark.parametrize(
    ("option", "value"), [("gradient_clip_val", 1.0), ("accumulate_grad_batches", 2)]
)
def test_what_the_trainer_cannot_do_names_our_option(option: str, value: float) -> None:
    with pytest.raises(
        SetupError, match=rf"the module's option instead \(option: model\.{option}=\)"
    ):
        train(Pulled(), pulls(2), **{option: value})


class Interrupts(L.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx == 3:  # in the middle of an iteration
            raise RuntimeError("interrupted")


def test_an_exception_leaves_nothing_on_the_trainer_or_in_the_gradients() -> None:
    options = {"logger": False, "enable_checkpointing": False, "limit_val_batches": 0}
    trainer = L.Trainer(**PLAIN, **options, max_epochs=1, callbacks=[Interrupts()])
    module, data = Pulled(accumulate_grad_batches=2), DataLoader(pulls(4), batch_size=1)
    with pytest.raises(RuntimeError, match="interrupted"):
        trainer.fit(module, data)
    assert trainer.accumulate_grad_batches == 1

    again = [{"pull": torch.ones(2, 3)}] * 2  # gradients of the batch before are forgotten
    before = module.network.weight.detach().clone()
    train(module, again)
    torch.testing.assert_close(module.network.weight.detach(), before - LR)


@pytest.mark.parametrize("kind", [ASMLModule, SemiAdvModule])
def test_an_opponent_that_diverges_stops_training(
    tmp_path: Path, kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"lambda_adv": 0.0, "lambda_semi_adv": 0.0} if kind is SemiAdvModule else {}
    wild = {"opponent_optimizer": torch.optim.SGD, "opponent_lr": 1e30}
    ours = tiny(kind, **wild, **options)
    with pytest.raises(NonFiniteLossError, match="opponent_lr"):
        fit(ours, tmp_path, semi(), max_steps=15)


def test_other_strategies_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Pulled()
    monkeypatch.setattr("lightning_seg.training.two_players.SingleDeviceStrategy", DataLoader)
    with pytest.raises(SetupError, match="one device or with DDP, not with SingleDevice"):
        train(module, pulls(1))


@pytest.mark.parametrize("options", [
    {"accumulate_grad_batches": 0}, {"gradient_clip_val": 0.0},
    {"opponent_gradient_clip_val": -1.0}, {"gradient_clip_val": float("nan")},
])  # fmt: skip
def test_settings_out_of_range_are_refused(options) -> None:
    with pytest.raises(SetupError, match=f"option: {next(iter(options))}="):
        Pulled(**options)


def semi(**options):
    return scenes(
        crop_size=40, labeled="1/2", unlabeled_batch_size=2, iterations_per_epoch=3, **options
    )


@pytest.mark.parametrize(("kind", "zero"), [
    (ASMLModule, ["lambda_asm"]),
    (SemiAdvModule, ["lambda_adv", "lambda_semi", "lambda_semi_adv"]),
])  # fmt: skip
@pytest.mark.parametrize("every", [1, 2])
def test_without_weight_training_is_cross_entropys_to_the_last_bit(
    tmp_path: Path, kind, zero, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"aux": True, "dropout": 0.2, "lr_scheduler": PolyLR}
    plain = tiny(CrossEntropyModule, **options)
    clipped = {"gradient_clip_val": 0.5, "accumulate_grad_batches": every}
    fit(plain, tmp_path, semi(), max_steps=4, **clipped)
    ours = tiny(kind, **options, **dict.fromkeys(zero, 0.0), **clipped)
    fit(ours, tmp_path, semi(), max_steps=4)
    for name, value in plain.network.state_dict().items():
        assert torch.equal(ours.network.state_dict()[name], value), name


def test_a_resumed_run_with_other_weights_goes_on_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = tiny(SemiAdvModule, lambda_adv=0.01)
    trainer = L.Trainer(**PLAIN, max_steps=1, logger=False, limit_val_batches=0)
    trainer.fit(module, semi())
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    again = tiny(SemiAdvModule, lambda_adv=0.5)
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        trainer = L.Trainer(**PLAIN, max_steps=2, logger=False, limit_val_batches=0)
        trainer.fit(again, semi(), ckpt_path=tmp_path / "one.ckpt")
    assert trainer.global_step == 2
    assert "settings changed since the checkpoint: lambda_adv 0.01 -> 0.5" in caplog.text


BOTH = {
    ASMLModule: (lambda: scenes(crop_size=40), {}),
    SemiAdvModule: (semi, {"semi_start": 1}),
}


def trained(kind, folder: Path, trainer: dict | None = None, **options) -> torch.Tensor:
    data, settings = BOTH[kind]
    opponent = {"opponent_optimizer": torch.optim.SGD, "opponent_lr": 0.01}
    ours = tiny(kind, **opponent, **settings, **options)
    fit(ours, folder, data(), max_steps=3, **(trainer or {}))
    return torch.cat([weight.detach().flatten().float() for weight in ours.parameters()])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's compiler looks
@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(
    "option",
    [
        "channels_last",
        pytest.param("compile_network", marks=needs_compiler),
    ],
)
def test_channels_last_and_compile_change_speed_not_results(
    tmp_path: Path, kind, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plain = trained(kind, tmp_path)
    other = trained(kind, tmp_path, **{option: True})
    torch.testing.assert_close(other, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(("precision", "off"), [("64-true", 1e-5), ("bf16-true", 0.05)])
def test_other_precisions_train_to_about_the_same_weights(
    tmp_path: Path, kind, precision: str, off: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plain = trained(kind, tmp_path)
    other = trained(kind, tmp_path, {"precision": precision})
    assert (other - plain).norm() < off * plain.norm()
