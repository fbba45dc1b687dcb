"""The base class of all data modules: images in loaders, with or without labels."""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader

from datamodules.augmenting.steps import Augmentation, StrongView
from datamodules.augmenting.transforms import Step
from datamodules.errors import DataError
from datamodules.loading.dataset import Failing, OnBadSample, SegmentationDataset, collate
from datamodules.loading.loaders import Stream, cores, end_workers
from datamodules.loading.prediction import PredictionDataset
from datamodules.loading.shards import UnlabeledShards
from datamodules.loading.streams import Examples, Loaders, Rank, follow
from datamodules.option_checks import at_least, checked_range, require_channel_options, within
from datamodules.reading.cache import DecodedCache
from datamodules.reading.color_maps import class_names
from datamodules.reading.decoding import Reading, image_size, require_known_range, unstated_ranges
from datamodules.reading.mask_decoder import VOID
from datamodules.reading.row_files import read_whole
from datamodules.reading.samples import MAX_PIXELS
from datamodules.reading.sources import FileSource, Source, configure, files, part_of, spread
from lightning_seg.signatures import ExplicitSignature

Split = Literal["train", "val", "test"]

MAX_BATCH, MAX_WORKERS, MAX_SEED = 1 << 16, 1024, 2**32 - 1

_EVALUATED: dict[str, Split] = {"fit": "val", "validate": "val", "test": "test"}


