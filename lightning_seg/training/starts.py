"""When a term of a loss starts: at an iteration, or after a share of the training."""

from __future__ import annotations

import math

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lightning_seg.errors import SetupError, require_range

ROUNDING = 1e-6
"""Part of an iteration that the product of a share and a length may exceed a whole number by."""


def require_start(**starts: int | float) -> None:
    """Raise an error for every start that is neither an iteration nor a share of the training.

    Args:
        starts: Iterations, which are integers of at least 0, or shares, which are floats in [0, 1),
            by the names of their options.

    Raises:
        SetupError: With the name and the value.
    """
    require_range(0, math.inf, error=SetupError, **starts)
    for name, start in starts.items():
        if isinstance(start, float) and start >= 1:
            raise SetupError(
                f"{name} must be an iteration, which is a whole number, or a share of the "
                f"training below 1, not {start}",
                option=f"{name} {math.ceil(start)}",
            )


def first_iteration(trainer: Trainer, start: int | float, option: str) -> int:
    """Return the number of the first iteration of a term, counted from 0.

    Args:
        trainer: The Trainer, whose `max_steps` or `max_epochs` set the length of the training.
        start: An iteration, or a share of the training in [0, 1).
        option: The name of the option, for the error.

    Raises:
        SetupError: The start is a share above 0, and the training has no end.
    """
    if isinstance(start, int) or start == 0:
        return int(start)
    length = trainer.estimated_stepping_batches
    if length == math.inf:
        raise SetupError(
            f"{option} is a share of the training, but the training has no end",
            option=("trainer.max_steps", "trainer.max_epochs", f"{option} 5000"),
        )
    return min(math.ceil(start * length - ROUNDING), int(length) - 1)  # every share is reached


def warn_of_late_starts(trainer: Trainer, **starts: int | float) -> None:
    """Warn once where the training ends before terms of the loss start.

    Args:
        trainer: The Trainer.
        starts: Iterations or shares of the training, by the names of their options.

    Raises:
        SetupError: A start is a share above 0, and the training has no end.
    """
    length = trainer.estimated_stepping_batches
    late = [
        f"{name}={start}"
        for name, start in starts.items()
        if first_iteration(trainer, start, name) >= length
    ]
    if late:
        rank_zero_warn(
            f"the training has {length} iterations and ends before {' and '.join(late)}: the "
            "terms never start. A share of the training, such as 0.25, fits every length"
        )
