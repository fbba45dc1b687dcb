"""The numbers of the steps of a training, and which of them are logged."""

from __future__ import annotations

import lightning as L


def step_is_logged(trainer: L.Trainer) -> bool:
    """Return whether the loggers get the values of the training step in progress."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and (trainer.global_step + 1) % every == 0


def number_steps(trainer: L.Trainer, uncounted: int) -> None:
    """Let a resumed training log with the step numbers of one that was not interrupted.

    Lightning (version 2.6) counts one step too many after some checkpoints, such as that of the end
    of a training or of a process that was killed. Before the first step of a training its counter
    is set to the number of steps made.

    Args:
        trainer: The Trainer of the run.
        uncounted: Number of the last steps that Lightning has not counted yet: 1 in a validation,
            and 0 elsewhere.
    """
    if trainer.global_step > 0:
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step - uncounted
