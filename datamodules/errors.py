"""Exceptions whose message is meant for the person whose files these are."""

from __future__ import annotations


class DataError(ValueError):
    """A file, a folder or a data option that cannot work.

    The message names the file, what was found, what was expected and the option to change; the
    command prints it without a traceback.
    """


class OptionError(DataError):
    """An option that cannot work, found while data are loaded: no single file is at fault."""


class UnpairedError(DataError):
    """Images without masks, or masks without images.

    Attributes:
        defects: One sentence per lone file.
    """

    def __init__(self, message: str, defects: list[str]) -> None:
        super().__init__(message)
        self.defects = defects

    def __reduce__(self) -> tuple[type[UnpairedError], tuple[str, list[str]]]:
        return UnpairedError, (str(self), self.defects)  # from a loader process


def some(names: list[str], at_most: int = 5) -> str:
    """Join the first few names: `a, b, c and 7 more`."""
    shown = ", ".join(names[:at_most])
    return shown if len(names) <= at_most else f"{shown} and {len(names) - at_most} more"
