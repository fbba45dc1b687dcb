"""Trainings of a few steps on drawn scenes, of which everything is kept."""

from __future__ import annotations

import shutil
from copy import deepcopy
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers.logger import Logger
from tiny import TinyNet

from datamodules import SyntheticScenesDataModule

SMALL = {"train_size": 8, "val_size": 3, "image_size": (32, 40), "crop_size": 24, "batch_size": 4}
SMALL_WORDS = [
    "--data.image_size=[32,40]",
    "--data.crop_size=24",
    "--data.train_size=4",
    "--data.val_size=2",
    "--data.batch_size=2",
    "--data.num_workers=0",
    "--trainer.accelerator=cpu",
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--model.network=tiny.TinyNet",
]


needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))),
    reason="torch.compile needs a C++ compiler",
)


class Kept(Logger):
    """Keeps what is logged, by the step it is logged with."""

    name, version = "kept", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[int, dict[str, float]] = {}

    def log_hyperparams(self, *args, **kwargs) -> None:
        pass

    def log_metrics(self, metrics, step=None) -> None:
        self.rows.setdefault(step, {}).update(metrics)


class Batches(L.Callback):
    """Keeps the batches and, before each step, the network's weights; may cut some labels away."""

    def __init__(self, change=None) -> None:
        self.change, self.seen = change, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if self.change is not None:
            self.change(batch)
        self.seen.append((deepcopy(batch), deepcopy(pl_module.network)))


def scenes(**options) -> SyntheticScenesDataModule:
    return SyntheticScenesDataModule(**{**SMALL, "num_workers": 0, "seed": 0, **options})


def quiet_trainer(folder: Path, **options) -> L.Trainer:
    """A Trainer on the CPU that prints and keeps nothing."""
    defaults = {
        "accelerator": "cpu",
        "default_root_dir": folder,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
    }
    return L.Trainer(**{**defaults, **options})


def fit(ours, folder: Path, data=None, change=None, **options) -> tuple[Batches, Kept]:
    seen, kept = Batches(change), Kept()
    options = {"max_steps": 1, "limit_val_batches": 0, "num_sanity_val_steps": 2, **options}
    quiet_trainer(folder, logger=kept, callbacks=[seen], **options).fit(ours, data or scenes())
    return seen, kept


def saved(ours, folder: Path) -> Path:
    """Train for a step; return the checkpoint."""
    fit(ours, folder)
    ours.trainer.save_checkpoint(folder / "a.ckpt")
    return folder / "a.ckpt"


def tiny(kind, aux=False, dropout=0.0, **options):
    """A module of this kind on the smallest network, the same each time."""
    torch.manual_seed(0)
    net = TinyNet(8, aux=aux, dropout=dropout)
    return kind(net, num_classes=8, optimizer=torch.optim.SGD, lr=0.05, **options)


def cut_labels(batch) -> None:
    """Make a part of the first image and all of the second void."""
    batch["mask"][0, 5:12] = 255
    batch["mask"][1] = 255


def outputs(seen: tuple) -> tuple[dict, torch.Tensor]:
    """A kept batch through the network kept with it."""
    batch, network = seen
    mean = torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1)
    std = torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1)
    with torch.no_grad():
        found = network((batch["image"].float() / 255 - mean) / std)
    return (found if isinstance(found, dict) else {"out": found}), batch["mask"]
