"""A training that goes on goes on in its W&B run, and every step is in it once."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_seg.callbacks.logged_once import WITH_ALL, LoggedOnce, Row, last_steps
from lightning_seg.callbacks.wandb_files import rows_of_run
from lightning_seg.files import write_whole
from lightning_seg.run_folder import run_folder
from lightning_seg.slurm_job import job_name

RUN_FILE = "wandb_run.json"
"""The file beside the checkpoints that holds the id of the W&B run."""
ROWS_FILE = "wandb_rows.jsonl"
"""The file beside it that holds every row that was logged; W&B's own process loses the last ones
when it is killed."""


def go_on(trainer: Trainer, checkpoint: str | Path) -> None:
    """Let a W&B logger go on with the run that wrote a checkpoint, if a file beside it tells one.

    Args:
        trainer: A Trainer that is about to resume a training.
        checkpoint: The checkpoint that the training goes on from.
    """
    above = Path(checkpoint).absolute().parents[:2]
    found = next((folder for folder in above if _read(folder / RUN_FILE)), None)
    if found is not None:
        go_on_in(trainer, found)


def go_on_in_job(trainer: Trainer) -> None:
    """Let a W&B logger go on with the run of a requeued job that has left no checkpoint."""
    job = job_name()
    folder = None if job is None else folder_of_job(trainer, job)
    if folder is not None:
        go_on_in(trainer, folder)


def go_on_in(trainer: Trainer, folder: Path) -> None:
    """Let a W&B logger go on with the run whose record is in a folder.

    Rows of the record that are missing in W&B's files are logged again, before all others.
    """
    record = _read(folder / RUN_FILE)
    for logger in wandb_loggers(trainer):
        if record is None or logger.version is not None:
            continue
        logger._id = logger._wandb_init["id"] = record["id"]
        logger._wandb_init["project"] = logger._project = record["project"]
        rows = _rows(folder / ROWS_FILE)
        written = rows_of_run(Path(logger.save_dir or "."), record["id"])
        once = _Kept(logger, last_steps([*rows, *(written or [])]), [])
        once.missing = _missing(rows, written)
        once.install()
        last = max(once.known.values(), default=-1)
        rank_zero_info(
            f"the W&B run {record['id']} goes on; its steps up to {last} are not logged again"
        )


def keep_id(trainer: Trainer) -> None:
    """Write the id of the W&B run beside the checkpoints, and every row that is logged.

    Every process must call this function, because the run's folder is asked for.

    Args:
        trainer: A Trainer whose training starts.
    """
    folder = run_folder(trainer)
    callbacks = trainer.checkpoint_callbacks
    places = [each.dirpath for each in callbacks if isinstance(each, ModelCheckpoint)]
    folders = [Path(each) for each in places if each] or [folder]
    for logger in wandb_loggers(trainer):
        if not trainer.is_global_zero or logger.version is None:
            continue
        earlier = logger.__dict__.get("log_metrics")
        once = _Kept(logger, {}, folders)
        if isinstance(earlier, _Kept):
            once.known, once.missing = earlier.known, earlier.missing
        once.install()
        once.begin(fresh=not isinstance(earlier, _Kept))


def finish(trainer: Trainer, code: int) -> None:
    """End the W&B runs of a Trainer; a code other than 0 marks them as failed."""
    for logger in wandb_loggers(trainer):
        if logger._experiment is None or not trainer.is_global_zero:
            continue
        try:
            logger._experiment.finish(exit_code=code)
        except OSError:  # the signal that ends this run has ended W&B's process as well
            import wandb

            rank_zero_warn(_ENDED)
            with contextlib.suppress(Exception):  # else it reports the same at the exit
                cleanup: Any = wandb.setup().assert_service()._cleanup
                cleanup()


_ENDED = (
    "W&B's own process has ended before this one: rows that it had not written are logged when the "
    "training goes on"
)


class _Kept(LoggedOnce):
    """Logs every row once, and keeps the rows in a file."""

    def __init__(self, logger: WandbLogger, known: dict[str, int], folders: list[Path]) -> None:
        super().__init__(logger, known, self.keep)
        self.folders = folders
        self.missing: list[Row] = []
        self.works = True

    def begin(self, fresh: bool) -> None:
        """Write the run's id, and log the rows that W&B's files lack."""
        logger = self.logger
        content = {"id": logger.version, "project": logger.name, "job": job_name()}
        with self._guarded():
            for folder in self.folders:
                with write_whole(folder / RUN_FILE) as part:
                    part.write_text(f"{json.dumps(content)}\n", encoding="utf-8")
                if fresh:
                    (folder / ROWS_FILE).unlink(missing_ok=True)
        for step, values in self.missing:
            self.send(values, step)
        self.missing = []

    def keep(self, metrics: Mapping[str, Any], step: int) -> None:
        """Add a row to the file."""
        row = {key: _plain(value) for key, value in metrics.items()}
        with self._guarded():
            for folder in self.folders:
                with (folder / ROWS_FILE).open("a", encoding="utf-8") as file:
                    file.write(f"{json.dumps([step, row])}\n")

    def send(self, metrics: Mapping[str, Any], step: int | None) -> None:
        """Log a row while W&B's process lives; the end of that process does not end a training."""
        try:
            if self.works:
                super().send(metrics, step)
        except ConnectionError:
            self.works = False
            rank_zero_warn(_ENDED)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            rank_zero_warn(f"{error.filename} cannot be written: {error.strerror}")
            self.folders = []


def wandb_loggers(trainer: Trainer) -> Iterator[WandbLogger]:
    """Return the W&B loggers of a Trainer."""
    return (each for each in trainer.loggers if isinstance(each, WandbLogger))


def folder_of_job(trainer: Trainer, job: str) -> Path | None:
    """Return the folder in which a job of SLURM has left the record of its W&B run."""
    for logger in wandb_loggers(trainer):
        for file in sorted(Path(logger.save_dir or ".").rglob(RUN_FILE)):
            record = _read(file)
            if record is not None and record.get("job") == job:
                return file.parent
    return None


def _missing(rows: list[Row], found: list[Row] | None) -> list[Row]:
    """Return what W&B's files lack of the rows; nothing where the files cannot be read."""
    if found is None:
        return []
    known = last_steps(found)
    lacking: list[Row] = []
    for step, row in rows:
        new = {key for key in row if row[key] is not None and step > known.get(key, -1)}
        if new - WITH_ALL:
            lacking.append((step, {key: row[key] for key in new}))
    return lacking


def _plain(value: Any) -> Any:
    """Return a number or a text as it is, and None for a picture, a table and the like."""
    value = value.item() if hasattr(value, "item") else value
    return value if isinstance(value, (int, float, str)) else None


def _rows(file: Path) -> list[Row]:
    """Return the rows of a file, without a last one that was cut off."""
    found: list[Row] = []
    with contextlib.suppress(OSError, ValueError, TypeError):
        for line in file.read_text(encoding="utf-8").splitlines():
            step, row = json.loads(line)
            found.append((int(step), dict(row)))
    return found


def _read(file: Path) -> dict[str, Any] | None:
    """Return the content of a file; None where it is missing or damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return dict(content) if content["id"] and content["project"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
