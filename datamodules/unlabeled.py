"""Images without any labels, to pre-train an encoder with."""

from __future__ import annotations

import warnings
from typing import Any

from torch.utils.data import DataLoader

from datamodules.errors import DataError
from datamodules.images import ImageDataModule, Split
from datamodules.loading.loaders import Stream
from datamodules.loading.shards import UnlabeledShards
from datamodules.loading.streams import UNLABELED, Loaders
from datamodules.reading.files import find_images
from datamodules.reading.layouts import smallest_hashes
from datamodules.reading.sources import FileSource, Source


class UnlabeledDataModule(ImageDataModule):
    """Batches of `image`, `valid` and `id`, without masks: there are no classes.

    Args:
        images: Folders, globs, images or `.txt` lists of images to train on.
        shards: Tar files of images to train on, instead of `images`.
        val_share: Share of `images` that validation reads whole and training does not, in [0, 1);
            default chosen here. They are the images whose ids have the smallest hashes; their
            number is rounded. A share above 0 takes at least one of two images.
        val_images: Folders, globs, images or `.txt` lists of images that validation reads instead
            of that share. With `shards` there is no other validation.
        image_options: Arguments of `ImageDataModule`. Without `iterations_per_epoch` an epoch over
            `shards` needs their `size`.

    Raises:
        DataError: Both or none of `images` and `shards` are given, or an option is impossible.
    """

    may_be_empty = ("val",)

    def __init__(
        self,
        images: str | list[str] | None = None,
        shards: UnlabeledShards | None = None,
        val_share: float = 0.1,
        val_images: str | list[str] | None = None,
        **image_options: Any,
    ) -> None:
        super().__init__(**image_options)
        if (images is None) == (shards is None):
            raise DataError("give either images or shards", option=("images FOLDER", "shards"))
        if not 0 <= val_share < 1:
            raise DataError(f"val_share must be in [0, 1), not {val_share}", option="val_share")
        self.images = images
        self.shards = shards
        self.val_share = val_share
        self.val_images = val_images

    @property
    def class_names(self) -> list[str]:
        """An empty list, because nothing is labelled."""
        return []

    def source(self, split: Split) -> Source:
        """Return the images of a split; shards are read as a stream and are no source.

        Raises:
            DataError: There are no images at a place that an option names.
        """
        if split != "train" and self.val_images is not None:
            return FileSource(find_images(self.val_images, option="val_images"))
        if self.images is None:
            return FileSource({})
        images = find_images(self.images, option="images")
        held_out = set() if self.val_images is not None else self._held_out(list(images))
        chosen = images.keys() - held_out if split == "train" else held_out
        return FileSource({name: images[name] for name in chosen})

    def _held_out(self, names: list[str]) -> set[str]:
        """Return the ids of the images that validation reads."""
        if self.val_share == 0 or len(names) < 2:
            return set()
        return set(smallest_hashes(names, self.val_share)[: len(names) - 1])

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Return whole validation images in order; an empty list where there are none."""
        warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
        return super().val_dataloader()

    def _setup_training(self) -> None:
        if self.shards is None:
            super()._setup_training()

    def _training_stream(self, loaders: Loaders) -> Stream:
        size = self.batch_size
        if self.shards is not None:
            steps = self.iterations_per_epoch or loaders.rank.batches(
                self.shards.known_size(), size
            )
            return loaders.streamed(
                self.shards, self.augmentation, None, size, steps, self.num_workers
            )
        source = self._sources["train"]
        steps = self.iterations_per_epoch or loaders.rank.batches(len(source), size)
        dataset = self._dataset(source, self.on_bad_sample, self.augmentation)
        return loaders.shuffled(dataset, UNLABELED, size, steps, self.num_workers)
