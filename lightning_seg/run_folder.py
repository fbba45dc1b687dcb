"""The folder of a run: its configuration, checkpoints, pictures and scores."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

CONFIG = "config.yaml"
"""The file of a run's folder that holds the whole configuration of the training."""


def run_folder(trainer: Trainer) -> Path:
    """Return the folder of the run that a Trainer carries out.

    CSV and TensorBoard loggers number the folders of their runs. For any other logger, such as
    W&B, it is `<save_dir>/<name>/<version>`, below which Lightning keeps checkpoints; without a
    logger it is the Trainer's `default_root_dir`. The first of several loggers decides. Every
    process must call this function, because it asks the first process for the name.
    """
    loggers = trainer.loggers
    if not loggers or isinstance(loggers[0], (CSVLogger, TensorBoardLogger)):
        return Path(trainer.log_dir or trainer.default_root_dir)
    first = loggers[0]
    version = first.version if isinstance(first.version, str) else f"version_{first.version}"
    folder = Path(first.save_dir or trainer.default_root_dir, str(first.name), version)
    return Path(str(trainer.strategy.broadcast(str(folder))))


def folder_of_checkpoint(checkpoint: str | Path | None) -> Path | None:
    """Return the folder of the run that wrote a checkpoint; None where it is not known.

    It is the closest of the two folders above the file that holds a `config.yaml`.
    """
    if not checkpoint:
        return None
    above = Path(checkpoint).absolute().parents
    return next((each for each in above[:2] if (each / CONFIG).is_file()), None)
