"""The base class of data modules with labels: label splits, unlabelled images, patches."""

from __future__ import annotations

import contextlib
from abc import ABC
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray

from datamodules.augmenting.patches import PatchMixer
from datamodules.augmenting.steps import Augmentation, StrongView
from datamodules.augmenting.transforms import Step
from datamodules.errors import DataError
from datamodules.images import ImageDataModule, Split
from datamodules.loading.dataset import Failing, SegmentationDataset
from datamodules.loading.loaders import GroupedLoader, Stream, share_workers
from datamodules.loading.patch_dataset import PatchDataset, collate_patches
from datamodules.loading.shards import UnlabeledShards
from datamodules.loading.streams import LABELED, LABELED_REAL, UNLABELED, Examples, Loaders
from datamodules.option_checks import at_least, warn_of_unused
from datamodules.reading.files import find_images
from datamodules.reading.sources import Source, Subset
from datamodules.reading.videos import images_and_frames
from datamodules.selection.autolabel_parts import AutolabelParts
from datamodules.selection.class_pixels import class_pixels
from datamodules.selection.label_splits import LabelSplit, divide
from datamodules.selection.samplers import ClassSampler
from datamodules.selection.unlabeled_images import labeled_part, unlabeled_images
from lightning_seg.run_folder import run_folder


