"""The exceptions whose messages are meant for the person at the keyboard."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from importlib.util import find_spec


class UserError(ValueError):
    """A mistake in a setting or a file, with a message that says how to mend it.

    Python code shows the options as keyword arguments, `(option: labeled=)`; the command shows the
    same options as flags, `(option: --data.labeled)`, and prints no traceback.

    Args:
        message: What was found and what was expected, without the options to change.
        option: The keyword argument to change, or several. A value to try follows a space:
            `freeze_batch_norm all`. An option of another object has that object's name in front:
            `trainer.max_steps`, `data.crop_size`.

    Attributes:
        options: The options to change, empty where none would help.
        scope: The part of a configuration that holds an option without a prefix.

    Examples:
        >>> print(UserError("num_workers must be at least 0, not -1", option="num_workers 0"))
        num_workers must be at least 0, not -1 (option: num_workers=0)
    """

    scope = "model"

    def __init__(self, message: str, *, option: str | Sequence[str] = ()) -> None:
        super().__init__(message)
        self.options = (option,) if isinstance(option, str) else tuple(option)

    def __str__(self) -> str:
        message = super().__str__()
        if not self.options:
            return message
        shown = [f"{name}={value}" for name, _, value in map(_parted, self.options)]
        return f"{message} (option{'s' * (len(shown) > 1)}: {', '.join(shown)})"


class SetupError(UserError):
    """A setting, a weight file or a checkpoint that cannot work."""


class NonFiniteLossError(SetupError):
    """A training whose loss has become NaN or infinite."""


def require_range(
    low: float, high: float, *, error: type[UserError] = SetupError, **settings: float
) -> None:
    """Raise an error for every setting outside the closed range [low, high].

    Args:
        low: Smallest value that is accepted.
        high: Largest value that is accepted; `math.inf` accepts every finite value.
        error: The exception to raise.
        settings: Values by the names of their options.

    Raises:
        UserError: With the name, the value and the range; of the class `error`.
    """
    for name, value in settings.items():
        if not low <= value <= min(high, sys.float_info.max):
            wanted = f"at least {low}" if high == math.inf else f"in [{low}, {high}]"
            raise error(f"{name} must be {wanted}, not {value}", option=name)


def require_one_of(*choices: str, error: type[UserError] = SetupError, **settings: str) -> None:
    """Raise an error for every setting that is none of the choices.

    Args:
        choices: The values that are accepted.
        error: The exception to raise.
        settings: Values by the names of their options.

    Raises:
        UserError: With the name, the value and the choices; of the class `error`.
    """
    for name, value in settings.items():
        if value not in choices:
            raise error(f"{name} must be {' or '.join(choices)}, not {value}", option=name)


def _parted(option: str) -> tuple[str, str, str]:
    return option.partition(" ")


def require_packages(needing: str, extra: str, *packages: str) -> None:
    """Raise an error where a package of an extra is missing.

    Args:
        needing: The beginning of the sentence, such as `ONNX files need`.
        extra: Name of the extra.
        packages: Names of the packages.

    Raises:
        SetupError: With the missing ones and the command that installs the extra.
    """
    if missing := [name for name in packages if find_spec(name) is None]:
        raise SetupError(f"{needing} {' and '.join(missing)}: pip install 'lightning-seg[{extra}]'")
