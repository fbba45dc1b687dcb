"""The exceptions whose messages are meant for the person at the keyboard."""

from __future__ import annotations

import math
import sys


class SetupError(ValueError):
    """A setting, a weight file or a checkpoint that cannot work.

    The message names what was found, what was expected and the option to change; the command
    prints it without a traceback.
    """


def require_range(low: float, high: float, **settings: float) -> None:
    """Refuse settings of a method that lie outside a range.

    Args:
        low: Smallest value.
        high: Largest value; `math.inf` allows every finite one.
        settings: Values by the names of their options.

    Raises:
        SetupError: With the name, the value and the range.
    """
    for name, value in settings.items():
        if not low <= value <= min(high, sys.float_info.max):
            wanted = f"at least {low}" if high == math.inf else f"in [{low}, {high}]"
            raise SetupError(f"{name} must be {wanted}, not {value} (option: --model.{name})")


def require_one_of(*choices: str, **settings: str) -> None:
    """Refuse settings of a method that are none of the choices.

    Raises:
        SetupError: With the name, the value and the choices.
    """
    for name, value in settings.items():
        if value not in choices:
            wanted = " or ".join(choices)
            raise SetupError(f"{name} must be {wanted}, not {value} (option: --model.{name})")


class NonFiniteLossError(SetupError):
    """A training whose loss has become NaN or infinite."""
