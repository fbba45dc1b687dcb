"""The one exception whose message is meant for the person whose files these are."""


class DataError(ValueError):
    """A file, a folder or a data option that cannot work.

    The message names the file, what was found, what was expected and the option to change; the
    command prints it without a traceback.
    """


def some(names: list[str], at_most: int = 5) -> str:
    """Join the first few names: `a, b, c and 7 more`."""
    shown = ", ".join(names[:at_most])
    return shown if len(names) <= at_most else f"{shown} and {len(names) - at_most} more"
