"""A training whose loss is no number any more stops, and says where and why."""

from __future__ import annotations

import math
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from methods import SUPERVISED
from tiny import TinyNet
from torch import nn

from datamodules import SyntheticScenesDataModule
from lightning_seg import (
    CrossEntropyModule,
    LMPModule,
    NonFiniteLossError,
    SetupError,
)
from lightning_seg.training.loss_guard import FiniteGuard


class Elsewhere(torch.Tensor):
    """A tensor that says it lies on a device, where each look would wait."""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda")


def elsewhere(value: float) -> torch.Tensor:
    found = torch.tensor(value).as_subclass(Elsewhere)
    assert found.detach().device.type == "cuda"
    return found


class Breaks(TinyNet):
    """Returns NaN from the n-th training step on."""

    def __init__(self, at: int, value: float = math.nan) -> None:
        super().__init__(8)
        self.at, self.value, self.steps = at, value, 0

    def forward(self, image):
        found = super().forward(image)
        if self.training:
            self.steps += 1
            if self.steps >= self.at:
                found = found * self.value
        return found


def scenes() -> SyntheticScenesDataModule:
    return SyntheticScenesDataModule(
        train_size=8,
        val_size=2,
        image_size=(32, 40),
        crop_size=24,
        batch_size=2,
        num_workers=0,
        seed=0,
    )


def trainer(folder: Path, **options) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(
        accelerator="cpu", default_root_dir=folder, limit_val_batches=0, **{**quiet, **options}
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_step_the_images_and_the_causes_are_named(value) -> None:
    guard = FiniteGuard()
    guard.watch(torch.tensor(1.0), 11, ["a", "b"])
    with pytest.raises(NonFiniteLossError) as stop:
        guard.watch(torch.tensor(value), 12, ["c", "d"])
    message = str(stop.value)
    for part in (str(value), "step 12", "c, d", "lr=", "trainer.precision=", "gradient"):
        assert part in message
    assert "a, b" not in message
    assert isinstance(stop.value, SetupError)  # the command prints it without a traceback


def test_many_images_are_cut_short() -> None:
    with pytest.raises(NonFiniteLossError) as stop:
        FiniteGuard().watch(torch.tensor(math.nan), 0, [f"image_{i:03d}" for i in range(500)])
    assert "image_007" in str(stop.value)
    assert "image_499" not in str(stop.value)
    assert len(str(stop.value)) < 1000


def test_finite_losses_pass() -> None:
    guard = FiniteGuard()
    for step in range(200):
        guard.watch(torch.tensor(1e38 if step % 2 else 0.0), step, ["a"])
        guard.watch(elsewhere(-3.0), step, ["a"])
    guard.check()


def test_nothing_was_watched() -> None:
    FiniteGuard().check()


def test_on_a_device_all_losses_are_looked_at_together() -> None:
    guard = FiniteGuard()
    for step in range(49):
        guard.watch(elsewhere(math.nan if step in (3, 7) else 1.0), step, [f"image {step}"])
    with pytest.raises(NonFiniteLossError, match=r"nan in step 3 \(images image 3\)"):
        guard.watch(elsewhere(1.0), 49, ["image 49"])
    guard.check()  # told once
    for step in range(50, 99):
        guard.watch(elsewhere(math.inf), step, [f"image {step}"])
    with pytest.raises(NonFiniteLossError, match="inf in step 50"):
        guard.check()


def test_what_is_watched_keeps_no_graph() -> None:
    weight = nn.Parameter(torch.tensor(2.0))
    guard = FiniteGuard()
    guard.watch((weight**2).as_subclass(Elsewhere), 0, ["a"])
    assert not any(each.requires_grad for each in guard._losses)


@pytest.mark.parametrize("kind", SUPERVISED)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_training_stops_at_the_step(tmp_path, kind, value) -> None:
    ours = kind(Breaks(at=3, value=value), num_classes=8)
    ids = []

    class Record(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            ids.append(batch["id"])

    with pytest.raises(NonFiniteLossError) as stop:
        trainer(tmp_path, max_steps=20, max_epochs=-1, callbacks=[Record()]).fit(ours, scenes())
    assert len(ids) == 3
    assert "step 2 " in str(stop.value)  # counted from 0, as the logs do
    assert f"images {', '.join(ids[2])}" in str(stop.value)
    # the step itself was not taken
    assert all(parameter.isfinite().all() for parameter in ours.parameters())


def test_a_healthy_training_is_left_alone(tmp_path) -> None:
    ours = CrossEntropyModule(TinyNet(8), num_classes=8)
    run = trainer(tmp_path, max_epochs=2)
    run.fit(ours, scenes())
    assert run.global_step == 8


def test_a_rate_that_is_too_large_is_told(tmp_path) -> None:
    ours = LMPModule(TinyNet(8), num_classes=8, optimizer=torch.optim.SGD, lr=1e38)
    with pytest.raises(NonFiniteLossError, match=r"options: lr=,"):
        trainer(tmp_path, max_epochs=20).fit(ours, scenes())


def test_the_losses_are_looked_at_before_a_checkpoint_is_written(tmp_path) -> None:
    class WatchesElsewhere(L.Callback):
        """As if the second step's loss lay on a device."""

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            if batch_idx == 1:
                pl_module._guard.watch(elsewhere(math.nan), batch_idx, ["late"])

    folder = tmp_path / "checkpoints"
    for every in (1, 2):
        ours = CrossEntropyModule(TinyNet(8), num_classes=8)
        keep = ModelCheckpoint(folder / str(every), every_n_train_steps=every, save_top_k=-1)
        run = trainer(tmp_path, max_epochs=1, callbacks=[WatchesElsewhere(), keep])
        with pytest.raises(NonFiniteLossError, match=r"step 1 \(images late\)"):
            run.fit(ours, scenes())
        # the healthy first one stays, none of the broken second
        names = [path.name for path in (folder / str(every)).glob("*.ckpt")]
        assert names == (["epoch=0-step=1.ckpt"] if every == 1 else [])
