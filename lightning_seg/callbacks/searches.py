"""Searches of the learning rate and the batch size before a training."""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.utilities import rank_zero_info

from lightning_seg.errors import SetupError


class LearningRateSearch(LearningRateFinder):
    """Lightning's LearningRateFinder: short steps with growing learning rates, before a training.

    The loss is recorded while the learning rate grows from `min_lr` to `max_lr`. The rate at which
    the loss falls fastest becomes the module's `lr`, and the network starts again from its first
    weights. The optimizer and its schedule are made anew, so that factors of parts of the network
    apply and a schedule starts from the found rate. During the search all parts have one rate.

    A run that goes on from a checkpoint has its learning rate, and searches nothing.

    Raises:
        SetupError: The method has two optimizers.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Search, and report the rate."""
        if _goes_on(trainer, "learning rate"):
            return
        loop, often = trainer.fit_loop, trainer.check_val_every_n_epoch
        epochs = loop.max_epochs
        # the search may take more epochs than the training, and validates none of them
        loop.max_epochs, trainer.check_val_every_n_epoch = -1, sys.maxsize
        try:
            super().on_fit_start(trainer, pl_module)
        finally:
            loop.max_epochs, trainer.check_val_every_n_epoch = epochs, often
        if self.optimal_lr is not None and getattr(self.optimal_lr, "_optimal_idx", None) is None:
            raise SetupError(
                f"the search of the learning rate has seen too few finite losses in "
                f"{self._num_training_steps} steps",
                option=("trainer.callbacks.num_training_steps 100", "trainer.callbacks.max_lr"),
            )
        if self.optimal_lr is not None:
            trainer.strategy.setup_optimizers(trainer)
            rank_zero_info(f"the training starts from the learning rate {pl_module.lr:.3g}")


class BatchSizeSearch(BatchSizeFinder):
    """Lightning's BatchSizeFinder for the data module's `batch_size`, before a training.

    Trials of a few steps double the batch size until the memory is full, the batch holds all
    images, or `max_val` is reached. The training then starts from its first weights with the
    largest size that was tried. Other sizes, such as `unlabeled_batch_size`, are as configured.

    A run that goes on from a checkpoint takes the size that was found before.

    Raises:
        SetupError: There are several processes.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str | None = None) -> None:
        """Raise before a training for what cannot be searched."""
        if stage != "fit":
            return
        if trainer.world_size > 1:
            raise SetupError(
                "BatchSizeSearch runs in one process: search on one device, and give the size to "
                "the run with several",
                option=("trainer.devices 1", "data.batch_size"),
            )
        super().setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Search, and report the size."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if _goes_on(trainer, "batch size"):
            data.batch_size = self.optimal_batch_size or data.batch_size
            return
        largest = self._max_val
        self._max_val = largest + 1  # Lightning stops before it tries the largest size
        try:
            super().on_fit_start(trainer, pl_module)
        finally:
            self._max_val = largest
        if self.optimal_batch_size is None:  # fast_dev_run
            return
        if self.optimal_batch_size > largest:  # doubled once more, and not tried
            self.optimal_batch_size = data.batch_size = self.optimal_batch_size // 2
            trainer.fit_loop._combined_loader = None
            trainer.fit_loop.setup_data()
        rank_zero_info(f"the training starts with batches of {data.batch_size}")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Search nothing: the size is that of a training."""

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Search nothing: the size is that of a training."""

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Search nothing: the size is that of a training."""

    def state_dict(self) -> dict[str, Any]:
        """Return the size that was found."""
        return {"batch_size": self.optimal_batch_size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the size that was found before."""
        self.optimal_batch_size = state_dict["batch_size"]


def _goes_on(trainer: Trainer, searched: str) -> bool:
    """Return whether a run goes on from a checkpoint, and report it."""
    if trainer.ckpt_path is None:
        return False
    rank_zero_info(f"the {searched} is not searched: the run goes on from a checkpoint")
    return True
