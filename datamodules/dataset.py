"""Examples of a source, augmented where their key says so, as tensors; and how they batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, default_collate

from datamodules.errors import DataError
from datamodules.files import read_image, read_mask
from datamodules.labels import VOID, MaskDecoder
from datamodules.sampling import SampleKey
from datamodules.transforms import augment

if TYPE_CHECKING:
    import albumentations as A


class Example(NamedTuple):
    """One image with its labels."""

    id: str
    image: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    mask: NDArray[np.uint8] | None
    """(H, W) class ids, 255 where void; None where there are no labels."""


class Source(Protocol):
    """Anything that holds examples by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class FileSource:
    """Examples read from image and mask files.

    Args:
        images: Image files by id.
        masks: Mask files by id, one for every image; None for images without labels.
        decode: Turns what a mask file stores into class ids.
    """

    def __init__(
        self,
        images: dict[str, Path],
        masks: dict[str, Path] | None = None,
        decode: MaskDecoder | None = None,
    ) -> None:
        self.ids = sorted(images)
        self.images = images
        self.masks = masks
        self.decode = decode

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        """Read one example.

        Raises:
            DataError: A file cannot be read, the sizes differ, or the mask holds what is no class.
        """
        name = self.ids[index]
        image = read_image(self.images[name])
        if self.masks is None or self.decode is None:
            return Example(name, image, None)
        path = self.masks[name]
        mask = self.decode(read_mask(path, self.decode.as_color), path)
        if mask.shape != image.shape[:2]:
            raise DataError(
                f"image {self.images[name]} is {_size(image)} pixels (width x height) but mask "
                f"{path} is {_size(mask)}; they must agree"
            )
        return Example(name, image, mask)


class SegmentationDataset(Dataset[dict[str, Any]]):
    """Tensors of a source's examples.

    Args:
        source: Where examples come from.
        pipeline: The augmentation for keys that carry a seed.

    Each item is a dict: `image` (3, H, W) uint8 RGB, `mask` (H, W) int64 where there are labels,
    and `id`.
    """

    def __init__(self, source: Source, pipeline: A.Compose | None = None) -> None:
        self.source = source
        self.pipeline = pipeline

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: SampleKey | int) -> dict[str, Any]:
        """Return the example of a key; a bare number means: as it is."""
        number, seed, counted = key if isinstance(key, SampleKey) else SampleKey(key)
        name, image, mask = self.source[number]
        if seed is not None and self.pipeline is not None and mask is not None:
            image, mask = augment(self.pipeline, image, mask, seed)
        item: dict[str, Any] = {
            "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            "id": name,
        }
        if mask is not None:
            item["mask"] = torch.from_numpy(mask.astype(np.int64))
            if not counted:
                item["mask"].fill_(VOID)
        return item


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack items to a batch: `image` (B, 3, H, W), `mask` (B, H, W), `id` list of B.

    Raises:
        DataError: The images differ in size.
    """
    sizes = {tuple(item["image"].shape[1:]): item["id"] for item in items}
    if len(sizes) > 1:
        named = ", ".join(f"{name} {width}x{height}" for (height, width), name in sizes.items())
        raise DataError(
            f"images of different sizes cannot share a batch ({named}, width x height); "
            "use --data.val_batch_size 1"
        )
    batch: dict[str, Any] = default_collate(list(items))
    return batch


def _size(array: NDArray[np.uint8]) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"
