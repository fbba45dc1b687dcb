"""Reads back which rows W&B has written to its own files on this machine."""

from __future__ import annotations

import glob
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_seg.callbacks.logged_once import Row

_BLOCK, _HEADER = 32768, 7  # a LevelDB log: blocks, each record after a header
_WHOLE, _FIRST, _LAST = 1, 2, 4
STEP = "trainer/global_step"


def rows_of_run(folder: Path, run: str) -> list[Row] | None:
    """Return step and values of every row of a run that W&B's files hold.

    Args:
        folder: The `save_dir` of the logger.
        run: The id of the run.

    Returns:
        The rows; None where there is no file of the run, or W&B's format is another one.
    """
    pattern = f"{glob.escape(str(folder))}/wandb/*run-*-{glob.escape(run)}/*.wandb"
    # Path.glob takes no escaped folder
    files = sorted(map(Path, glob.glob(pattern)))  # noqa: PTH207
    try:
        return [row for file in files for row in _rows(file)] if files else None
    except (ImportError, AttributeError, OSError):
        return None


def _rows(file: Path) -> Iterator[Row]:
    from wandb.proto import wandb_internal_pb2

    for data in _records(file.read_bytes()):
        record: Any = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
        record.ParseFromString(data)
        if record.WhichOneof("record_type") != "history":
            continue
        values = {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json)
            for item in record.history.item
        }
        if STEP in values:
            yield int(values[STEP]), values


def _records(data: bytes) -> Iterator[bytes]:
    """Return the records of a LevelDB log up to the first one that is cut off or damaged."""
    place, parts = _HEADER, b""
    while place + _HEADER <= len(data):
        left = _BLOCK - place % _BLOCK
        checksum, length, kind = (
            struct.unpack("<IHB", data[place : place + _HEADER]) if left >= _HEADER else (0, 0, 0)
        )
        if kind == 0:  # the empty end of a block
            place += left
            continue
        content = data[place + _HEADER : place + _HEADER + length]
        if checksum != zlib.crc32(bytes([kind]) + content) & 0xFFFFFFFF:
            return
        parts = content if kind in (_WHOLE, _FIRST) else parts + content
        if kind in (_WHOLE, _LAST):
            yield parts
        place += _HEADER + length
