"""How many pixels of each class every image shows."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from rich.progress import track

from datamodules.errors import DataError
from datamodules.reading.sources import Source
from lightning_seg.files import write_whole


def class_pixels(
    source: Source, num_classes: int, folder: Path | None = None, threads: int = 4
) -> NDArray[np.int64]:
    """Count the pixels of each class in every image, with a progress bar.

    Args:
        source: Labelled examples.
        num_classes: Number of classes C.
        folder: Folder that keeps the counts, which are read from there until a label changes. Of
            several processes one counts and the others wait. None keeps nothing.
        threads: Number of masks that are read at the same time, at least 1.

    Returns:
        (len(source), C) pixels. A mask that cannot be read has zeros; its error comes when the
        example is used.

    Raises:
        DataError: The folder cannot be written.
    """
    version = None if folder is None else source.labels_version()
    if folder is None or version is None:
        return _count(source, num_classes, threads)
    digest = sha256(f"{num_classes}\n{version}".encode()).hexdigest()[:16]
    kept = folder / f"class_pixels-{digest}.npy"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{kept}.lock"):
            if not kept.is_file():
                counts = _count(source, num_classes, threads)
                with write_whole(kept) as part:
                    np.save(part, counts)
        stored: NDArray[np.int64] = np.load(kept, allow_pickle=False)
    except OSError as error:
        raise DataError(
            f"the index of classes {kept} cannot be written or read: {error}",
            option="splits_dir",
        ) from error
    return stored


def _count(source: Source, num_classes: int, threads: int) -> NDArray[np.int64]:
    def pixels(index: int) -> NDArray[np.int64]:
        try:
            mask = source.mask(index)
        except DataError:
            mask = None
        if mask is None:
            return np.zeros(num_classes, np.int64)
        return np.bincount(mask.ravel(), minlength=256)[:num_classes].astype(np.int64)

    with ThreadPoolExecutor(threads) as pool:
        rows = pool.map(pixels, range(len(source)))
        return np.stack(list(track(rows, "counting the pixels of each class", total=len(source))))
