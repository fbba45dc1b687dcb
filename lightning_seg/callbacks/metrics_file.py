"""The files of CSV and TensorBoard loggers are kept when a run goes on in the same folder."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from lightning_seg.callbacks.logged_once import LoggedOnce, Row, last_steps
from lightning_seg.files import write_whole

METRICS = "metrics.csv"


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
        if isinstance(logger, CSVLogger) and Path(logger.log_dir, METRICS).is_file():
            if trainer.is_global_zero:
                _remove_half_line(Path(logger.log_dir, METRICS))
            logger._experiment = _KeepingWriter(log_dir=logger.log_dir)


def log_once(trainer: Trainer) -> None:
    """Let CSV and TensorBoard loggers leave out what the files in their folders hold already.

    Args:
        trainer: A Trainer that is about to resume a training.
    """
    for logger in trainer.loggers:
        if not trainer.is_global_zero:
            return
        if isinstance(logger, CSVLogger):
            rows = list(_rows(Path(logger.log_dir, METRICS)))
        elif isinstance(logger, TensorBoardLogger):
            rows = list(_scalars(Path(logger.log_dir)))
        else:
            continue
        if rows:
            LoggedOnce(logger, last_steps(rows)).install()


def write_out(trainer: Trainer) -> None:
    """Write the rows that CSV and TensorBoard loggers still hold in memory."""
    for logger in trainer.loggers:
        if isinstance(logger, (CSVLogger, TensorBoardLogger)) and trainer.is_global_zero:
            logger.save()


def _remove_half_line(file: Path) -> None:
    """Remove the last line of a file where a killed process has left a part of it."""
    text = file.read_text(encoding="utf-8")
    if text and not text.endswith("\n"):
        with write_whole(file) as part:
            part.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")


def _rows(file: Path) -> Iterator[Row]:
    if not file.is_file():
        return
    with file.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            step = row.pop("step", None)
            if step:
                yield int(step), {key: value for key, value in row.items() if value}


def _scalars(folder: Path) -> Iterator[Row]:
    """Return the scalars in the event files of a folder; none where TensorBoard is missing."""
    try:
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    except ImportError:
        return
    for file in sorted(folder.glob("events.out.tfevents.*")):
        events: Any = EventFileLoader(str(file)).Load()
        for event in events:
            found = {
                value.tag: math.nan
                for value in event.summary.value
                if value.metadata.plugin_data.plugin_name == "scalars"
                or value.HasField("simple_value")
            }
            if found:
                yield int(event.step), found
