"""The last checkpoint is the last one, also where the score has not improved."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class LastCheckpoint(Callback):
    """Lets `ModelCheckpoint(save_last=True)` write `last.ckpt` each time it compares the score.

    Lightning writes it only where the score is among the best, so that a training which is cut off
    would go on from its best epoch, and repeat all epochs after that one.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add to what every ModelCheckpoint does after a validation and after an epoch."""
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.save_last is True:
                for hook, after_epoch in (
                    ("on_validation_end", False),
                    ("on_train_epoch_end", True),
                ):
                    before = getattr(type(callback), hook)
                    added = partial(_and_save_last, callback, before, after_epoch)
                    setattr(callback, hook, added)


def _and_save_last(
    callback: ModelCheckpoint,
    before: Callable[..., None],
    after_epoch: bool,
    trainer: Trainer,
    pl_module: LightningModule,
) -> None:
    before(callback, trainer, pl_module)
    its_time = callback._should_save_on_train_epoch_end(trainer) == after_epoch
    every: Any = callback._every_n_epochs
    due = every >= 1 and (trainer.current_epoch + 1) % every == 0
    if its_time and due and not callback._should_skip_saving_checkpoint(trainer):
        callback._save_last_checkpoint(trainer, callback._monitor_candidates(trainer))
