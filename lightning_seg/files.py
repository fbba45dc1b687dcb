"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PART = ".part-"
"""The beginning of the names of files that are being written."""


@contextmanager
def write_whole(path: Path, durable: bool = False) -> Iterator[Path]:
    """Write a file beside its place, and rename it when it is complete.

    A reader sees the earlier file or the new one, never a part of one, also when the process is
    killed, when the disk is full, or when several processes write the same file. The name of the
    part is hidden, short, and has the file's suffix, because some writers choose the format by it.

    Args:
        path: The file; its folder is made where it is missing.
        durable: Whether the content is on the disk before the file gets its name, so that a crash
            of the machine leaves the earlier file or the new one, too.

    Yields:
        The path to write to. It becomes `path` where the block ends without an exception, and is
        removed otherwise.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with write_whole(Path(folder, "a.txt")) as part:
        ...         _ = part.write_text("whole")
        ...     Path(folder, "a.txt").read_text()
        'whole'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{PART}{secrets.token_hex(8)}{path.suffix}")
    try:
        yield part
        if durable:
            _flush(part)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _flush(path: Path) -> None:
    """Wait until the content of a file is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