class SegmentationDataModule(ImageDataModule, ABC):
    """Loaders of images with labels, and of images without labels beside them.

    A subclass implements `class_names` and `source`, which returns the examples of a split.

    A batch is a dict of `image` (B, 3, H, W) uint8 RGB, `mask` (B, H, W) int64 class ids with 255
    for void, and `id`, a list of B names; training batches also have `valid` (B, H, W) bool, False
    where padding is. With an `unlabeled_batch_size` a training batch is a dict of three groups of
    that form: `labeled`, `unlabeled` (without `mask`) and, with a `labeled_real_batch_size`,
    `labeled_real`, the labelled images once more in another order. Each group repeats its images
    as often as an epoch needs, every pass over them in a new order.

    Args:
        predict: Images that `predict` reads: a folder, a glob, an image, a `.txt` list of images, a
            video (extra `video`), or a list of these. None takes the test split.
        sampling: `images` draws labelled images in random order; `classes` draws a class and then
            an image that shows it, so that rare classes come as often as frequent ones.
        labeled: Training images that keep their labels: a fraction such as `1/8`, a share such as
            0.05, a number of images such as 662, or a list file. None keeps all labels.
        split_seed: Seed of the choice of images that keep their labels, at least 0.
        stratified: True chooses the images that keep their labels so that they show every class.
        splits_dir: Folder that keeps the lists of labelled and unlabelled images, as
            `<splits_dir>/<dataset>/<amount>/seed<k>/{labeled,unlabeled}.txt`.
        unlabeled: More images without labels: folders, globs, images or list files.
        unlabeled_shards: Tar files of images without labels, which replace all other unlabelled
            images.
        unlabeled_batch_size: Unlabelled images per device and step; 0 uses none.
        labeled_real_batch_size: Images per device and step of the group `labeled_real`; 0 leaves
            the group out.
        epoch: The group whose images an epoch shows once, where a batch has unlabelled images:
            `unlabeled` or `labeled`.
        unlabeled_augmentation: Steps that make the crops of unlabelled images, in the form of
            `augmentation`. None takes the steps of `augmentation`.
        strong_augmentation: `strong` or a list of pixel-level transforms, which make a second view
            `image_strong` of unlabelled crops. None makes no second view.
        unlabeled_masks: True gives the unlabelled batch a `mask`, to compare pseudo-labels with,
            not to train on; the mask of an image that never had labels is all void.
        patches: A `PatchMixer`, which draws labelled patches of training, validation and test
            images for mix-and-match tuning. A batch then is a dict of `image` (N, 3, o, o) uint8,
            `label` (N,) int64 and `id`. None leaves images whole.
        image_options: Arguments of `ImageDataModule`.

    Attributes:
        videos: The video files that `predict` reads, by the first part of the ids of their frames.

    Raises:
        DataError: An option is impossible, alone or with the others.
    """

    _fewer_images = ("labeled 8",)

    def __init__(
        self,
        predict: str | list[str] | None = None,
        sampling: Literal["images", "classes"] = "images",
        labeled: int | float | str | None = None,
        split_seed: int = 0,
        stratified: bool = False,
        splits_dir: str = "splits",
        unlabeled: str | list[str] | None = None,
        unlabeled_shards: UnlabeledShards | None = None,
        unlabeled_batch_size: int = 0,
        labeled_real_batch_size: int = 0,
        epoch: Literal["unlabeled", "labeled"] = "unlabeled",
        unlabeled_augmentation: str | list[Step] | None = None,
        strong_augmentation: str | list[Step] | None = None,
        unlabeled_masks: bool = False,
        patches: PatchMixer | None = None,
        **image_options: Any,
    ) -> None:
        super().__init__(**image_options)
        at_least(0, unlabeled_batch_size=unlabeled_batch_size, split_seed=split_seed)
        at_least(0, labeled_real_batch_size=labeled_real_batch_size)
        self.predict = predict
        self.sampling = sampling
        self.labeled = labeled
        self.split_seed = split_seed
        self.stratified = stratified
        self.splits_dir = Path(splits_dir)
        self.unlabeled = unlabeled
        self.shards = unlabeled_shards
        self.unlabeled_batch_size = unlabeled_batch_size
        self.labeled_real_batch_size = labeled_real_batch_size
        self.epoch = epoch
        self.unlabeled_augmentation = (
            self.augmentation
            if unlabeled_augmentation is None
            else self._augmentation(unlabeled_augmentation, "unlabeled_augmentation")
        )
        strong = strong_augmentation
        self.strong = None if strong is None else StrongView(strong, self.channels)
        self.unlabeled_masks = unlabeled_masks
        self.patches = patches
        self.split: LabelSplit | None = None
        self.videos: dict[str, Path] = {}
        self._class_samplers: list[ClassSampler] = []
        self._check_options()
        warn_of_unused(
            unlabeled_batch_size > 0,
            unlabeled=unlabeled,
            unlabeled_shards=unlabeled_shards,
            unlabeled_augmentation=unlabeled_augmentation,
            strong_augmentation=strong_augmentation,
        )

    def _check_options(self) -> None:
        if self.stratified and self.labeled is None:
            raise DataError(
                "stratified chooses the images that keep their labels, but all keep them",
                option=("labeled 1/8", "stratified"),
            )
        if self.patches is not None and (self.unlabeled_batch_size or self.labeled_real_batch_size):
            raise DataError(
                "patches are cut out of labelled images alone: a batch of them has no other groups",
                option=("patches null", "unlabeled_batch_size 0", "labeled_real_batch_size 0"),
            )

    @property
    def dataset_name(self) -> str:
        """Name of the dataset in the path of its label splits."""
        return type(self).__name__.removesuffix("DataModule").lower()

    def extra_images(self) -> dict[str, Path]:
        """Return images by id that belong to the dataset and have no labels."""
        return {}

    def predict_source(self) -> Source:
        """Return the images that the option `predict` names, or the test split without it."""
        if self.predict is None:
            return super().predict_source()
        self.videos, source = images_and_frames(self.predict, self.reading)
        return source

    # Finding the images

    def setup(self, stage: str) -> None:
        """Find the examples that a stage needs, once.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.

        Raises:
            DataError: The examples cannot be found or used, a split is empty, or `patches` does
                not fit the classes or the stage.
        """
        if self.patches is not None and stage == "predict":
            raise DataError(
                "patches are for training an encoder, but images are predicted",
                option="patches null",
            )
        super().setup(stage)

    def require_classes(self) -> None:
        """Raise an error for classes that the options cannot be used with."""
        super().require_classes()
        background = None if self.patches is None else self.patches.background_index
        if background is not None and background >= self.num_classes:
            raise DataError(
                f"background_index is {background}, but there are {self.num_classes} classes; "
                "null is for data without a background",
                option="background_index null",
            )

    def _setup_training(self) -> None:
        whole = self._probed("train")
        split = self.label_split(whole, store=True)
        if self.unlabeled_batch_size > 0 and self.shards is None:
            unlabeled = self.unlabeled_source(whole, split)
            self._sources[UNLABELED] = self.configured(unlabeled, self.cache)
            self.require_range(unlabeled)
        elif self.unlabeled_batch_size > 0 and (split or self.unlabeled):
            rank_zero_warn(
                "the only unlabelled images that are used are those of unlabeled_shards "
                "(option: unlabeled_shards=)"
            )
        self.split = split
        self._sources["train"] = labeled_part(whole, split)

    def setup_autolabel(self) -> AutolabelParts:
        """Find the examples of `fit`, and let prediction read the images that are to get labels.

        They are those that `predict` names, or else the unlabelled images of training. Prediction
        reads the validation images after them.

        Raises:
            DataError: There are no such images, or the examples of `fit` cannot be used.
        """
        self.setup("fit")
        wanted: Source | None = None
        if self.predict is not None:
            wanted = self.configured(self.predict_source())
        elif self.split or self.unlabeled or self.extra_images():
            wanted = self.configured(self.unlabeled_source(self.source("train"), self.split))
        parts = AutolabelParts.of(wanted, self._sources["train"], self._sources["val"])
        self._require_range_to_predict(parts.unlabeled)
        self._sources["predict"] = parts.joined()
        return parts

    def label_split(self, whole: Source, store: bool = False) -> LabelSplit | None:
        """Divide the training images into those that keep their labels and the others.

        Args:
            whole: All training examples.
            store: True reads the lists of an earlier choice from `splits_dir`, or writes them.

        Returns:
            The ids of both parts; None where all images keep their labels.

        Raises:
            DataError: The amount is impossible, or a list does not fit the images.
        """
        if self.labeled is None:
            return None
        folder = self.splits_dir / self.dataset_name if store else None
        num_classes = self.num_classes if self.stratified else None
        return divide(whole, self.labeled, self.split_seed, folder, num_classes)

    def unlabeled_source(self, whole: Source, split: LabelSplit | None) -> Source:
        """Return the images without labels: those that lost their labels, and extra ones.

        Args:
            whole: All training examples.
            split: Division of them; None where all keep their labels.

        Raises:
            DataError: There are no such images, or some of them are labelled or evaluated.
        """
        extra = dict(self.extra_images())
        if self.unlabeled is not None:
            extra |= find_images(self.unlabeled, option="unlabeled", by_path=True)
        return unlabeled_images(
            whole, split, extra, self._evaluated, self.unlabeled_masks, self.cache
        )

    def extra_source(self, train: Source) -> Source | None:
        """Return the unlabelled images that training reads besides the training split.

        Args:
            train: The examples of the training split.
        """
        split = self.label_split(train)
        if not self.unlabeled_batch_size or self.shards is not None:
            return None
        source = self.unlabeled_source(train, split)
        lost = 0 if split is None else len(split.unlabeled)
        return Subset(source, source.ids[lost:]) if len(source) > lost else None

    def _evaluated(self) -> Iterator[Source]:
        """Yield validation and test examples; a split that is missing fails where it is read."""
        splits: tuple[Split, ...] = ("val", "test")
        for name in splits:
            with contextlib.suppress(DataError):
                yield self.source(name)

    # Loading the images

    def _training_stream(self, loaders: Loaders) -> Stream:
        self._save_split()
        self._class_samplers = []
        sizes = {
            LABELED: self.batch_size,
            UNLABELED: self.unlabeled_batch_size,
            LABELED_REAL: self.labeled_real_batch_size,
        }
        sizes = {name: size for name, size in sizes.items() if size > 0}
        iterations = self._iterations(loaders, alone=len(sizes) == 1)
        shares = share_workers(self.num_workers, sizes)
        streams = {
            name: self._stream(loaders, name, size, iterations, shares[name])
            for name, size in sizes.items()
        }
        return streams[LABELED] if len(streams) == 1 else GroupedLoader(streams)

    def _iterations(self, loaders: Loaders, alone: bool) -> int | None:
        """Return the batches of an epoch; None where one pass may drop an incomplete last batch.

        Args:
            loaders: The loaders of this process.
            alone: Whether batches consist of labelled images only.
        """
        if self.iterations_per_epoch is not None:
            return self.iterations_per_epoch
        rank, labeled = loaders.rank, len(self._sources["train"])
        if alone:  # images of less than one batch repeat
            return None if rank.share(labeled) >= self.batch_size else 1
        if self.epoch == "labeled" or self.unlabeled_batch_size == 0:
            return rank.batches(labeled, self.batch_size)
        if self.shards is not None:
            images = self.shards.known_size("epoch labeled")
        else:
            images = len(self._sources[UNLABELED])
        return rank.batches(images, self.unlabeled_batch_size)

    def _stream(
        self, loaders: Loaders, name: str, batch_size: int, iterations: int | None, workers: int
    ) -> Stream:
        if name == UNLABELED and self.shards is not None:
            assert iterations is not None
            steps, sizes = self.unlabeled_augmentation, (batch_size, iterations, workers)
            return loaders.streamed(self.shards, steps, self.strong, *sizes)
        if name == UNLABELED:
            source, steps, strong = self._sources[name], self.unlabeled_augmentation, self.strong
        else:
            source, steps, strong = self._sources["train"], self.augmentation, None
        dataset = self._dataset(source, self.on_bad_sample, steps, strong)
        presence = None
        if self.sampling == "classes" and name != UNLABELED:
            presence = self.class_pixels() > 0
        loader = loaders.shuffled(dataset, name, batch_size, iterations, workers, presence)
        if isinstance(loader.sampler, ClassSampler):
            self._class_samplers.append(loader.sampler)
        return loader

    def _save_split(self) -> None:
        """Write the lists of this run's label split beside its configuration."""
        if self.split is None or self.trainer is None:
            return
        folder = run_folder(self.trainer)  # all processes must ask for it
        if self.trainer.is_global_zero and not getattr(self.trainer, "fast_dev_run", False):
            self.split.write(folder / "split")

    def class_pixels(self) -> NDArray[np.int64]:
        """Count the pixels of each class in the labelled training images, after `setup("fit")`.

        The counts are kept in `splits_dir` until a label changes.

        Returns:
            (N, C) numbers of pixels, one row per image.
        """
        folder = self.splits_dir / self.dataset_name
        return class_pixels(self._sources["train"], self.num_classes, folder)

    def weigh_classes(self, weights: Sequence[float]) -> None:
        """Draw classes in proportion to these weights, from the next training epoch on.

        Args:
            weights: (C,), at least 0 each.

        Raises:
            DataError: Images are drawn instead of classes.
        """
        if self.sampling != "classes":
            raise DataError(
                "weights of classes need a sampling that draws classes", option="sampling classes"
            )
        for sampler in self._class_samplers:
            sampler.weigh(weights)

    def _dataset(
        self,
        source: Source,
        on_bad_sample: Failing,
        augmentation: Augmentation | None = None,
        strong: StrongView | None = None,
    ) -> Examples:
        dataset = SegmentationDataset(source, augmentation, strong, on_bad_sample)
        return dataset if self.patches is None else PatchDataset(dataset, self.patches, self.seed)

    def _loaders(self) -> Loaders:
        loaders = super()._loaders()
        if self.patches is not None:
            loaders.collate = collate_patches
        return loaders
