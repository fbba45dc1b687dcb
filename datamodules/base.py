"""What all data modules share: splits, streams, seeds, augmentation, prediction without labels."""

from __future__ import annotations

import contextlib
import math
import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader

from datamodules.augmenting.patches import PatchMixer
from datamodules.augmenting.steps import Augmentation, Step, StrongView
from datamodules.errors import DataError, some
from datamodules.loading.dataset import OnBadSample, SegmentationDataset, collate
from datamodules.loading.loaders import (
    GroupedLoader,
    ResumableLoader,
    Stream,
    cores,
    end_workers,
    one_thread,
    own_generator,
    share_workers,
)
from datamodules.loading.patch_dataset import PatchDataset, collate_patches
from datamodules.loading.shards import UnlabeledShards
from datamodules.reading.cache import DecodedCache
from datamodules.reading.files import find_images, image_size
from datamodules.reading.mask_decoder import VOID
from datamodules.reading.sources import FileSource, Joined, Relabeled, Source, Subset, files
from datamodules.selection.class_pixels import class_pixels
from datamodules.selection.label_splits import LabelSplit, divide
from datamodules.selection.samplers import ClassSampler, KeySampler

Split = Literal["train", "val", "test"]

# the streams of a semi-supervised batch; their numbers make their orders differ
LABELED, UNLABELED, LABELED_REAL = "labeled", "unlabeled", "labeled_real"
_STREAMS = (LABELED, UNLABELED, LABELED_REAL)


