"""Examples of a source, augmented where their key says so, as tensors; and how they batch."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from datamodules.augmenting.steps import Augmentation, StrongView
from datamodules.errors import DataError, OptionError
from datamodules.reading.mask_decoder import VOID
from datamodules.reading.sources import Example, Source
from datamodules.selection.samplers import SampleKey

OnBadSample = Literal["raise", "skip"]


class SegmentationDataset(Dataset[dict[str, Any]]):
    """Tensors of a source's examples.

    Args:
        source: Where examples come from.
        augmentation: Applied for keys that carry a seed.
        strong: Makes a second view of the augmented image.
        on_bad_sample: `skip` takes the next example for one that cannot be used, warns, and
            counts it in the item's `skipped`.

    Each item is a dict: `image` (3, H, W) uint8 RGB, `mask` (H, W) int64 where there are labels,
    and `id`; for a key with a seed also `valid` (H, W) bool, False where padding is, and
    `image_strong` like `image` where there is a strong view.
    """

    def __init__(
        self,
        source: Source,
        augmentation: Augmentation | None = None,
        strong: StrongView | None = None,
        on_bad_sample: OnBadSample = "raise",
    ) -> None:
        self.source = source
        self.augmentation = augmentation
        self.strong = strong
        self.on_bad_sample = on_bad_sample

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: SampleKey | int) -> dict[str, Any]:
        """Return the example of a key; a bare number means: as it is.

        Raises:
            DataError: The example cannot be used and `on_bad_sample` is `raise`, or none can.
        """
        key = key if isinstance(key, SampleKey) else SampleKey(key)
        if self.on_bad_sample == "raise":
            return self._item(key)
        for skipped in range(len(self.source)):
            number = (key.number + skipped) % len(self.source)
            try:
                # what stands in for another is not evaluated a second time
                counted = key.counted and (key.seed is not None or skipped == 0)
                item = self._item(SampleKey(number, key.seed, counted))
            except OptionError:
                raise
            except DataError as error:
                warnings.warn(f"a bad sample is left out: {error}", stacklevel=2)
                continue
            return {**item, "skipped": skipped}
        raise DataError("not one example can be used; --data.on_bad_sample raise tells why")

    def _item(self, key: SampleKey) -> dict[str, Any]:
        number, seed, counted = key
        if seed is None or self.augmentation is None:
            example = self.source[number]
            return _tensors(example.id, example.image, example.mask, counted)
        drawn = self.augmentation.draw(seed)
        example = self.source.read(number, self.augmentation.reduction(drawn[1]))
        return training_item(example, seed, drawn, self.augmentation, self.strong)


def training_item(
    example: Example,
    seed: int,
    drawn: tuple[np.random.Generator, float],
    augmentation: Augmentation,
    strong: StrongView | None = None,
) -> dict[str, Any]:
    """Augment an example.

    Args:
        example: With or without labels.
        seed: Decides everything random.
        drawn: What `augmentation.draw` returned for the seed.
        augmentation: Its steps.
        strong: Makes a second view of the result.

    Returns:
        A training item as `SegmentationDataset` describes it.
    """
    image, mask, valid = augmentation(
        example.image, example.mask, seed, drawn, example.size, example.reduced
    )
    item = _tensors(example.id, image, mask, counted=True)
    item["valid"] = torch.from_numpy(np.ascontiguousarray(valid))
    if strong is not None:
        item["image_strong"] = _channels_first(strong(image, seed))
    return item


def _tensors(
    name: str, image: NDArray[np.uint8], mask: NDArray[np.uint8] | None, counted: bool
) -> dict[str, Any]:
    item: dict[str, Any] = {"image": _channels_first(image), "id": name}
    if mask is not None:
        item["mask"] = torch.from_numpy(mask.astype(np.int64, order="C"))
        if not counted:
            item["mask"].fill_(VOID)
    return item


def _channels_first(image: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack items to a batch: `image` (B, 3, H, W), `mask` (B, H, W), `id` list of B.

    `mask` is left out where an item has none.

    Raises:
        DataError: The images differ in size.
    """
    sizes = {tuple(item["image"].shape[1:]): item["id"] for item in items}
    if len(sizes) > 1:
        named = ", ".join(f"{name} {width}x{height}" for (height, width), name in sizes.items())
        raise DataError(
            f"images of different sizes cannot share a batch ({named}, width x height): "
            "--data.val_batch_size 1 takes them one by one, and in training an augmentation with "
            "RandomScaleCrop or a Resize gives them one size"
        )
    common = set.intersection(*(set(item) for item in items))
    batch: dict[str, Any] = default_collate(
        [{name: value for name, value in item.items() if name in common} for item in items]
    )
    return batch
