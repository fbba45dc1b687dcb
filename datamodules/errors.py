"""Exceptions for mistakes in files and options, with messages for the user."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_seg.errors import UserError


class DataError(UserError):
    """A file, a folder or a data option that cannot be used.

    The message has the file, its content, the content that was expected, and the option to change.
    """

    scope = "data"


class OptionError(DataError):
    """An option that makes loading fail for any file, so that `on_bad_sample` must not skip it."""


class UnpairedError(DataError):
    """Images without masks, or masks without images.

    Args:
        message: Summary of the defects.
        defects: One sentence for each file without a partner.
        option: The option to change, or several.

    Attributes:
        defects: One sentence for each file without a partner.
    """

    def __init__(
        self, message: str, defects: list[str], *, option: str | Sequence[str] = ()
    ) -> None:
        super().__init__(message, option=option)
        self.defects = defects

    def __reduce__(self) -> tuple[object, ...]:
        # pickling passes one argument by default, and a loader process pickles its errors
        return UnpairedError, (self.args[0], self.defects), self.__dict__


def some(names: list[str], at_most: int = 5) -> str:
    """Join the first few names: `a, b, c and 7 more`."""
    shown = ", ".join(names[:at_most])
    return shown if len(names) <= at_most else f"{shown} and {len(names) - at_most} more"
