"""Which checkpoint a run starts from: a file, `best`, `last`, `auto` or `untrained`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_info

from lightning_seg.callbacks.wandb_run import folder_of_job
from lightning_seg.errors import SetupError
from lightning_seg.run_folder import run_folder
from lightning_seg.slurm_job import job_name, was_requeued
from lightning_seg.training.checkpoint_io import newest_whole

UNTRAINED = "untrained"
"""The word that lets `validate`, `test` and `predict` use a network without a checkpoint."""


def checkpoint_path(verb: str, given: str | None, trainer: Trainer) -> str | None:
    """Return the checkpoint that a run starts from; None starts with the network as it is built.

    Args:
        verb: `fit`, `validate`, `test`, `predict` or `autolabel`.
        given: The option `ckpt_path`: a file; `best` or `last`, the newest such checkpoint in the
            run's folder; `auto`, which `fit` takes as `last` where there is one and else starts
            anew; for the other verbs `untrained`, or the folder of a run, whose best checkpoint is
            taken, or else its last one; or None.
        trainer: The Trainer of the run.

    Raises:
        SetupError: There is no such checkpoint, a verb needs one, or `fit` would overwrite the
            checkpoints of an earlier run.
    """
    if given is None and verb != "fit":
        raise SetupError(
            f"`{verb}` needs a checkpoint; without one the network has its initial weights",
            option=("ckpt_path FILE", "ckpt_path best", f"ckpt_path {UNTRAINED}"),
        )
    if given == UNTRAINED and verb != "fit":
        return None
    if given is not None and verb != "fit" and _is_run(Path(given).expanduser()):
        return str(checkpoint_of(Path(given).expanduser()))
    if given is None and was_requeued():
        rank_zero_info("the job was requeued: it goes on from its last checkpoint, if there is one")
        return _going_on(newest_whole(_last_of_job(trainer)))
    if given == "auto" and verb == "fit":
        return _going_on(newest("last", trainer))
    if given in ("best", "last"):
        return str(_required(given, trainer))
    if given is None and not getattr(trainer, "fast_dev_run", False):
        _require_no_earlier_run(trainer)
    return given


def checkpoint_of(path: Path, option: str = "ckpt_path") -> Path:
    """Return a file as it is, and of a run's folder its best checkpoint, or else its last one.

    Args:
        path: A checkpoint, or the folder of a run.
        option: The option that names it, for errors.

    Raises:
        SetupError: The folder has no checkpoint.
    """
    if not path.is_dir():
        return path
    for name in ("best", "last", ""):
        if found := newest_whole(path.rglob(f"{name}*.ckpt")):
            return found
    raise SetupError(f"there is no checkpoint in {path}", option=option)


def _is_run(path: Path) -> bool:
    """Return whether a path is a folder, and no checkpoint in several files."""
    return path.is_dir() and path.suffix != ".ckpt"


def _going_on(checkpoint: Path | None) -> str | None:
    if checkpoint is None:
        return None
    rank_zero_info(f"the training goes on from {checkpoint}")
    return str(checkpoint)


def starts_again(options: Mapping[str, Any]) -> bool:
    """Return whether a `fit` without a checkpoint repeats a requeued job from its first step."""
    return options.get("ckpt_path") is None and was_requeued()


def newest(name: str, trainer: Trainer) -> Path | None:
    """Return the newest undamaged checkpoint in a run's folders whose name begins with a word."""
    return newest_whole(path for path in _checkpoints(trainer) if path.stem.startswith(name))


def _required(name: str, trainer: Trainer) -> Path:
    found = newest(name, trainer)
    if found is None:
        folders = ", ".join(map(str, _folders(trainer)))
        there = [str(path) for path in _checkpoints(trainer)]
        shown = f"there are {', '.join(there[:6])}" if there else "there are no checkpoints"
        raise SetupError(
            f"no checkpoint {name}*.ckpt in {folders}: {shown}",
            option=("ckpt_path FILE", "trainer.default_root_dir"),
        )
    rank_zero_info(f"{name} checkpoint: {found}")
    return found


def _require_no_earlier_run(trainer: Trainer) -> None:
    for callback in _model_checkpoints(trainer):
        # a logger that numbers its versions gives each run a folder of its own
        folder = Path(callback.dirpath or run_folder(trainer) / "checkpoints")
        names = sorted(path.name for path in folder.glob("*.ckpt"))
        if names:
            raise SetupError(
                f"{folder} holds the checkpoints of an earlier run ({', '.join(names[:4])}), which "
                "this run would overwrite. Go on with that run (ckpt_path last), take another "
                "folder, or remove the earlier one",
                option=("ckpt_path last", "trainer.default_root_dir"),
            )


def _last_of_job(trainer: Trainer) -> list[Path]:
    """Return the last checkpoints of the job of SLURM that runs, and of no other training."""
    job = job_name()
    if job is None:
        return [path for path in _checkpoints(trainer) if path.stem.startswith("last")]
    if any(isinstance(each, WandbLogger) and each.version is None for each in trainer.loggers[:1]):
        run = folder_of_job(trainer, job)
    else:
        run = run_folder(trainer)
    named = [Path(each.dirpath) for each in _model_checkpoints(trainer) if each.dirpath]
    folders = named or ([] if run is None else [run, run / "checkpoints"])
    return [path for folder in folders for path in folder.glob("last*.ckpt")]


def _model_checkpoints(trainer: Trainer) -> Iterable[ModelCheckpoint]:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return (each for each in callbacks if isinstance(each, ModelCheckpoint))


def _folders(trainer: Trainer) -> list[Path]:
    """Return the folders below which a run's checkpoints lie."""
    named = [callback.dirpath for callback in _model_checkpoints(trainer)]
    below = [logger.save_dir for logger in trainer.loggers[:1]] or [trainer.default_root_dir]
    found = [Path(each) for each in (*named, *below, trainer.default_root_dir) if each]
    return list(dict.fromkeys(found))


def _checkpoints(trainer: Trainer) -> list[Path]:
    found = (path for folder in _folders(trainer) for path in folder.rglob("*.ckpt"))
    return sorted({path for path in found if path.is_file() and not path.name.startswith(".")})
