"""A run that is asked to end writes a checkpoint first, and all its processes end together."""

from __future__ import annotations

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

    A scheduler such as SLURM sends SIGTERM before it kills a job. A second Ctrl-C ends the run at
    once. With several processes it is
    enough that one of them gets the signal: it writes into their common store at which batch all
    of them stop. Between two batches of a training the processes differ by at most one batch,
    because each batch averages gradients; so two batches after the signal all of them have read it.
    A validation averages nothing: there the processes stop without a checkpoint of that moment.

    Lightning's own handler is replaced, because it lets one process stop alone, ends with the exit
    code 0, and does nothing in `predict`.

    Attributes:
        checkpoint: The checkpoint that was written because the run was asked to end.
        signal: The number of the signal that asked; 0 where none did.
    """

    def __init__(self) -> None:
        self.checkpoint: Path | None = None
        self._trainer: Trainer | None = None
        self._batches = 0
        self.signal = 0

    # Lightning registers its handlers after `setup` and restores the earlier ones in the end

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's handler."""
        self._install(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's handler."""
        self._install(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's handler."""
        self._install(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's handler."""
        self._install(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's handler."""
        self._install(trainer)

    def _install(self, trainer: Trainer) -> None:
        self._trainer = trainer
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._ask)
            signal.signal(signal.SIGINT, self._ask)

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
        stop_at = self._stop_at()
        # after the last batch of an epoch a checkpoint would skip the validation that follows
        waits = trainer.is_last_batch and world_size() == 1
        if stop_at is not None and self._batches >= stop_at and not waits:
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
            store.compare_set(_KEY, "", str(self._batches + 2))
        return int(store.get(_KEY)) if store.check([_KEY]) else None

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Write `last.ckpt` for a training that was asked to end."""
        asked = isinstance(exception, SIGTERMException)
        # several processes come here after the same batch of a training only
        together = world_size() == 1 or trainer.training
        if trainer.state.fn != "fit" or trainer.sanity_checking or not (asked and together):
            return
        if trainer.global_step == 0 or getattr(trainer, "fast_dev_run", False):
            return
        found = [each for each in trainer.callbacks if isinstance(each, ModelCheckpoint)]  # type: ignore[attr-defined]
        if not found:
            return
        path = Path(found[0].dirpath or trainer.default_root_dir, "last.ckpt")
        trainer.save_checkpoint(path)
        self.checkpoint = path
