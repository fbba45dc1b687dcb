"""Callbacks with which a test decides when a run is interrupted."""

from __future__ import annotations

import os
import time
from pathlib import Path

import lightning as L


class WaitsAt(L.Callback):
    """Waits before a batch until a test has interrupted the run, or lets it go on.

    It writes `waiting.<name>` and waits for `go`, in the folder of the environment's WAIT_IN. It
    waits once: a run that is started again finds `waiting.<name>` and goes on.

    Args:
        step: The number of the step that is waited before.
        fails: Whether the process then raises an error, at each start.
        rank: The process that does so; -1 for all.
    """

    def __init__(self, step: int, fails: bool = False, rank: int = -1) -> None:
        self.step, self.fails, self.rank = step, fails, rank

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        folder = os.environ.get("WAIT_IN")
        mine = self.rank in (-1, trainer.global_rank)
        if trainer.global_step != self.step or folder is None or not mine:
            return
        if self.fails:
            raise RuntimeError("broken on purpose")
        part = os.environ.get("SLURM_ARRAY_TASK_ID", Path(trainer.default_root_dir).name)
        mark = Path(folder, f"waiting.{part}.{trainer.global_rank}")
        if mark.exists():
            return
        mark.touch()
        limit = time.monotonic() + 300
        asked = [each for each in trainer.callbacks if hasattr(each, "signal")]
        while not Path(folder, "go").exists() and time.monotonic() < limit:
            if any(each.signal for each in asked):
                return
            time.sleep(0.05)
