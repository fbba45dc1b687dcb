"""Decoded images on disk, of which a crop reads its own part only."""

from __future__ import annotations

import contextlib
import hashlib
import io
import mmap
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.errors import DataError
from lightning_seg.files import write_whole

_FORMAT = 2  # to be increased when files are decoded to other pixels
_OPEN = 128
"""Number of arrays that a process keeps open; each has one file descriptor."""


class _Kept(NamedTuple):
    """An open array."""

    source: tuple[int, ...]
    """What tells the source file from one that replaced it."""
    path: Path
    stored: tuple[int, ...]
    """What tells the file of the array from one that was cut off or replaced."""
    array: NDArray[Any]


class DecodedCache:
    """Arrays by source file, each written once and then memory-mapped.

    A source file whose size or time of change differs is decoded anew. Any number of processes may
    fill one cache, because an array appears whole or not at all. Each process keeps the arrays open
    that it used last, so that these need no path and no new mapping.

    Args:
        folder: Folder of the arrays; created where it is missing. An RGB image takes height x width
            x 3 bytes, a mask a third of that.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: OrderedDict[tuple[str, str], _Kept] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open arrays out of pickles: another process opens its own."""
        return {**self.__dict__, "_open": OrderedDict()}

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
        key, source = (os.fspath(path), kind), _identity(state)
        with contextlib.suppress(KeyError, OSError):
            open_one = self._open.pop(key)
            if open_one[:1] + open_one[2:3] == (source, _identity(open_one.path.stat())):
                self._open[key] = open_one  # now the last one to be closed
                return open_one.array
        return self._stored(path, state, decode, kind)

    def _keep(self, path: Path, kind: str, state: os.stat_result, stored: Path) -> NDArray[Any]:
        """Open a stored array, and close the one whose last use is longest ago."""
        array = _map(stored)
        kept = _Kept(_identity(state), stored, _identity(stored.stat()), array)
        self._open[os.fspath(path), kind] = kept
        while len(self._open) > _OPEN:
            with contextlib.suppress(KeyError):  # another thread has closed it
                self._open.popitem(last=False)
        return array

    def _stored(
        self, path: Path, state: os.stat_result, decode: Callable[[], NDArray[Any]], kind: str
    ) -> NDArray[Any]:
        """Return the mapped array of a file, or the decoded one, which is written."""
        name = hashlib.sha256(f"{_FORMAT}\0{path.absolute()}\0{kind}".encode()).hexdigest()[:32]
        folder = self.folder / name[:2]
        kept = folder / f"{name}.{state.st_size}-{state.st_mtime_ns}.npy"
        # the array is missing, or cut off by a system that crashed
        with contextlib.suppress(OSError, ValueError, EOFError):
            return self._keep(path, kind, state, kept)
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


def _identity(state: os.stat_result) -> tuple[int, ...]:
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


def _map(path: Path) -> NDArray[Any]:
    """Return the array of a .npy file, mapped: a tenth of the time of `np.load`.

    Raises:
        ValueError: The file is damaged or cut off.
    """
    with path.open("rb", buffering=0) as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    begin = 10 + int.from_bytes(mapped[8:10], "little")
    shape, order, dtype = _header(mapped[:begin])
    if begin + int(np.prod(shape)) * dtype.itemsize != len(mapped):
        raise ValueError(f"{path} is cut off")
    return np.ndarray(shape, dtype, mapped, begin, order=order)


@lru_cache(maxsize=4096)
def _header(header: bytes) -> tuple[tuple[int, ...], Literal["C", "F"], np.dtype[Any]]:
    """Return shape, order and dtype of a .npy file, whose header many files share."""
    file = io.BytesIO(header)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("no array of this cache")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    return shape, "F" if fortran else "C", dtype
