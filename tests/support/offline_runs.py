"""Reads an offline run of W&B back: its file is a LevelDB log of W&B's own protobuf records."""

from __future__ import annotations

import json
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7


@dataclass
class OfflineRun:
    """The records of one file."""

    folder: Path
    id: str = ""
    exit_code: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def keys(self) -> set[str]:
        return {key for row in self.history for key in row if not key.startswith("_")}

    def values(self, key: str) -> list[tuple[int, Any]]:
        """(global step, value) of every row with the key."""
        return [(row["trainer/global_step"], row[key]) for row in self.history if key in row]

    def file(self, content: dict[str, Any]) -> Path:
        return self.folder / "files" / content["path"]


def offline_runs(folder: Path) -> list[OfflineRun]:
    """All offline runs below a folder, in the order of their start."""
    files = sorted(folder.rglob("offline-run-*/*.wandb"), key=lambda file: file.parent.name)
    return [_ended(file) for file in files]


def _ended(file: Path, patience: float = 10.0) -> OfflineRun:
    """Read a run that has been finished; another process may still write its last record."""
    limit = time.monotonic() + patience
    while (found := _read(file)).exit_code is None and time.monotonic() < limit:
        time.sleep(0.1)
    return found


def _read(file: Path) -> OfflineRun:
    from wandb.proto import wandb_internal_pb2

    found = OfflineRun(file.parent)
    for data in _records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.id = record.run.run_id
            _update(found.config, record.run.config.update)
        elif kind == "config":
            _update(found.config, record.config.update)
        elif kind == "history":
            row: dict[str, Any] = {}
            _update(row, record.history.item)
            found.history.append(row)
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found


def _update(into: dict[str, Any], items: Any) -> None:
    for item in items:
        *path, last = list(item.nested_key) or [item.key]
        place = into
        for name in path:
            place = place.setdefault(name, {})
        value, known = json.loads(item.value_json), place.get(last)
        both = isinstance(value, dict) and isinstance(known, dict)
        place[last] = {**known, **value} if both else value


def _records(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log, which follow a file header of 7 bytes in its first block."""
    assert data[:4] == b":W&B"
    place, parts = HEADER, b""
    while place + HEADER <= len(data):
        left = BLOCK - place % BLOCK
        if left < HEADER:
            place += left
            continue
        checksum, length, kind = struct.unpack("<IHB", data[place : place + HEADER])
        if kind == 0:  # an empty end of a block
            place += left
            continue
        content = data[place + HEADER : place + HEADER + length]
        assert checksum == zlib.crc32(bytes([kind]) + content) & 0xFFFFFFFF
        parts = content if kind in (1, 2) else parts + content
        if kind in (1, 4):
            yield parts
        place += HEADER + length
