"""Images to predict: in memory, or as files that are read while they are predicted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from datamodules.errors import DataError
from datamodules.loading.dataset import SegmentationDataset
from datamodules.reading.decoding import Reading
from datamodules.reading.row_files import large_file
from datamodules.selection.samplers import SampleKey


class PredictionDataset(Dataset[dict[str, Any]]):
    """Items of a dataset with the `path` of their files, and large files as they are.

    An item of a large file has its `id`, its `path` and a `RowFile` as `file`, and no `image`.

    Args:
        whole: The items, whose images are in memory.
        paths: The file of each item; empty where items are no files.
        above: Number of pixels above which a file is not read by `whole`; None reads all files.
        reading: How large files are read.
    """

    def __init__(
        self, whole: SegmentationDataset, paths: Sequence[Path], above: int | None, reading: Reading
    ) -> None:
        self.whole = whole
        self.paths = paths
        self.above = above
        self.reading = reading

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, key: SampleKey | int) -> dict[str, Any]:
        """Return the item of a key."""
        if not self.paths:
            return self.whole[key]
        number = key.number if isinstance(key, SampleKey) else key
        path = self.paths[number]
        name = self.whole.source.ids[number]
        try:
            file = None if self.above is None else large_file(path, self.above, self.reading)
        except DataError as error:
            black = torch.zeros(self.whole.channels, 64, 64, dtype=torch.uint8)
            return {"id": name, "failed": str(error), "image": black}
        if file is not None:
            return {"id": name, "path": str(path), "file": file}
        return {**self.whole[key], "path": str(path)}
