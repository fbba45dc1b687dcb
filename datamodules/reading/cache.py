"""Decoded images on disk, of which a crop reads its own part only."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.errors import DataError
from lightning_seg.files import write_whole

_FORMAT = 2  # to be increased when files are decoded to other pixels


class DecodedCache:
    """Arrays by source file, each written once and then memory-mapped.

    A source file whose size or time of change differs is decoded anew. Any number of processes may
    fill one cache, because an array appears whole or not at all.

    Args:
        folder: Folder of the arrays; created where it is missing. An RGB image takes height x width
            x 3 bytes, a mask a third of that.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, path: Path, decode: Callable[[], NDArray[Any]], kind: str) -> NDArray[Any]:
        """Return the decoded array of a file, from the cache where it has the array.

        An array that cannot be written is returned all the same, with a warning.

        Args:
            path: The source file.
            decode: Reads and decodes the source file; called where the cache has no array.
            kind: Name of the way of decoding; another kind is another array.

        Raises:
            DataError: The source file is missing.
        """
        try:
            state = path.stat()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error}") from error
        name = hashlib.sha256(f"{_FORMAT}\0{path.absolute()}\0{kind}".encode()).hexdigest()[:32]
        folder = self.folder / name[:2]
        kept = folder / f"{name}.{state.st_size}-{state.st_mtime_ns}.npy"
        # the array is missing, or cut off by a system that crashed
        with contextlib.suppress(OSError, ValueError, EOFError):
            return _map(kept)
        array = decode()
        try:
            with write_whole(kept) as part:
                np.save(part, array, allow_pickle=False)
            for stale in folder.glob(f"{name}.*.npy"):
                if stale != kept:
                    stale.unlink(missing_ok=True)
        except OSError as error:  # training works without a cache, only slower
            warnings.warn(
                f"the cache {self.folder} cannot be written: {error} (option: cache=)",
                stacklevel=2,
            )
        return array


def _map(path: Path) -> NDArray[Any]:
    mapped: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return mapped
