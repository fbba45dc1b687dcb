"""N steps = N/2 steps, a checkpoint, and N/2 steps from it, to the last bit."""

import contextlib
import warnings
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from methods import PIECES, tiny_words
from small_runs import Kept, quiet_trainer, scenes, tiny
from tiny import TinyNet

import cli
from datamodules import SyntheticScenesDataModule
from lightning_seg import ASMLModule, CrossEntropyModule, SemiAdvModule
from lightning_seg.callbacks import RunMonitor
from lightning_seg.training.optimization import PolyLR

SEMI = {
    "crop_size": 32,
    "labeled": "1/2",
    "unlabeled_batch_size": 2,
    "labeled_real_batch_size": 2,
    "iterations_per_epoch": 3,
}
TWO_PLAYERS = {
    "analyzer first": (ASMLModule, {"decay_steps": 6}, {}),
    "simultaneous": (ASMLModule, {"order": "simultaneous", "decay_steps": 6}, {}),
    "semi_adv": (SemiAdvModule, {"semi_start": 2}, SEMI),
    "semi_adv, accumulating": (
        SemiAdvModule,
        {"semi_start": 2, "accumulate_grad_batches": 2},
        SEMI,
    ),
}


def run(
    folder: Path,
    workers: int,
    steps: int,
    ckpt: Path | None = None,
    save_at: int = 0,
    save_each_epoch: bool = False,
    method=(CrossEntropyModule, {}, {}),
    **options: object,
):
    torch.manual_seed(0 if ckpt is None else 99)  # a resumed process starts with another state
    kind, settings, images = method
    module = kind(
        TinyNet(8),
        num_classes=8,
        lr=0.01,
        lr_scheduler=lambda optimizer: PolyLR(optimizer, total_iters=8),
        **settings,
    )
    defaults = {"train_size": 12, "val_size": 2, "image_size": (32, 40), "crop_size": 24}
    defaults |= {"batch_size": 4, "seed": 0, "num_workers": workers}
    data = SyntheticScenesDataModule(**{**defaults, **images})
    callbacks = (
        [ModelCheckpoint(folder, every_n_train_steps=save_at, save_top_k=-1)] if save_at else []
    )
    if save_each_epoch:
        callbacks = [ModelCheckpoint(folder, monitor="val/miou", save_top_k=-1)]
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )
    trainer.fit(module, data, ckpt_path=ckpt)
    trainer.save_checkpoint(folder / f"after{steps}.ckpt")
    return module, trainer


def assert_equal_runs(first, second) -> None:
    (straight, trainer), (resumed, other) = first, second
    assert trainer.global_step == other.global_step
    for name, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert straight.state_dict().keys() == resumed.state_dict().keys()
    for one, two in zip(trainer.optimizers, other.optimizers, strict=True):
        states = [one.state_dict(), two.state_dict()]
        assert states[0]["param_groups"] == states[1]["param_groups"]
        assert states[0]["state"]
        for key, state in states[0]["state"].items():
            for name, value in state.items():
                again = states[1]["state"][key][name]
                assert torch.equal(torch.as_tensor(again), torch.as_tensor(value))
    configs = [
        [config.scheduler.state_dict() for config in each.lr_scheduler_configs]
        for each in (trainer, other)
    ]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("half", [3, 4])  # an epoch has three steps: at its end, and inside
def test_stop_and_resume_equals_straight(tmp_path: Path, workers: int, half: int) -> None:
    straight = run(tmp_path, workers, steps=8)
    run(tmp_path, workers, steps=half)
    resumed = run(tmp_path, workers, steps=8, ckpt=tmp_path / f"after{half}.ckpt")
    assert_equal_runs(straight, resumed)


@pytest.mark.parametrize("half", [3, 5])
def test_resuming_from_a_checkpoint_on_the_way_equals_straight(tmp_path: Path, half: int) -> None:
    straight = run(tmp_path, 0, steps=8, save_at=half)
    (saved,) = tmp_path.glob(f"epoch=*step={half}.ckpt")
    assert_equal_runs(straight, run(tmp_path, 0, steps=8, ckpt=saved))


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_resuming_from_an_epochs_validated_checkpoint_equals_straight(
    tmp_path: Path, epoch: int
) -> None:
    """As the shipped configurations save: behind the validation of each epoch."""
    epochs = {"max_epochs": 4, "save_each_epoch": True}
    straight = run(tmp_path, 0, steps=-1, **epochs)
    (saved,) = tmp_path.glob(f"epoch={epoch}-*.ckpt")
    assert_equal_runs(straight, run(tmp_path, 0, steps=-1, ckpt=saved, **epochs))