class SegmentationDataModule(L.LightningDataModule, ABC):
    """Loaders of `{"image", "mask", "id"}` batches; subclasses say where examples come from.

    Training examples are augmented, and carry `valid`, False where padding is; validation, test
    and prediction see every image whole and once, on any number of processes.

    With an `unlabeled_batch_size` training batches are dicts of such batches: `labeled`,
    `unlabeled` (without `mask`) and, with a `labeled_real_batch_size`, `labeled_real`, the labelled
    images once more in another order. Each stream repeats as often as an epoch takes, every pass
    over its images in an order of its own.

    Args:
        batch_size: Labelled training images per device and step.
        val_batch_size: Images per device and step otherwise. Above 1 all images of a batch must
            have one size; prediction falls back to 1 where they have not.
        crop_size: Side of the square training crop in pixels, or height and width; None takes
            `default_crop_size`.
        scale: Smallest and largest random scale factor; None takes `default_scale`.
        augmentation: `standard`, `deeplab`, `adv_semi_seg`, `crop`, `crop_flip`, or a list of
            steps: `RandomScaleCrop` or names of albumentations' transforms, each alone or with its
            arguments.
        num_workers: Loader processes per device; None takes up to 8, at most one per core.
        predict: What `predict` reads: a folder, a glob, an image, a `.txt` list of images, or a
            list of these. None takes the test split.
        seed: Seed of order and augmentation; None takes `seed_everything`'s.
        iterations_per_epoch: Training batches of an epoch; None takes one pass.
        sampling: `images` goes through the labelled images in random order; `classes` draws a class
            and then an image that shows it, so that rare classes come as often as others.
        labeled: How many training images keep their labels: `1/8`, 0.05, 662, or a list file.
            None keeps all.
        split_seed: Which images these are.
        stratified: Choose them such that every class appears.
        splits_dir: Where the choice is kept, as
            `<splits_dir>/<dataset>/<amount>/seed<k>/{labeled,unlabeled}.txt`.
        unlabeled: More images without labels: folders, globs or list files like `predict`.
        unlabeled_shards: Images without labels in tar files; no others are used then.
        unlabeled_batch_size: Unlabelled images per device and step; 0 leaves them out.
        labeled_real_batch_size: Images per device and step of the second labelled stream.
        epoch: What one pass is over, with unlabelled images in the batch.
        unlabeled_augmentation: Like `augmentation`, which None takes.
        strong_augmentation: `strong`, or a list of pixel-level transforms, for a second view
            `image_strong` of unlabelled crops.
        unlabeled_masks: Give the unlabelled batch a `mask`, all void for images that never had
            one, to watch pseudo-labels with, not to train on.
        cache: Folder for decoded images, of which a crop reads its own part only. Much faster for
            large images; takes 4 bytes a pixel.
        patches: Training, validation and test batches hold labelled patches of the images instead
            of the images: `image` (N, 3, o, o) and `label` (N,), for Mix-and-Match.
        on_bad_sample: `raise` stops training at an image or mask that cannot be used; `skip` takes
            another, warns, and counts in the batch's `skipped`, which is logged as `data/skipped`.

    Attributes:
        ignore_index: The class id of void pixels, 255.
        default_crop_size: Of this kind of data; no default of an argument, because those would
            follow when a configuration changes the class.
        default_scale: Likewise.
        may_be_empty: The names of sources that need no images.
        skip_unpaired: Whether `source` leaves out images without masks and masks without images.
        trains_on_val: Whether validation images are trained on because somebody asked for it.
    """

    ignore_index = VOID
    default_crop_size: int | tuple[int, int] = 512
    default_scale: tuple[float, float] = (0.5, 2.0)
    may_be_empty: tuple[str, ...] = (UNLABELED,)
    skip_unpaired = False
    trains_on_val = False

    def __init__(
        self,
        batch_size: int = 8,
        val_batch_size: int = 1,
        crop_size: int | tuple[int, int] | None = None,
        scale: tuple[float, float] | None = None,
        augmentation: str | list[Step] = "standard",
        num_workers: int | None = None,
        predict: str | list[str] | None = None,
        seed: int | None = None,
        iterations_per_epoch: int | None = None,
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
        cache: str | None = None,
        patches: PatchMixer | None = None,
        on_bad_sample: OnBadSample = "raise",
    ) -> None:
        super().__init__()
        self.batch_size = _at_least("batch_size", batch_size, 1)
        self.val_batch_size = _at_least("val_batch_size", val_batch_size, 1)
        self.unlabeled_batch_size = _at_least("unlabeled_batch_size", unlabeled_batch_size, 0)
        self.labeled_real_batch_size = _at_least(
            "labeled_real_batch_size", labeled_real_batch_size, 0
        )
        if iterations_per_epoch is not None:
            _at_least("iterations_per_epoch", iterations_per_epoch, 1)
        self.iterations_per_epoch = iterations_per_epoch
        self.sampling = sampling
        crop = self.default_crop_size if crop_size is None else crop_size
        self.crop_size = (crop, crop) if isinstance(crop, int) else crop
        self.augmentation = self._augmentation(augmentation, scale)
        self.unlabeled_augmentation = (
            self.augmentation
            if unlabeled_augmentation is None
            else self._augmentation(unlabeled_augmentation, scale, "--data.unlabeled_augmentation")
        )
        self.strong = None if strong_augmentation is None else StrongView(strong_augmentation)
        workers = min(8, cores()) if num_workers is None else num_workers
        self.num_workers = _at_least("num_workers", workers, 0)
        self.predict = predict
        self._seed = None if seed is None else _at_least("seed", seed, 0)
        if stratified and labeled is None:
            raise DataError("--data.stratified needs --data.labeled")
        if unlabeled_batch_size == 0:
            idle = {
                "unlabeled": unlabeled,
                "unlabeled_shards": unlabeled_shards,
                "unlabeled_augmentation": unlabeled_augmentation,
                "strong_augmentation": strong_augmentation,
            }
            if given := [f"--data.{name}" for name, value in idle.items() if value is not None]:
                rank_zero_warn(f"{', '.join(given)}: nothing without --data.unlabeled_batch_size")
        if patches is not None and (unlabeled_batch_size or labeled_real_batch_size):
            raise DataError(
                "--data.patches cuts labelled images alone: not with --data.unlabeled_batch_size "
                "or --data.labeled_real_batch_size"
            )
        self.patches = patches
        self.labeled = labeled
        self.split_seed = _at_least("split_seed", split_seed, 0)
        self.stratified = stratified
        self.splits_dir = Path(splits_dir)
        self.unlabeled = unlabeled
        self.shards = unlabeled_shards
        self.epoch = epoch
        self.unlabeled_masks = unlabeled_masks
        self.cache = None if cache is None else DecodedCache(Path(cache).expanduser())
        self.on_bad_sample = on_bad_sample
        self.split: LabelSplit | None = None
        self._sources: dict[str, Source] = {}
        self._class_samplers: list[ClassSampler] = []
        self._open: list[Callable[[], None]] = []

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """One name per class, in class order."""

    @property
    def num_classes(self) -> int:
        """Number of classes, void not counted."""
        return len(self.class_names)

    @property
    def palette(self) -> list[list[int]] | None:
        """One RGB colour in 0..255 per class for pictures; None leaves the choice to them."""
        return None

    @property
    def dataset_name(self) -> str:
        """What the dataset is called in the path of its splits."""
        return type(self).__name__.removesuffix("DataModule").lower()

    @property
    def seed(self) -> int:
        """The seed in force: the argument, else `seed_everything`'s, else 0."""
        return self._seed if self._seed is not None else int(os.environ.get("PL_GLOBAL_SEED", 0))

    @abstractmethod
    def source(self, split: Split) -> Source:
        """Return all examples of a split; raise `DataError` where they cannot be found."""

    def extra_images(self) -> dict[str, Path]:
        """Return images by id that the dataset itself holds without labels."""
        return {}

    def predict_source(self) -> Source:
        """Return the images to predict: those of the option, else the test split's."""
        if self.predict is None:
            return self.source("test")
        return FileSource(find_images(self.predict))

    def probe(self, source: Source) -> set[int]:
        """Decode a few examples, so that a wrong option is told before anything is trained.

        Returns:
            The class ids that they hold.
        """
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

    # Finding

    def setup(self, stage: str) -> None:
        """Find the examples that a stage needs, and stop here if they cannot be used."""
        if self.patches is not None:
            self._require_fit(self.patches, stage)
        if stage == "fit" and "train" not in self._sources:
            self._setup_training()
        needed: dict[str, Split] = {"fit": "val", "validate": "val", "test": "test"}
        if (split := needed.get(stage)) and split not in self._sources:
            self._sources[split] = self._found(split)
            self.probe(self._sources[split])
        if stage == "predict" and "predict" not in self._sources:
            self._sources["predict"] = self.predict_source()
        for name, source in self._sources.items():
            if len(source) == 0 and name not in self.may_be_empty:
                raise DataError(f"split {name!r} of {type(self).__name__} has no images")

    def _require_fit(self, patches: PatchMixer, stage: str) -> None:
        background = patches.background_index
        if background is not None and background >= self.num_classes:
            raise DataError(
                f"background_index {background}, but there are {self.num_classes} classes (option: "
                "--data.patches.background_index null, for data without a background)"
            )
        if stage == "predict":
            raise DataError(
                "patches are for training an encoder, images are predicted (option: "
                "--data.patches null)"
            )

    def _setup_training(self) -> None:
        whole = self._found("train")
        if len(whole) > 0:  # else told by setup
            self.probe(whole)
        self.split = self.label_split(whole, store=True)
        self._sources["train"] = whole if self.split is None else Subset(whole, self.split.labeled)
        if self.unlabeled_batch_size > 0 and self.shards is None:
            self._sources[UNLABELED] = self.unlabeled_source(whole, self.split)
        elif self.unlabeled_batch_size > 0 and (self.split or self.unlabeled):
            rank_zero_warn(
                "of the unlabelled images only those in --data.unlabeled_shards are used"
            )

    def label_split(self, whole: Source, store: bool = False) -> LabelSplit | None:
        """Divide the training images into those that keep their labels and the others.

        Args:
            whole: All training examples.
            store: Keep the lists in `splits_dir`, or take those that are there.
        """
        if self.labeled is None:
            return None
        return divide(
            whole,
            self.labeled,
            self.split_seed,
            self.splits_dir / self.dataset_name if store else None,
            self.num_classes if self.stratified else None,
        )

    def _found(self, split: Split) -> Source:
        source = self.source(split)
        if isinstance(source, FileSource):
            source.cache = self.cache
        return source

    def unlabeled_source(self, whole: Source, split: LabelSplit | None) -> Source:
        """Return the images without labels: those that lost them, and the extra ones.

        Args:
            whole: All training examples.
            split: Which of them keep their labels; None for all.

        Raises:
            DataError: There are none, or some of them are labelled or evaluated.
        """
        lost = Subset(whole, [] if split is None else split.unlabeled, labels=self.unlabeled_masks)
        extra = dict(self.extra_images())
        if self.unlabeled is not None:
            extra |= find_images(self.unlabeled, option="--data.unlabeled", by_path=True)
        if len(lost) == 0 and not extra:
            raise DataError(
                f"--data.unlabeled_batch_size {self.unlabeled_batch_size}, but there are no "
                "unlabelled images: --data.labeled 1/8 takes labels away, --data.unlabeled FOLDER "
                "adds images"
            )
        if not extra:
            return lost
        used = {path.resolve() for source in self._watched(whole, split) for path in files(source)}
        if both := sorted(str(path) for path in extra.values() if path.resolve() in used):
            raise DataError(
                f"{len(both)} of {len(extra)} unlabelled images are labelled or evaluated: "
                f"{some(both)} (option: --data.unlabeled)"
            )
        there = {path.resolve() for path in files(lost)}
        added: Source = FileSource(
            {name: path for name, path in extra.items() if path.resolve() not in there},
            cache=self.cache,
        )
        return Joined([lost, Relabeled(added, void=True) if self.unlabeled_masks else added])

    def _watched(self, whole: Source, split: LabelSplit | None) -> list[Source]:
        """Return the examples that must not be among the unlabelled ones."""
        watched = [whole if split is None else Subset(whole, split.labeled)]
        splits: tuple[Split, ...] = ("val", "test")
        for name in splits:
            with contextlib.suppress(DataError):  # told where it is needed
                watched.append(self.source(name))
        return watched

    # Loading

    def train_dataloader(self) -> Stream:
        """Shuffled, augmented batches; without unlabelled images an incomplete last one is dropped.

        Raises:
            DataError: The length of an epoch is not known.
        """
        sizes = {
            LABELED: self.batch_size,
            UNLABELED: self.unlabeled_batch_size,
            LABELED_REAL: self.labeled_real_batch_size,
        }
        sizes = {name: size for name, size in sizes.items() if size > 0}
        if self.trainer is not None and self.trainer.overfit_batches:  # type: ignore[attr-defined]
            raise DataError(
                "--trainer.overfit_batches would take the augmentation away; --data.labeled 8 "
                "trains on eight images"
            )
        self._save_split()
        self._class_samplers = []
        stream: Stream
        if sizes.keys() == {LABELED}:
            iterations = self.iterations_per_epoch
            if iterations is None and self._per_rank("train") < self.batch_size:
                iterations = 1  # a small set repeats
            stream = self._stream(LABELED, self.batch_size, iterations, self.num_workers)
        elif sizes.keys() == {UNLABELED}:
            iterations, size = self._iterations(sizes), self.unlabeled_batch_size
            stream = self._stream(UNLABELED, size, iterations, self.num_workers)
        else:
            iterations = self._iterations(sizes)
            shares = share_workers(self.num_workers, sizes)
            stream = GroupedLoader(
                {
                    name: self._stream(name, size, iterations, shares[name])
                    for name, size in sizes.items()
                }
            )
        if self.trainer is not None:
            # not current_epoch, which lags behind here when a finished epoch was restored
            stream.epoch = self.trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
            stream.limit = _batch_limit(self.trainer)
        self._open.append(stream.close)
        return stream

    def _stream(self, name: str, batch_size: int, iterations: int | None, workers: int) -> Stream:
        unlabeled = name == UNLABELED
        augmentation = self.unlabeled_augmentation if unlabeled else self.augmentation
        strong = self.strong if unlabeled else None
        if unlabeled and self.shards is not None:
            assert iterations is not None
            return self.shards.stream(
                augmentation,
                strong,
                iterations,
                self.seed,
                **self._ranks(),
                **self._options(workers, batch_size),
            )
        source = self._sources[UNLABELED if unlabeled else "train"]
        dataset = self._dataset(source, self.on_bad_sample, augmentation, strong)
        options: dict[str, Any] = {
            **self._ranks(),
            "length": None if iterations is None else iterations * batch_size,
            "stream": _STREAMS.index(name),
        }
        sampler: KeySampler
        if self.sampling == "classes" and not unlabeled:
            pixels = class_pixels(source, self.num_classes, self.splits_dir / self.dataset_name)
            sampler = ClassSampler(dataset, pixels > 0, self.seed, **options)
            self._class_samplers.append(sampler)
        else:
            sampler = KeySampler(dataset, self.seed, shuffle=True, **options)
        return ResumableLoader(
            dataset, sampler=sampler, drop_last=True, **self._options(workers, batch_size)
        )

    def _per_rank(self, name: str) -> int:
        return math.ceil(len(self._sources[name]) / self._ranks()["num_replicas"])

    def _iterations(self, sizes: Mapping[str, int]) -> int:
        """Return the length of an epoch in batches, one pass rounded up."""
        if self.iterations_per_epoch is not None:
            return self.iterations_per_epoch
        if self.epoch == "labeled" or UNLABELED not in sizes:
            return math.ceil(self._per_rank("train") / self.batch_size)
        if self.shards is not None:
            if self.shards.size is None:
                raise DataError(
                    "how long is an epoch? Shards do not tell how many images they hold: give "
                    "--data.iterations_per_epoch, the `size` of the shards, or, beside labelled "
                    "images, --data.epoch labeled"
                )
            per_rank = math.ceil(self.shards.size / self._ranks()["num_replicas"])
        else:
            per_rank = self._per_rank(UNLABELED)
        return math.ceil(per_rank / self.unlabeled_batch_size)

    def _save_split(self) -> None:
        """Keep the lists of this run beside its configuration."""
        if self.split is None or self.trainer is None:
            return
        folder = self.trainer.log_dir or self.trainer.default_root_dir  # asked on every process
        if self.trainer.is_global_zero and not getattr(self.trainer, "fast_dev_run", False):
            self.split.write(Path(folder) / "split")

    def weigh_classes(self, weights: Sequence[float]) -> None:
        """Draw classes in proportion to these weights (C,), from the next training epoch on.

        Raises:
            DataError: Images are drawn, not classes.
        """
        if self.sampling != "classes":
            raise DataError("classes are weighed only with --data.sampling classes")
        for sampler in self._class_samplers:
            sampler.weigh(weights)

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Whole validation images in order; none where there are no images."""
        return self._ordered("val") if len(self._sources["val"]) > 0 else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Whole test images in order."""
        return self._ordered("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Whole images in order, with or without labels; one by one where their sizes differ."""
        return self._ordered("predict")

    def _ordered(self, name: str) -> DataLoader[Any]:
        source = self._sources[name]
        batch_size = self.val_batch_size
        if name == "predict" and batch_size > 1 and isinstance(source, FileSource):
            sizes = {image_size(path) for path in source.images.values()}
            batch_size = batch_size if len(sizes) == 1 else 1
        on_bad_sample: OnBadSample = "raise" if name == "predict" else self.on_bad_sample
        dataset = self._dataset(source, on_bad_sample)
        sampler = KeySampler(dataset, self.seed, shuffle=False, **self._ranks())
        loader = DataLoader(dataset, sampler=sampler, **self._options(self.num_workers, batch_size))
        self._open.append(partial(end_workers, loader))
        return loader

    def _dataset(
        self,
        source: Source,
        on_bad_sample: OnBadSample,
        augmentation: Augmentation | None = None,
        strong: StrongView | None = None,
    ) -> SegmentationDataset | PatchDataset:
        dataset = SegmentationDataset(source, augmentation, strong, on_bad_sample)
        return dataset if self.patches is None else PatchDataset(dataset, self.patches, self.seed)

    def _options(self, workers: int, batch_size: int) -> dict[str, Any]:
        return {
            "batch_size": batch_size,
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "collate_fn": collate if self.patches is None else collate_patches,
            "worker_init_fn": one_thread,
            "generator": own_generator(self.seed),
        }

    def _ranks(self) -> dict[str, int]:
        if self.trainer is None:
            return {"rank": 0, "num_replicas": 1}
        return {"rank": self.trainer.global_rank, "num_replicas": self.trainer.world_size}

    def _augmentation(
        self,
        steps: str | Sequence[Step],
        scale: tuple[float, float] | None,
        option: str = "--data.augmentation",
    ) -> Augmentation:
        return Augmentation(steps, self.crop_size, scale, self.default_scale, option)

    def teardown(self, stage: str) -> None:
        """End the loader processes."""
        while self._open:
            self._open.pop()()


def spread(items: Sequence[Any], at_most: int) -> list[Any]:
    """Pick items at even distances, the first and the last among them."""
    places = np.linspace(0, len(items) - 1, min(at_most, len(items))).round().astype(int)
    return [items[place] for place in places]


def _batch_limit(trainer: L.Trainer) -> Callable[[], float]:
    """Ask a trainer for `limit_train_batches`, without keeping it alive."""
    known = weakref.ref(trainer)

    def limit() -> float:
        trainer = known()
        return math.inf if trainer is None else trainer.num_training_batches

    return limit


def _at_least(option: str, value: int, smallest: int) -> int:
    if value < smallest:
        raise DataError(f"--data.{option} must be at least {smallest}, not {value}")
    return value
