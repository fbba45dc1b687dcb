"""Examples of a source as tensors, augmented where their key has a seed, and their batches."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from datamodules.augmenting.steps import Augmentation, Draw, StrongView
from datamodules.errors import DataError, OptionError
from datamodules.reading.mask_decoder import VOID
from datamodules.reading.sources import Example, Source, without_labels
from datamodules.selection.samplers import SampleKey

OnBadSample = Literal["raise", "skip"]
Failing = Literal["raise", "skip", "report"]
_NO_IMAGE = 64  # side in pixels of the image in a batch of which no image can be read


class SegmentationDataset(Dataset[dict[str, Any]]):
    """Examples of a source as tensors.

    An item is a dict of `image` (C, H, W), uint8 or float32 in [0, 1], `mask` (H, W) int64 class
    ids where the source has masks, and `id`. An item of a key with a seed is a training crop and
    also has `valid` (H, W) bool, False where padding is, and `image_strong` (C, H, W) where there
    is a strong view. Other items have `counted`, False for a copy that no score is to count.

    Args:
        source: The examples.
        augmentation: Makes a training crop for a key with a seed; None returns the whole example.
        strong: Makes the second view of a training crop; None makes none.
        on_bad_sample: `raise` raises an error for an example that cannot be used; `skip` warns,
            returns the next example that can be used, and counts the skipped ones in `skipped`;
            `report` returns an item of its `id`, of the error as `failed`, and of a black image.
        channels: Number of channels of that black image.
    """

    def __init__(
        self,
        source: Source,
        augmentation: Augmentation | None = None,
        strong: StrongView | None = None,
        on_bad_sample: Failing = "raise",
        channels: int = 3,
    ) -> None:
        self.channels = channels
        self.source = source
        self.augmentation = augmentation
        self.strong = strong
        self.on_bad_sample = on_bad_sample

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: SampleKey | int) -> dict[str, Any]:
        """Return the item of a key; an integer returns that example without augmentation.

        Raises:
            DataError: The example cannot be used and `on_bad_sample` is `raise`, or no example of
                the source can be used.
        """
        key = key if isinstance(key, SampleKey) else SampleKey(key)
        if self.on_bad_sample == "raise":
            return self._item(key)
        if self.on_bad_sample == "report":
            return self._item_or_failure(key)
        for skipped in range(len(self.source)):
            number = (key.number + skipped) % len(self.source)
            try:
                # a replacement must not be evaluated a second time
                counted = key.counted and (key.seed is not None or skipped == 0)
                item = self._item(SampleKey(number, key.seed, counted))
            except OptionError:
                raise
            except DataError as error:
                warnings.warn(f"a bad sample is left out: {error}", stacklevel=2)
                continue
            return {**item, "skipped": skipped}
        raise DataError(
            "not one example can be used; with raise the first error says why",
            option="on_bad_sample raise",
        )

    def _item_or_failure(self, key: SampleKey) -> dict[str, Any]:
        try:
            return self._item(key)
        except OptionError:
            raise
        except DataError as error:
            name, reason = self.source.ids[key.number], str(error)
        try:  # a mask is no part of a prediction
            example = without_labels(self.source)[key.number]
            return _evaluated(example.id, example.image, None, key.counted)
        except DataError:
            black = torch.zeros(self.channels, _NO_IMAGE, _NO_IMAGE, dtype=torch.uint8)
            return {"id": name, "failed": reason, "image": black}

    def _item(self, key: SampleKey) -> dict[str, Any]:
        if key.seed is None or self.augmentation is None:
            example = self.source[key.number]
            return _evaluated(example.id, example.image, example.mask, key.counted)
        draw = self.augmentation.draw(key.seed)
        example = self.source.read(key.number, self.augmentation.reduction(draw))
        return training_item(example, draw, self.augmentation, self.strong)


def training_item(
    example: Example, draw: Draw, augmentation: Augmentation, strong: StrongView | None = None
) -> dict[str, Any]:
    """Return the training crop of an example as an item of `SegmentationDataset`.

    Args:
        example: Image, and mask where there is one.
        draw: Result of `augmentation.draw` for the example's seed.
        augmentation: Makes the crop.
        strong: Makes the second view of the crop; None makes none.
    """
    # (H, W, C), (H, W) -> (h, w, C), (h, w), (h, w)
    image, mask, valid = augmentation(example, draw)
    # (h, w, C) -> (C, h, w)
    item = _tensors(example.id, image, mask)
    item["valid"] = _tensor(valid)
    if strong is not None:
        item["image_strong"] = _channels_first(strong(image, draw.seed))
    return item


def _tensors(name: str, image: NDArray[Any], mask: NDArray[np.uint8] | None) -> dict[str, Any]:
    """Return `image`, `id` and `mask` as tensors."""
    item: dict[str, Any] = {"image": _channels_first(image), "id": name}
    if mask is not None:
        item["mask"] = torch.from_numpy(mask.astype(np.int64, order="C"))
    return item


def _evaluated(
    name: str, image: NDArray[Any], mask: NDArray[np.uint8] | None, counted: bool
) -> dict[str, Any]:
    """Return an item that is not for training; the mask is all void where not `counted`."""
    item = _tensors(name, image, mask)
    if mask is not None and not counted:
        item["mask"].fill_(VOID)
    return {**item, "counted": counted}


def _channels_first(image: NDArray[Any]) -> Tensor:
    return _tensor(image.transpose(2, 0, 1))


def _tensor(array: NDArray[Any]) -> Tensor:
    """Return an array as a tensor, which shares its memory where possible."""
    array = np.ascontiguousarray(array)
    # an axis of length 1 may be mirrored and contiguous at once, which torch does not take; and an
    # array of one channel may still be that of the cache, which nobody may write to
    usable = min(array.strides) >= 0 and array.flags.writeable
    return torch.from_numpy(array if usable else array.copy())


def of_one_type(items: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """Return items whose images are all fractions where the images of some of them are.

    Files of 8 bits a channel give whole numbers in 0..255, and others give fractions in [0, 1].
    """
    if len({item["image"].dtype for item in items}) == 1:
        return items
    return [{**item, **_fractions(item)} for item in items]


def _fractions(item: dict[str, Any]) -> dict[str, Tensor]:
    images = {name: item[name] for name in ("image", "image_strong") if name in item}
    return {
        name: image if image.is_floating_point() else image.float() / 255
        for name, image in images.items()
    }


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join items to a batch: `image` (B, C, H, W), `mask` (B, H, W), `id` as a list of B names.

    Args:
        items: Items of `SegmentationDataset`. A value that is missing in one of them, such as
            `mask`, is left out of the batch. Items that failed are listed as (id, error) in the
            batch's `failed` and are no part of the rest; where all items failed, the rest is a
            black image under the id of the first one.

    Raises:
        DataError: The images differ in size.
    """
    failed = [(item["id"], item["failed"]) for item in items if "failed" in item]
    if failed:
        sound = [item for item in items if "failed" not in item]
        batch = collate(sound or [{"image": items[0]["image"], "id": items[0]["id"]}])
        return {**batch, "failed": failed}
    if "file" in items[0]:  # of a large image, which is read while it is predicted
        (item,) = items
        return {"id": [item["id"]], "path": [item["path"]], "file": item["file"]}
    items = of_one_type(items)
    sizes = {tuple(item["image"].shape[1:]): item["id"] for item in items}
    if len(sizes) > 1:
        different = ", ".join(f"{name} {width}x{height}" for (height, width), name in sizes.items())
        raise DataError(
            f"images of different sizes cannot share a batch ({different}, width x height): "
            "evaluate them one by one; in training, RandomScaleCrop or Resize as a step of the "
            "augmentation gives all crops one size",
            option=("val_batch_size 1", "augmentation"),
        )
    common = set.intersection(*(set(item) for item in items))
    return default_collate(  # type: ignore[no-any-return]
        [{name: value for name, value in item.items() if name in common} for item in items]
    )