def test_a_shortened_epoch_resumes_with_the_next_one(tmp_path: Path) -> None:
    short = {"limit_train_batches": 2}
    straight = run(tmp_path, 0, steps=8, **short)
    run(tmp_path, 0, steps=4, **short)
    resumed = run(tmp_path, 0, steps=8, ckpt=tmp_path / "after4.ckpt", **short)
    assert_equal_runs(straight, resumed)


@pytest.mark.parametrize("half", [3, 4])
@pytest.mark.parametrize("name", TWO_PLAYERS)
def test_two_players_resume_with_both_networks_and_optimizers(
    tmp_path: Path, name: str, half: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    poly = {"opponent_lr_scheduler": lambda optimizer: PolyLR(optimizer, total_iters=8)}
    kind, settings, images = TWO_PLAYERS[name]
    method = (kind, settings | poly, {"crop_size": 32} | images)
    straight = run(tmp_path, 0, steps=6, method=method)
    run(tmp_path, 0, steps=half, method=method)
    resumed = run(tmp_path, 0, steps=6, ckpt=tmp_path / f"after{half}.ckpt", method=method)
    assert_equal_runs(straight, resumed)


def test_a_growing_gradient_scale_resumes(tmp_path: Path) -> None:
    def half_precision():
        scaler = torch.amp.GradScaler("cpu", init_scale=16.0, growth_interval=3)
        return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}

    method = (ASMLModule, {"decay_steps": 6}, {"crop_size": 32})
    straight = run(tmp_path, 0, steps=6, method=method, **half_precision())
    run(tmp_path, 0, steps=4, method=method, **half_precision())
    checkpoint = tmp_path / "after4.ckpt"
    resumed = run(tmp_path, 0, steps=6, ckpt=checkpoint, method=method, **half_precision())
    assert_equal_runs(straight, resumed)
    scales = [each.precision_plugin.scaler.get_scale() for _, each in (straight, resumed)]
    assert scales == [64.0, 64.0]


@pytest.mark.parametrize("method", PIECES)
def test_every_method_of_the_command_resumes_to_the_last_bit(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where splits are written

    def fit(folder: str, *words: str):
        where = f"--trainer.default_root_dir={tmp_path / folder}"
        return cli.main(["fit", *tiny_words(method), where, "--trainer.max_epochs=2", *words])

    keep = ["--trainer.callbacks=ModelCheckpoint", "--trainer.callbacks.save_top_k=-1"]
    whole = fit("whole", *keep)
    first = min((tmp_path / "whole").rglob("*.ckpt"))  # epoch=0-...
    assert "epoch=0" in first.name
    resumed = fit("resumed", f"--ckpt_path={first}", "--trainer.enable_checkpointing=false")
    assert resumed.trainer.global_step == whole.trainer.global_step > 1
    state = resumed.model.state_dict()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(state[name], value), name


@pytest.mark.parametrize("end", ["max_steps", "killed"])
@pytest.mark.parametrize("kind", [CrossEntropyModule, ASMLModule])
def test_a_resumed_training_logs_with_the_steps_of_a_whole_one(tmp_path, kind, end) -> None:
    """3 steps an epoch, a validation after each, every 2nd step logged with learning rates."""

    class Killed(L.Callback):
        def on_train_batch_start(self, trainer, *args) -> None:
            if end == "killed" and trainer.global_step == 7 and len(kept) == 2:
                raise ProcessLookupError  # one step after the last checkpoint

    def run(folder: Path, steps: int, checkpoint: str | None = None) -> dict[int, set[str]]:
        kept.append(Kept())
        saver = ModelCheckpoint(folder, save_last=True, monitor="val/miou", mode="max")
        trainer = quiet_trainer(
            tmp_path,
            logger=kept[-1],
            callbacks=[saver, RunMonitor(), Killed()],
            enable_checkpointing=True,
            max_steps=steps,
            max_epochs=-1,
            limit_train_batches=3,
            log_every_n_steps=2,
        )
        module = tiny(kind)
        with contextlib.suppress(ProcessLookupError), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*could not find the monitored key")
            trainer.fit(module, scenes(train_size=12), ckpt_path=checkpoint)
        return {step: set(row) for step, row in kept[-1].rows.items()}

    kept: list[Kept] = []
    whole = run(tmp_path / "whole", 12)
    first = run(tmp_path / "parts", 12 if end == "killed" else 6)
    second = run(tmp_path / "parts", 12, str(tmp_path / "parts/last.ckpt"))
    assert {"lr/network", "gradient/network", "train/loss"} <= whole[7]
    assert "val/miou" in whole[11]
    again = first.keys() & second.keys()
    assert again <= {5}  # Lightning may validate the saved epoch again
    assert {**second, **first} == whole
    assert all(second[step] <= whole[step] for step in again)
