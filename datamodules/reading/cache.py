"""Decoded images on disk, of which a crop reads only its own part."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodules.errors import DataError

_FORMAT = 1  # to be raised when files are decoded to other pixels


class DecodedCache:
    """Arrays by source file, each written once and then memory-mapped.

    A source file that changes (size or time of change) is decoded anew. Any number of processes
    may fill one cache: a file appears whole or not at all.

    Args:
        folder: Where the arrays go; made where it is missing. An image takes height x width x 3
            bytes, a mask a third of that.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(
        self, path: Path, decode: Callable[[], NDArray[np.uint8]], kind: str
    ) -> NDArray[np.uint8]:
        """Return what `decode` makes of a file, from the cache where it is there.

        Args:
            path: The source file.
            decode: Reads it; called when the cache has nothing.
            kind: What else the result depends on, e.g. how labels are decoded.

        Raises:
            DataError: The source is missing.
        """
        try:
            state = path.stat()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error}") from error
        name = hashlib.sha256(f"{_FORMAT}\0{path.absolute()}\0{kind}".encode()).hexdigest()[:32]
        folder = self.folder / name[:2]
        kept = folder / f"{name}.{state.st_size}-{state.st_mtime_ns}.npy"
        with contextlib.suppress(
            OSError, ValueError, EOFError
        ):  # missing, or cut off by a full disk
            return _map(kept)
        array = decode()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write(kept, array)
            for stale in folder.glob(f"{name}.*.npy"):
                if stale != kept:
                    stale.unlink(missing_ok=True)
        except OSError as error:  # it works without, slowly
            warnings.warn(
                f"the cache {self.folder} cannot be written: {error} (option: --data.cache)",
                stacklevel=2,
            )
        return array


def _map(path: Path) -> NDArray[np.uint8]:
    mapped: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    return mapped


def _write(path: Path, array: NDArray[np.uint8]) -> None:
    """Write an array under a name of its own, then give it the name that others look for."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            np.save(file, array, allow_pickle=False)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
