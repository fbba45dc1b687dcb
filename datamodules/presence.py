"""Which classes an image shows."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from datamodules.errors import DataError
from datamodules.sources import Source


def class_presence(source: Source, num_classes: int, threads: int = 4) -> NDArray[np.bool_]:
    """Read every mask of a source, with a progress bar.

    Args:
        source: Labelled examples.
        num_classes: Number of classes C.
        threads: How many examples are read at once.

    Returns:
        (len(source), C), True where an image shows a class.
    """

    def shown(index: int) -> NDArray[np.bool_]:
        try:
            mask = source.mask(index)
        except DataError:  # told when it is trained on
            mask = None
        if mask is None:
            return np.zeros(num_classes, np.bool_)
        return np.bincount(mask.ravel(), minlength=256)[:num_classes] > 0

    with ThreadPoolExecutor(threads) as pool:
        rows = pool.map(shown, range(len(source)))
        return np.stack(list(track(rows, "looking for classes", total=len(source))))