class ImageDataModule(ExplicitSignature, L.LightningDataModule, ABC):
    """Loaders of images, with what data modules with and without labels have in common.

    A batch is a dict of `image` (B, 3, H, W) uint8 RGB, or as `channels` says, of `id`, a list of B
    names, and of `mask` (B, H, W) int64 class ids where the images have labels. Training images are
    augmented and come in a new order in every epoch; their batches also have `valid` (B, H, W)
    bool, False where padding is. Validation, test and prediction read every image whole and once,
    on any number of processes.

    Args:
        batch_size: Training images per device and step, at least 1.
        val_batch_size: Images per device and step of validation, test and prediction, at least 1.
            Above 1 all images of a batch must have one size; prediction takes images of different
            sizes one by one.
        crop_size: Side of the square training crop in pixels, or its height and width. None takes
            the size that suits the kind of data.
        scale: Smallest and largest random scale factor of training images, above 0. None takes
            the range that suits the kind of data.
        augmentation: Steps that make the training crops: the name of a preset (`standard`,
            `deeplab`, `adv_semi_seg`, `crop`, `crop_flip`) or a list of steps. A step is
            `RandomScaleCrop` or the name of an albumentations transform, alone or with arguments.
        num_workers: Loader processes per device; 0 loads in the training process. None takes one
            per core, at most 8 (default chosen here).
        seed: Seed of order and augmentation, at least 0. None takes the seed of `seed_everything`.
        iterations_per_epoch: Training batches of an epoch, at least 1. None takes one pass over
            the images.
        cache: Folder for decoded images, of which a crop reads its own part only. A cache speeds
            up training on large images and takes 4 bytes a pixel. None caches nothing.
        on_bad_sample: `raise` stops at an image or mask that cannot be used; `skip` warns, takes
            another one, and counts it in the batch's `skipped`, which is logged as `data/skipped`.
            Prediction goes on past it in both cases and reports it at the end, for `raise` as a
            failure of the run.
        image_range: Values of black and white in images of more than 8 bits a channel, such as
            [0, 4095] for 12 bits; values beyond are clipped. None takes the range that a file
            states, or else 0..65535 for 16 bits and 0..1 for fractions, and stops where images
            hold less than half of it.
        max_pixels: Largest height x width of an image, at least 1; default chosen here, 3 GB of
            memory.
        channels: Number of channels of the images: 3 for RGB, 1 for grey values, another number for
            all channels of TIFF files (extra `tiff`), which are the last axis, the first axis, or
            pages. Images that are not RGB are uint8 where files have 8 bits a channel, and
            fractions of `image_range` elsewhere.
        image_mean: Mean of each channel, in [0, 1], by which images are normalised; None takes that
            of the network. The command `check` measures it.
        image_std: Standard deviation of each channel, above 0; None takes that of the network.
        picture_channels: The channels, from 0, that pictures show as red, green and blue, or a
            single one that they show in grey; None shows the first three, or the only one.

    Attributes:
        ignore_index: Class id of void pixels, 255.
        default_crop_size: Crop size that suits the kind of data. It is no default of an argument,
            because such a default would stay in a configuration whose class is replaced.
        default_scale: Range of scale factors that suits the kind of data.
        may_be_empty: Names of splits that may have no images.
        skip_unpaired: True makes `source` leave out images without masks and masks without images.
        trains_on_val: True where the options ask for training on validation images.
        shards: Tar files of unlabelled images; None where there are none.
        rows_above: Pixels of an image above which prediction gets the file; None gives all pixels.
    """

    ignore_index = VOID
    default_crop_size: int | tuple[int, int] = 512
    default_scale: tuple[float, float] = (0.5, 2.0)
    may_be_empty: tuple[str, ...] = ()
    skip_unpaired = False
    trains_on_val = False
    shards: UnlabeledShards | None = None
    rows_above: int | None = None
    _fewer_images: tuple[str, ...] = ()  # options that reduce the training set

    def __init__(
        self,
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
        image_range: tuple[float, float] | None = None,
        max_pixels: int = MAX_PIXELS,
        channels: int = 3,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        picture_channels: list[int] | None = None,
    ) -> None:
        super().__init__()
        require_channel_options(channels, image_mean, image_std, picture_channels)
        self.channels = channels
        self.image_mean = image_mean
        self.image_std = image_std
        self.picture_channels = picture_channels
        within(1, MAX_BATCH, batch_size=batch_size, val_batch_size=val_batch_size)
        at_least(1, iterations_per_epoch=iterations_per_epoch, max_pixels=max_pixels)
        within(0, MAX_WORKERS, num_workers=num_workers)
        within(0, MAX_SEED, seed=seed)
        self.batch_size = batch_size
        self.val_batch_size = val_batch_size
        crop = self.default_crop_size if crop_size is None else crop_size
        self.crop_size = (crop, crop) if isinstance(crop, int) else crop
        self.scale = scale
        self.augmentation = self._augmentation(augmentation, "augmentation")
        self.num_workers = min(8, cores()) if num_workers is None else num_workers
        self._seed = seed
        self.iterations_per_epoch = iterations_per_epoch
        self.cache = None if cache is None else DecodedCache(Path(cache).expanduser())
        self.on_bad_sample = on_bad_sample
        self.reading = Reading(checked_range(image_range), max_pixels, channels)
        self._sources: dict[str, Source] = {}
        self._open: list[Callable[[], None]] = []

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """One name per class, in class order; empty where nothing is labelled."""

    @property
    def num_classes(self) -> int:
        """Number of classes, without void."""
        return len(self.class_names)

    @property
    def palette(self) -> list[list[int]] | None:
        """One RGB colour in 0..255 per class; None leaves the colours of pictures to callbacks."""
        return None

    @property
    def seed(self) -> int:
        """The argument `seed`, or the seed of `seed_everything` without it, or 0 without both."""
        return self._seed if self._seed is not None else int(os.environ.get("PL_GLOBAL_SEED", 0))

    @abstractmethod
    def source(self, split: Split) -> Source:
        """Return all examples of a split.

        Raises:
            DataError: The examples cannot be found.
        """

    def predict_source(self) -> Source:
        """Return the images to predict."""
        return self.source("test")

    def extra_source(self, train: Source) -> Source | None:
        """Return the images that are trained on and are in no split; None where there are none.

        Args:
            train: The examples of the training split.
        """
        return None

    def split_ids(self, split: Split) -> list[str]:
        """Return the names of the images of a split; none before `setup` has found them."""
        return list(self._sources[split].ids) if split in self._sources else []

    def require_classes(self) -> None:
        """Raise an error for a single class, and for names that cannot be told apart.

        Raises:
            DataError: There is one class, or a name is empty or stands twice.
        """
        names = class_names(self.class_names, "class_names")
        if len(names) == 1:
            raise DataError(
                f"there is 1 class, {names[0]}; what is not the object is a class too",
                option="num_classes 2",
            )

    def probe(self, source: Source) -> set[int]:
        """Decode up to 8 examples, so that an error comes before training.

        Returns:
            The class ids in their masks.

        Raises:
            DataError: An example cannot be used and `on_bad_sample` is `raise`, or it is not known
                which value is white in images of more than 8 bits a channel.
        """
        self.require_range(source)
        seen: set[int] = set()
        for index in spread(range(len(source)), 8):
            try:
                mask = source[index].mask
            except DataError:
                if self.on_bad_sample == "raise":
                    raise
                continue
            seen.update([] if mask is None else np.unique(mask).tolist())
        return seen

    def require_range(self, source: Source) -> None:
        """Raise an error where up to 8 deep images hold little of the range that they may hold."""
        require_known_range(unstated_ranges(spread(files(source), 8), self.reading))

    # Finding the images

    def setup(self, stage: str) -> None:
        """Find the examples that a stage needs, once.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.

        Raises:
            DataError: The examples cannot be found or used, or a split is empty.
        """
        self.require_classes()
        if stage == "fit" and "train" not in self._sources:
            self._setup_training()
        if (split := _EVALUATED.get(stage)) and split not in self._sources:
            self._sources[split] = self._probed(split)
        if stage == "predict" and "predict" not in self._sources:
            source = self.configured(self.predict_source())
            self._require_range_to_predict(source)
            self._sources["predict"] = source
        for name, source in self._sources.items():
            if len(source) == 0 and name not in self.may_be_empty:
                raise DataError(f"split {name!r} of {type(self).__name__} has no images")

    def leave_out(self, done: Callable[[str], bool]) -> int:
        """Leave images out of the prediction.

        Args:
            done: Returns whether the image of an id is left out.

        Returns:
            The number of images that are left out.
        """
        source = self._sources["predict"]
        left = [name for name in source.ids if not done(name)]
        self._sources["predict"] = part_of(source, left)
        return len(source) - len(left)

    def _require_range_to_predict(self, source: Source) -> None:
        """Raise an error where no image has a known range; warn where some images have none."""
        ranges = unstated_ranges(
            spread(read_whole(files(source), self.rows_above), 8), self.reading
        )
        try:
            require_known_range(ranges)
        except DataError as error:
            if None not in ranges:
                raise
            rank_zero_warn(str(error))

    def _setup_training(self) -> None:
        self._sources["train"] = self._probed("train")

    def _probed(self, split: Split) -> Source:
        """Return all examples of a split, which read through the cache, after a probe of some."""
        source = self.configured(self.source(split), self.cache)
        self.probe(source)
        return source

    def configured(self, source: Source, cache: DecodedCache | None = None) -> Source:
        """Return a source whose files are read as the options say, through a cache or without."""
        return configure(source, self.reading, cache)

    def require_one_size(self, source: Source) -> None:
        """Raise an error where validation images of several sizes would have to share a batch."""
        if self.val_batch_size == 1 or not isinstance(source, FileSource):
            return
        if len(sizes := self._sizes(files(source))) > 1:
            raise DataError(
                f"images of {len(sizes)} sizes cannot share a batch of {self.val_batch_size}",
                option="val_batch_size 1",
            )

    # Loading the images

    def train_dataloader(self) -> Stream:
        """Return shuffled, augmented batches in epochs that resume at any batch.

        Raises:
            DataError: The length of an epoch is not known, or the trainer has `overfit_batches`.
        """
        if self.trainer is not None and self.trainer.overfit_batches:  # type: ignore[attr-defined]
            raise DataError(
                "overfit_batches would take the augmentation away; train on a few images instead",
                option=("trainer.overfit_batches 0", *self._fewer_images),
            )
        if self.shards is not None:
            self.shards.reading = self.reading
        stream = self._training_stream(self._loaders())
        if self.trainer is not None:
            follow(stream, self.trainer)
        self._open.append(stream.close)
        return stream

    @abstractmethod
    def _training_stream(self, loaders: Loaders) -> Stream:
        """Return the training batches of this process."""

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Return whole validation images in order; an empty list where there are none."""
        return self._ordered("val") if len(self._sources["val"]) > 0 else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Return whole test images in order."""
        return self._ordered("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return whole images in order, with masks where they have them.

        Images of different sizes come one by one.
        """
        return self._ordered("predict")

    def _ordered(self, name: str) -> DataLoader[Any]:
        source = self._sources[name]
        batch_size = self.val_batch_size
        if name == "predict" and batch_size > 1 and (paths := files(source)):
            alone = self.rows_above is not None or len(self._sizes(paths)) > 1
            batch_size = 1 if alone else batch_size
        # a prediction must not silently be that of another image
        on_bad_sample: Failing = "report" if name == "predict" else self.on_bad_sample
        dataset = self._dataset(source, on_bad_sample)
        if name == "predict" and isinstance(dataset, SegmentationDataset):
            dataset = PredictionDataset(dataset, files(source), self.rows_above, self.reading)
        loader = self._loaders().ordered(dataset, batch_size, self.num_workers)
        self._open.append(partial(end_workers, loader))
        return loader

    def _dataset(
        self,
        source: Source,
        on_bad_sample: Failing,
        augmentation: Augmentation | None = None,
        strong: StrongView | None = None,
    ) -> Examples:
        return SegmentationDataset(source, augmentation, strong, on_bad_sample, self.channels)

    def _loaders(self) -> Loaders:
        return Loaders(self.seed, self._rank(), collate)

    def _rank(self) -> Rank:
        return Rank.of(self.trainer)

    def _augmentation(self, steps: str | list[Step], option: str) -> Augmentation:
        return Augmentation(
            steps, self.crop_size, self.scale, self.default_scale, option, self.channels
        )

    def teardown(self, stage: str) -> None:
        """End the loader processes."""
        while self._open:
            self._open.pop()()

    def _sizes(self, paths: list[Path]) -> set[tuple[int, int]]:
        """Return the sizes of all images that can be read."""
        sizes = set()
        for path in paths:
            with contextlib.suppress(DataError):
                sizes.add(image_size(path, self.channels))
        return sizes
