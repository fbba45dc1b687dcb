"""Exceptions whose message is meant for the person whose files these are."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_seg.errors import UserError


class DataError(UserError):
    """A file, a folder or a data option that cannot work.

    The message names the file, what was found, what was expected and the option to change.
    """

    scope = "data"


class OptionError(DataError):
    """An option that cannot work, found while data are loaded: no single file is at fault."""


class UnpairedError(DataError):
    """Images without masks, or masks without images.

    Attributes:
        defects: One sentence for each file without a partner.
    """

    def __init__(
        self, message: str, defects: list[str], *, option: str | Sequence[str] = ()
    ) -> None:
        super().__init__(message, option=option)
        self.defects = defects

    def __reduce__(self) -> tuple[object, ...]:
        # a loader process hands the error over: both arguments have to travel
        return UnpairedError, (self.args[0], self.defects), self.__dict__


def some(names: list[str], at_most: int = 5) -> str:
    """Join the first few names: `a, b, c and 7 more`."""
    shown = ", ".join(names[:at_most])
    return shown if len(names) <= at_most else f"{shown} and {len(names) - at_most} more"
