"""Images without any labels, to pre-train an encoder with."""

from __future__ import annotations

import warnings
from hashlib import sha256
from typing import Any

from torch.utils.data import DataLoader

from datamodules.augmenting.steps import Step
from datamodules.base import UNLABELED, SegmentationDataModule, Split
from datamodules.errors import DataError
from datamodules.loading.dataset import OnBadSample
from datamodules.loading.shards import UnlabeledShards
from datamodules.reading.files import find_images
from datamodules.reading.sources import FileSource, Source


class UnlabeledDataModule(SegmentationDataModule):
    """Batches of `image`, `valid` and `id` without masks; there are no classes.

    Args:
        images: Folders, globs, images or `.txt` lists of images.
        shards: Tar files of images, instead.
        val_share: Share of the images, chosen by a hash of their ids, that validation sees
            whole, in [0, 1); where it is above 0 at least one of two or more.
        val_images: Likewise to `images`, what validation sees instead. With shards there is
            no other validation.
        batch_size: Training images per device and step.
        val_batch_size: Validation images per device and step.
        crop_size: See `SegmentationDataModule`, like what follows.
        scale: Smallest and largest random scale factor.
        augmentation: Of training images.
        num_workers: Loader processes per device.
        seed: Of order and augmentation.
        iterations_per_epoch: Training batches of an epoch; None takes one pass, which for shards
            needs their `size`.
        cache: Folder for decoded images.
        on_bad_sample: `raise` or `skip`.

    Raises:
        DataError: Neither or both of images and shards, or an impossible option.
    """

    may_be_empty = (UNLABELED, "val")

    def __init__(
        self,
        images: str | list[str] | None = None,
        shards: UnlabeledShards | None = None,
        val_share: float = 0.1,
        val_images: str | list[str] | None = None,
        batch_size: int = 8,
        val_batch_size: int = 1,
        crop_size: int | tuple[int, int] | None = None,
        scale: tuple[float, float] | None = None,
        augmentation: str | list[Step] = "standard",
        num_workers: int | None = None,
        seed: int | None = None,
        iterations_per_epoch: int | None = None,
        cache: str | None = None,
        on_bad_sample: OnBadSample = "raise",
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            val_batch_size=val_batch_size,
            crop_size=crop_size,
            scale=scale,
            augmentation=augmentation,
            num_workers=num_workers,
            seed=seed,
            iterations_per_epoch=iterations_per_epoch,
            cache=cache,
            on_bad_sample=on_bad_sample,
        )
        # one stream of images, which are all without labels
        self.batch_size, self.unlabeled_batch_size = 0, batch_size
        if (images is None) == (shards is None):
            raise DataError("give one of --data.images FOLDER and --data.shards")
        if not 0 <= val_share < 1:
            raise DataError(f"--data.val_share must lie in [0, 1), not {val_share}")
        self.images = images
        self.shards = shards
        self.val_share = val_share
        self.val_images = val_images

    @property
    def class_names(self) -> list[str]:
        """None: nothing is labelled."""
        return []

    def source(self, split: Split) -> Source:
        """Return the images of a split; those of shards are no source."""
        if split != "train" and self.val_images is not None:
            return FileSource(find_images(self.val_images, option="--data.val_images"))
        if self.images is None:
            return FileSource({})
        found = find_images(self.images, option="--data.images")
        held_out = set() if self.val_images is not None else self._held_out(list(found))
        chosen = found.keys() - held_out if split == "train" else held_out
        return FileSource({name: found[name] for name in chosen})

    def _held_out(self, names: list[str]) -> set[str]:
        if self.val_share == 0 or len(names) < 2:
            return set()
        # a share of the hashes, so that an image stays where it is when others are added
        places = {name: int.from_bytes(sha256(name.encode()).digest()[:4]) for name in names}
        chosen = {name for name, place in places.items() if place < self.val_share * 2**32}
        first = min(names, key=places.__getitem__)
        return (chosen if len(chosen) < len(names) else chosen - {first}) or {first}

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Whole validation images in order; none where there are none."""
        warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
        return super().val_dataloader()

    def _setup_training(self) -> None:
        if self.shards is None:
            whole = self._found("train")
            self.probe(whole)
            self._sources[UNLABELED] = whole
