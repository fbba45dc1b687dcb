"""A training that goes on goes on in its W&B run, and every step is in it once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_seg.files import write_whole
from lightning_seg.run_folder import run_folder

RUN_FILE = "wandb_run.json"
"""The file beside the checkpoints that holds the id of the W&B run and its last step."""


def go_on(trainer: Trainer, checkpoint: str | Path) -> None:
    """Let a W&B logger go on with the run that wrote a checkpoint, if a file beside it tells one.

    Args:
        trainer: A Trainer that is about to resume a training.
        checkpoint: The checkpoint that the training goes on from.
    """
    above = Path(checkpoint).absolute().parents[:2]
    found = next((content for folder in above if (content := _read(folder / RUN_FILE))), None)
    for logger in _wandb_loggers(trainer):
        if found is None or logger.version is not None:
            continue
        logger._id = logger._wandb_init["id"] = found["id"]
        logger._wandb_init["project"] = logger._project = found["project"]
        _Once(logger, found["last_step"], []).install()
        rank_zero_info(
            f"the W&B run {found['id']} goes on; its steps up to {found['last_step']} are not "
            "logged again"
        )


def keep_id(trainer: Trainer) -> None:
    """Write the id of the W&B run beside the checkpoints, and the last step at every log.

    Every process must call this function, because the run's folder is asked for.

    Args:
        trainer: A Trainer whose training starts.
    """
    folder = run_folder(trainer)
    callbacks = trainer.checkpoint_callbacks
    places = [each.dirpath for each in callbacks if isinstance(each, ModelCheckpoint)]
    files = [Path(each) / RUN_FILE for each in places if each] or [folder / RUN_FILE]
    for logger in _wandb_loggers(trainer):
        if not trainer.is_global_zero or logger.version is None:
            continue
        once = logger.__dict__.get("log_metrics")
        last = once.last_step if isinstance(once, _Once) else -1
        once = _Once(logger, last, files)
        once.install()
        once.write()


def finish(trainer: Trainer, code: int) -> None:
    """End the W&B runs of a Trainer; a code other than 0 marks them as failed."""
    for logger in _wandb_loggers(trainer):
        if logger._experiment is not None and trainer.is_global_zero:
            logger._experiment.finish(exit_code=code)


class _Once:
    """Takes the place of a logger's `log_metrics`, and leaves out steps that the run has."""

    def __init__(self, logger: WandbLogger, known: int, files: list[Path]) -> None:
        self.logger = logger
        self.known = self.last_step = known
        self.files = files

    def install(self) -> None:
        self.logger.log_metrics = self  # type: ignore[method-assign]

    def __call__(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        if step is not None and step <= self.known:
            return
        type(self.logger).log_metrics(self.logger, metrics, step)
        if step is not None and step > self.last_step:
            self.last_step = step
            self.write()

    def write(self) -> None:
        content = {
            "id": self.logger.version,
            "project": self.logger.name,
            "last_step": self.last_step,
        }
        try:
            for file in self.files:
                with write_whole(file) as part:
                    part.write_text(f"{json.dumps(content)}\n", encoding="utf-8")
        except OSError as error:
            rank_zero_warn(f"{error.filename} cannot be written: {error.strerror}")
            self.files = []


def _wandb_loggers(trainer: Trainer) -> Iterator[WandbLogger]:
    return (each for each in trainer.loggers if isinstance(each, WandbLogger))


def _read(file: Path) -> dict[str, Any] | None:
    """Return the content of a file; None where it is missing or damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {**content, "last_step": int(content["last_step"])} if content["id"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
