"""Where a run's code comes from."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path


@cache
def commit(folder: Path | None = None) -> str | None:
    """Return the git commit of a folder, with `+` where tracked files have changed since.

    Args:
        folder: The folder; None takes the working folder, where a user's own code is.

    Returns:
        The 40 digits of the commit; None where the folder is in no git repository.
    """
    words = ["git", "-C", str(folder or Path.cwd())]
    try:
        found = _output([*words, "rev-parse", "HEAD"])
        changed = _output([*words, "status", "-s", "-uno"])
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{found}+" if changed else found


def _output(words: list[str]) -> str:
    run = subprocess.run(words, capture_output=True, text=True, timeout=10, check=True)
    return run.stdout.strip()
