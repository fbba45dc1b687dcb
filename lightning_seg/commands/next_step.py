"""The last line of a run: what was written where, and the command that usually comes next."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from lightning import Callback, Trainer

from lightning_seg.callbacks import (
    AutoLabels,
    PredictionWriter,
    SaveEncoder,
    ScoreFiles,
    StopOnSignal,
)
from lightning_seg.callbacks.label_folder import PIECE
from lightning_seg.commands.autolabel import show, student_words, written
from lightning_seg.commands.messages import in_flags
from lightning_seg.commands.verbs import VerbParser
from lightning_seg.run_folder import CONFIG, run_folder
from lightning_seg.training import PretrainingModule

Kind = TypeVar("Kind", bound=Callback)


def next_step(verb: str, trainer: Trainer, words: Sequence[str]) -> str:
    """Return the line for a run of a verb of the Trainer.

    Args:
        verb: The verb that has been run.
        trainer: The Trainer that has run it.
        words: The command line after the verb.

    Returns:
        One line without a line break.
    """
    if verb == "fit":
        return _after_fit(trainer, words)
    if verb == "autolabel":
        return _after_autolabel(trainer, words)
    if verb == "predict":
        writer = _callback(trainer, PredictionWriter)
        folder = writer.folder(trainer)
        look = folder / ("overlays" if writer.overlays else "masks")
        count = f"{writer.written} prediction{'s' * (writer.written != 1)}"
        written = f"written: {count} in {_short(folder)}"
        if writer.kept:
            written += f", where {writer.kept} more were already"
        return f"{written}; next: open {_short(look)}" if writer.written else written
    files = _callback(trainer, ScoreFiles).written
    if files is None:
        log = _log_folder(trainer)
        return f"written: the scores, in {_short(log)}" if log and log.is_dir() else "written: logs"
    where = f"written: the scores, in {_short(files)}"
    run = files.parent if files.name == verb else files
    return f"{where}; next: {as_typed('report', [_short(run)])}"


def failures(trainer: Trainer) -> str | None:
    """Return the list of the images that could not be read; None where there are none."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    writers = [each for each in callbacks if isinstance(each, (PredictionWriter, AutoLabels))]
    failed = [pair for writer in writers for pair in writer.failed]
    if not failed:
        return None
    lines = [f"{name}: {in_flags(text, 'data', VerbParser.keys())}" for name, text in failed]
    images = f"{len(failed)} image{'s' * (len(failed) != 1)}"
    return "\n  ".join([f"not predicted: {images} that could not be read", *lines])


def ending_signal(trainer: Trainer) -> int:
    """Return the number of the signal that asked this process to end; 0 where none did."""
    return _callback(trainer, StopOnSignal).signal


def resume_line(verb: str, trainer: Trainer, words: Sequence[str]) -> str:
    """Return the line for a run that was asked to end.

    Args:
        verb: The verb that was running.
        trainer: The Trainer that ran it.
        words: The command line after the verb.
    """
    # where none asked this process, SIGTERM has asked another one
    line = f"ended by {signal.Signals(ending_signal(trainer) or signal.SIGTERM).name}"
    if verb != "fit":
        return f"{line}; to repeat it: {as_typed(verb, words)}"
    line += f" after {trainer.global_step} steps"
    checkpoint = _callback(trainer, StopOnSignal).checkpoint
    if checkpoint is None:
        return f"{line}, without a new checkpoint"
    rest = [word for word in _pairs(words) if word[0].partition("=")[0] != "--ckpt_path"]
    options = [*(part for word in rest for part in word), "--ckpt_path", _short(checkpoint)]
    return f"{line}; to go on: {as_typed(verb, options)}"


def _pairs(words: Sequence[str]) -> list[list[str]]:
    """Return each option with the words that follow it."""
    pairs: list[list[str]] = []
    for word in words:
        if word.startswith("-") or not pairs:
            pairs.append([word])
        else:
            pairs[-1].append(word)
    return pairs


def _after_fit(trainer: Trainer, words: Sequence[str]) -> str:
    keeper = trainer.checkpoint_callback
    # a training that ends before its first validation has a last checkpoint only
    checkpoint = getattr(keeper, "best_model_path", "") or getattr(keeper, "last_model_path", "")
    encoder, log = _callback(trainer, SaveEncoder).written, _log_folder(trainer)
    written = [_short(Path(each)) for each in (checkpoint, encoder, log) if each]
    where = f"written: {', '.join(written) or 'nothing'}"
    if isinstance(trainer.lightning_module, PretrainingModule):
        option = "--model.network.weights"
        return f"{where}; next: fit a network with {option} {_short(encoder)}" if encoder else where
    if not checkpoint:
        return where
    saved = run_folder(trainer) / CONFIG
    options = ["-c", _short(saved)] if saved.is_file() else words
    return f"{where}; next: {as_typed('test', [*options, '--ckpt_path', _short(Path(checkpoint))])}"


def _after_autolabel(trainer: Trainer, words: Sequence[str]) -> str:
    labels = _callback(trainer, AutoLabels)
    show(labels.report)
    folder = labels.folder(trainer)
    run = f"{_short(folder)}_student"
    options = student_words(_pairs(words), _short(folder / PIECE))
    options += ["--trainer.default_root_dir", run]
    return f"{written(labels, _short(folder))}; next: {as_typed('fit', options)}"


def _log_folder(trainer: Trainer) -> Path | None:
    return run_folder(trainer) if trainer.loggers else None


def _callback(trainer: Trainer, kind: type[Kind]) -> Kind:
    """Return the one callback of a kind that the command attaches to every run."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next(each for each in callbacks if isinstance(each, kind))


def as_typed(verb: str, words: Sequence[str]) -> str:
    """Return the command of a verb, as it is typed to start this program."""
    program = Path(sys.argv[0]).name
    python = "python " if program.endswith(".py") else ""
    return f"{python}{program} {verb} {shlex.join(words)}"


def _short(path: Path) -> str:
    """Return a path relative to the working folder where it lies below."""
    path, here = Path(os.path.abspath(path)), Path.cwd()  # noqa: PTH100
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
