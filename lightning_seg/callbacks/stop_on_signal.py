"""A run that is asked to end writes a checkpoint first, and all its processes end together."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_seg.processes import world_size

_KEY = "lightning_seg/stop_at"


class StopOnSignal(Callback):
    """Ends a run on SIGTERM or Ctrl-C after the next batch; a training writes `last.ckpt` first.

    A training that accumulates gradients ends after its next optimizer step. A scheduler such as
    SLURM sends SIGTERM before it kills a job, and in a job of SLURM, SIGUSR1 ends a run as well. A
    second Ctrl-C ends the run at once. With several processes it is enough that one of them gets
    the signal: it writes into their common store at which batch all of them stop. Between two
    batches of a training the processes differ by at most one batch, because each batch averages
    gradients; so two batches after the signal all of them have read it. After the last batch of an
    epoch they stop where its validation would start, and a training that goes on starts with this
    validation. Within a validation, which averages nothing, several processes stop without a
    checkpoint of that moment.

    Lightning's own handlers are replaced. For SIGTERM it lets one process stop alone, ends with the
    exit code 0, and does nothing in `predict`. For SIGUSR1 it writes a checkpoint in the middle of
    a step, whose weights belong to no step, and at different steps of several processes.

    Attributes:
        checkpoint: The checkpoint that was written because the run was asked to end.
        signal: The number of the signal that asked; 0 where none did.
    """

    def __init__(self) -> None:
        self.checkpoint: Path | None = None
        self._trainer: Trainer | None = None
        self._batches = 0
        self._agreed = False  # whether all processes stop at the same place of a training
        self.signal = 0

    # Lightning registers its handlers after `setup` and restores the earlier ones in the end

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen to SIGUSR1, which would end this process, while the run is being set up."""
        main = threading.current_thread() is threading.main_thread()
        if signal.SIGUSR1 in _signals() and main:
            signal.signal(signal.SIGUSR1, self._ask)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's handler."""
        self._install(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's handler."""
        self._install(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's handler; end the training where the epoch's batches are done."""
        self._install(trainer)
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._end_at(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's handler."""
        self._install(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's handler."""
        self._install(trainer)

    def _install(self, trainer: Trainer) -> None:
        self._trainer = trainer
        if threading.current_thread() is threading.main_thread():
            for each in _signals():
                signal.signal(each, self._ask)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        """Note that the run has to end; all else waits until a batch is done."""
        self.signal = signum
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        launcher = self._trainer.strategy.launcher if self._trainer is not None else None
        if launcher is not None:  # the processes that this one has started
            launcher.kill(signal.Signals(signum))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End the training where it has been asked for, after the same batch in all processes."""
        self._batches += 1
        if trainer.is_last_batch and _validates(trainer):
            self._stop_at()  # all processes read it here, and stop where the validation starts
            return
        steps = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if self._stops() and (steps or trainer.is_last_batch):  # or gradients would be lost
            # what Lightning does after this hook; else the module's own hook would not be called
            # for this batch, and its values would not be logged
            pl_module.on_train_batch_end(outputs, batch, batch_idx)
            trainer._logger_connector.on_batch_end()
            trainer._logger_connector.update_train_step_metrics()
            self._end_at(trainer)

    def _stops(self) -> bool:
        stop_at = self._stop_at()
        return stop_at is not None and self._batches >= stop_at

    def _end_at(self, trainer: Trainer) -> None:
        """End a training where all its processes end it."""
        if self._stops():
            self._agreed = True
            raise SIGTERMException

    def on_validation_batch_end(self, *args: Any) -> None:
        """End the run where it has been asked for."""
        self._end_evaluation()

    def on_test_batch_end(self, *args: Any) -> None:
        """End the run where it has been asked for."""
        self._end_evaluation()

    def on_predict_batch_end(self, *args: Any) -> None:
        """End the run where it has been asked for."""
        self._end_evaluation()

    def _end_evaluation(self) -> None:
        if self._stop_at() is not None:
            raise SIGTERMException

    def _stop_at(self) -> int | None:
        """Return the number of the batch after which all processes stop; None to go on."""
        if world_size() == 1:
            return self._batches if self.signal else None
        store = dist.distributed_c10d._get_default_store()
        if self.signal:
            # the first process that writes decides
            store.compare_set(_KEY, "", f"{self._batches + 2} {self.signal}")
        if not store.check([_KEY]):
            return None
        batch, number = map(int, store.get(_KEY).split())
        self.signal = self.signal or number
        return batch

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Write `last.ckpt` for a training that was asked to end."""
        asked = isinstance(exception, SIGTERMException)
        # several processes come here at the same place of a training only
        together = world_size() == 1 or self._agreed
        if trainer.state.fn != "fit" or trainer.sanity_checking or not (asked and together):
            return
        if trainer.global_step == 0 or getattr(trainer, "fast_dev_run", False):
            return
        found = [each for each in trainer.callbacks if isinstance(each, ModelCheckpoint)]  # type: ignore[attr-defined]
        if not found:
            return
        if trainer.validating:
            _begin_validation_again(trainer)
        path = Path(found[0].dirpath or trainer.default_root_dir, "last.ckpt")
        trainer.save_checkpoint(path)
        self.checkpoint = path


def _signals() -> tuple[signal.Signals, ...]:
    """Return the signals that end a run."""
    usual = (signal.SIGTERM, signal.SIGINT)
    return (*usual, signal.SIGUSR1) if "SLURM_JOB_ID" in os.environ else usual


def _begin_validation_again(trainer: Trainer) -> None:
    """Make a training that goes on from here repeat the validation that has been interrupted.

    Lightning does so where its counters say that a batch of a validation has been started and not
    processed. Else it goes on with the next epoch, and the scores of this one are never logged.
    """
    progress: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    for counts in (progress.total, progress.current):
        counts.processed = counts.completed = 0
        counts.ready = counts.started = 1


def _validates(trainer: Trainer) -> bool:
    """Return whether a validation follows the last batch of this epoch."""
    every = trainer.check_val_every_n_epoch
    due = every is None or (trainer.current_epoch + 1) % every == 0
    return trainer.enable_validation and due
