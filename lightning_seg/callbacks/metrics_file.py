"""The rows of metrics.csv are kept when a run goes on, or is tested, in the same folder."""

from __future__ import annotations

import csv
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter


class _KeepingWriter(ExperimentWriter):
    """Appends to the metrics.csv of an earlier run, where Lightning's writer would remove it."""

    def _check_log_dir_exists(self) -> None:
        with Path(self.metrics_file_path).open(newline="") as file:
            self.metrics_keys = next(csv.reader(file), [])


def keep_rows(trainer: Trainer) -> None:
    """Let every CSVLogger of a Trainer append to the metrics.csv that lies in its folder.

    Args:
        trainer: A Trainer that is about to resume a training, or to evaluate one.
    """
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger) and Path(logger.log_dir, "metrics.csv").is_file():
            logger._experiment = _KeepingWriter(log_dir=logger.log_dir)
