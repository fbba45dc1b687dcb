"""Labelled patches of a dataset's images, and their batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from datamodules.augmenting.patches import PatchMixer
from datamodules.errors import DataError
from datamodules.loading.dataset import SegmentationDataset, of_one_type
from datamodules.selection.samplers import SampleKey
from datamodules.selection.seeds import RandomStream, generator


class PatchDataset(Dataset[dict[str, Any]]):
    """Patches of a segmentation dataset's examples.

    An item is a dict of `image` (K, C, o, o), `label` (K,) int64 class ids without void,
    and `id`.

    In training, where a key has a seed, the patches are cut out of the training crop. An example
    without any labelled pixel is replaced by the next example with one, so that every item has K
    patches; `skipped` counts the replaced examples. In evaluation the patches are cut out of the
    whole image, the same ones each time; an example without labelled pixels has no patches.

    Args:
        examples: Image and mask of each key.
        mixer: Draws the patches.
        seed: Seed of the patches in evaluation, at least 0.
    """

    def __init__(self, examples: SegmentationDataset, mixer: PatchMixer, seed: int) -> None:
        self.examples = examples
        self.mixer = mixer
        self.seed = seed

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, key: SampleKey | int) -> dict[str, Any]:
        """Return the patches of a key.

        Raises:
            DataError: The example cannot be used, or no training example has a labelled pixel.
        """
        key = key if isinstance(key, SampleKey) else SampleKey(key)
        if key.seed is None:
            rng = generator(self.seed, RandomStream.PATCHES, key.number)
            return self._patches(self.examples[key], rng)
        for passed in range(len(self)):
            number = (key.number + passed) % len(self)
            example = self.examples[SampleKey(number, key.seed, key.counted)]
            item = self._patches(example, generator(key.seed, RandomStream.PATCHES))
            if len(item["label"]) > 0:
                return {**item, "skipped": passed + example.get("skipped", 0)}
        raise DataError(
            f"not one of {len(self)} training images has a labelled pixel: all pixels are void, "
            "so that there are no patches to learn from",
            option="patches null",
        )

    def _patches(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        if "mask" not in example:
            raise DataError(
                f"{example['id']} has no mask: patches get their labels from masks",
                option="patches null",
            )
        # (C, H, W) -> (H, W, C)
        image = np.ascontiguousarray(example["image"].permute(1, 2, 0).numpy())
        mask = example["mask"].to(torch.uint8).numpy()
        # (H, W, C), (H, W) -> (K, o, o, C), (K,)
        patches = self.mixer(image, mask, rng)
        return {
            "image": torch.from_numpy(patches.images).permute(0, 3, 1, 2).contiguous(),
            "label": torch.from_numpy(patches.labels),
            "id": example["id"],
        }


def collate_patches(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join the patches of several images to a batch.

    Args:
        items: Items of `PatchDataset`, one per image.

    Returns:
        `image` (N, C, o, o) and `label` (N,) int64 with all patches, `id` with the names of
        the B images, and `skipped` (B,) where all items have it.
    """
    items = of_one_type(items)
    batch: dict[str, Any] = {name: torch.cat(_all(items, name)) for name in ("image", "label")}
    batch["id"] = [item["id"] for item in items]
    if all("skipped" in item for item in items):
        batch["skipped"] = default_collate(_all(items, "skipped"))
    return batch


def _all(items: Sequence[dict[str, Any]], name: str) -> list[Tensor]:
    return [item[name] for item in items]
