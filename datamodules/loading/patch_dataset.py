"""Labelled patches of a dataset's images, and how they batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from datamodules.augmenting.patches import PatchMixer
from datamodules.errors import DataError
from datamodules.loading.dataset import SegmentationDataset
from datamodules.selection.samplers import SampleKey

_STREAM = 4  # of the random numbers that a key's seed gives: none that augmentation uses


class PatchDataset(Dataset[dict[str, Any]]):
    """Patches of a segmentation dataset's examples.

    In training, with a key that carries a seed, an example is augmented and K patches are drawn
    from the result. One without any labelled pixel is replaced by the next that has some, so that
    all items have K. Otherwise the whole image is taken, and one without labels has no patches;
    the patches are the same each time.

    Each item is a dict: `image` (K, 3, o, o) uint8 RGB, `label` (K,) int64 class ids, never void,
    and `id`; in training also `skipped`, the number of examples passed over.

    Args:
        examples: Image and mask of each key.
        mixer: Draws the patches.
        seed: Of what is drawn without augmentation.
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
            DataError: The example cannot be used, or in training not one has a labelled pixel.
        """
        key = key if isinstance(key, SampleKey) else SampleKey(key)
        if key.seed is None:
            return self._patches(self.examples[key], (self.seed, _STREAM, key.number))
        for passed in range(len(self)):
            number = (key.number + passed) % len(self)
            example = self.examples[SampleKey(number, key.seed, key.counted)]
            item = self._patches(example, (key.seed, _STREAM))
            if len(item["label"]) > 0:
                return {**item, "skipped": passed + example.get("skipped", 0)}
        raise DataError(
            f"not one of {len(self)} training images has a labelled pixel, all is void: there are "
            "no patches to learn from (option: --data.patches null)"
        )

    def _patches(self, example: dict[str, Any], entropy: tuple[int, ...]) -> dict[str, Any]:
        if "mask" not in example:
            raise DataError(f"{example['id']} has no mask: patches get their labels from masks")
        image = np.ascontiguousarray(example["image"].permute(1, 2, 0).numpy())
        mask = example["mask"].to(torch.uint8).numpy()
        found = self.mixer(image, mask, np.random.default_rng(entropy))
        return {
            "image": torch.from_numpy(found.images).permute(0, 3, 1, 2).contiguous(),
            "label": torch.from_numpy(found.labels),
            "id": example["id"],
        }


def collate_patches(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join the patches of images to a batch.

    Args:
        items: Of `PatchDataset`.

    Returns:
        `image` (N, 3, o, o) uint8, `label` (N,) int64, `id`, the names of the images, and
        `skipped` (images,) where the items have it.
    """
    batch: dict[str, Any] = {name: torch.cat(_all(items, name)) for name in ("image", "label")}
    batch["id"] = [item["id"] for item in items]
    if all("skipped" in item for item in items):
        batch["skipped"] = default_collate(_all(items, "skipped"))
    return batch


def _all(items: Sequence[dict[str, Any]], name: str) -> list[Tensor]:
    return [item[name] for item in items]
