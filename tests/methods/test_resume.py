"""N steps = N/2 steps, a checkpoint, and N/2 steps from it, to the last bit."""

from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny import TinyNet

from datamodules import SyntheticScenesDataModule
from lightning_seg import CrossEntropyModule
from lightning_seg.methods.optimization import PolyLR


def run(
    folder: Path,
    workers: int,
    steps: int,
    ckpt: Path | None = None,
    save_at: int = 0,
    save_each_epoch: bool = False,
    **options: object,
):
    torch.manual_seed(0 if ckpt is None else 99)  # a resumed process starts with another state
    module = CrossEntropyModule(
        TinyNet(8),
        num_classes=8,
        lr=0.01,
        lr_scheduler=lambda optimizer: PolyLR(optimizer, total_iters=8),
    )
    data = SyntheticScenesDataModule(
        train_size=12,
        val_size=2,
        image_size=(32, 40),
        crop_size=24,
        batch_size=4,
        seed=0,
        num_workers=workers,
    )
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
    states = [each.optimizers[0].state_dict() for each in (trainer, other)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    for key, state in states[0]["state"].items():
        for name, value in state.items():
            assert torch.equal(
                torch.as_tensor(states[1]["state"][key][name]), torch.as_tensor(value)
            )


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
