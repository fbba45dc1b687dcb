"""What all data modules share: loaders, seeds, augmentation, prediction without labels."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import Any, Literal

import cv2
import lightning as L
import torch
from torch.utils.data import DataLoader

from datamodules.dataset import FileSource, SegmentationDataset, Source, collate
from datamodules.errors import DataError
from datamodules.files import find_images, image_size
from datamodules.labels import VOID
from datamodules.sampling import KeySampler, ResumableLoader, own_generator
from datamodules.transforms import train_pipeline

Split = Literal["train", "val", "test"]


class SegmentationDataModule(L.LightningDataModule, ABC):
    """Loaders of `{"image", "mask", "id"}` batches; subclasses say where examples come from.

    Training examples are scaled, cropped and flipped at random; validation, test and prediction
    see every image whole and once, on any number of processes.

    Args:
        batch_size: Training images per device and step.
        val_batch_size: Images per device and step otherwise. Above 1 all images of a batch must
            have one size; prediction falls back to 1 where they have not.
        crop_size: Side of the square training crop in pixels, or height and width; None takes
            `default_crop_size`.
        scale: Smallest and largest random scale factor; None takes `default_scale`.
        horizontal_flip: Mirror every other training image.
        color_jitter: Strength in [0, 1] of random colour changes; 0 switches them off.
        num_workers: Loader processes per device; None takes up to 8, at most one per core.
        predict: What `predict` reads: a folder, a glob, an image, a `.txt` list of images, or a
            list of these. None takes the test split.
        seed: Seed of order and augmentation; None takes `seed_everything`'s.

    Attributes:
        ignore_index: The class id of void pixels, 255.
        default_crop_size: Of this kind of data; no default of an argument, because those would
            follow when a configuration changes the class.
        default_scale: Likewise.
    """

    ignore_index = VOID
    default_crop_size: int | tuple[int, int] = 512
    default_scale: tuple[float, float] = (0.5, 2.0)

    def __init__(
        self,
        batch_size: int = 8,
        val_batch_size: int = 1,
        crop_size: int | tuple[int, int] | None = None,
        scale: tuple[float, float] | None = None,
        horizontal_flip: bool = True,
        color_jitter: float = 0.0,
        num_workers: int | None = None,
        predict: str | list[str] | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.batch_size = _at_least("batch_size", batch_size, 1)
        self.val_batch_size = _at_least("val_batch_size", val_batch_size, 1)
        crop = self.default_crop_size if crop_size is None else crop_size
        height, width = (crop, crop) if isinstance(crop, int) else crop
        self.crop_size = (_at_least("crop_size", height, 1), _at_least("crop_size", width, 1))
        self.scale = self.default_scale if scale is None else scale
        if not 0 < self.scale[0] <= self.scale[1]:
            raise DataError(f"--data.scale must be 0 < smallest <= largest, not {list(self.scale)}")
        if not 0 <= color_jitter <= 1:
            raise DataError(f"--data.color_jitter must lie in [0, 1], not {color_jitter}")
        self.horizontal_flip = horizontal_flip
        self.color_jitter = color_jitter
        workers = min(8, _cores()) if num_workers is None else num_workers
        self.num_workers = _at_least("num_workers", workers, 0)
        self.predict = predict
        self._seed = seed
        self._sources: dict[str, Source] = {}

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
    def seed(self) -> int:
        """The seed in force: the argument, else `seed_everything`'s, else 0."""
        return self._seed if self._seed is not None else int(os.environ.get("PL_GLOBAL_SEED", 0))

    @abstractmethod
    def source(self, split: Split) -> Source:
        """Return the examples of a split; raise `DataError` where something is wrong with it."""

    def setup(self, stage: str) -> None:
        """Find the examples that a stage needs, and stop here if they cannot be used."""
        needed: dict[str, tuple[Split, ...]] = {
            "fit": ("train", "val"),
            "validate": ("val",),
            "test": ("test",),
            "predict": (),
        }
        for split in needed[stage]:
            if split not in self._sources:
                self._sources[split] = self.source(split)
        if stage == "predict" and "predict" not in self._sources:
            self._sources["predict"] = self.predict_source()
        for name, source in self._sources.items():
            if len(source) == 0:
                raise DataError(f"split {name!r} of {type(self).__name__} has no images")

    def predict_source(self) -> Source:
        """Return the images to predict: those of the option, else the test split's."""
        if self.predict is None:
            return self.source("test")
        return FileSource(find_images(self.predict))

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled, augmented batches; an incomplete last one is dropped."""
        pipeline = train_pipeline(
            self.crop_size, self.scale, self.horizontal_flip, self.color_jitter
        )
        dataset = SegmentationDataset(self._sources["train"], pipeline)
        sampler = KeySampler(dataset, self.seed, shuffle=True, **self._ranks())
        loader = ResumableLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=len(sampler) >= self.batch_size,
            **self._options(),
        )
        loader.epoch_length = lambda: len(loader)
        if (trainer := self.trainer) is not None:
            # not current_epoch, which lags behind here when a finished epoch was restored
            loader.epoch = trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
            loader.epoch_length = lambda: int(min(len(loader), trainer.num_training_batches))
        return loader

    def val_dataloader(self) -> DataLoader[Any]:
        """Whole validation images in order."""
        return self._ordered("val")

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
        dataset = SegmentationDataset(source)
        sampler = KeySampler(dataset, self.seed, shuffle=False, **self._ranks())
        return DataLoader(dataset, batch_size=batch_size, sampler=sampler, **self._options())

    def _options(self) -> dict[str, Any]:
        return {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "collate_fn": collate,
            "worker_init_fn": _one_thread,
            "generator": own_generator(self.seed),
        }

    def _ranks(self) -> dict[str, int]:
        if self.trainer is None:
            return {"rank": 0, "num_replicas": 1}
        return {"rank": self.trainer.global_rank, "num_replicas": self.trainer.world_size}


def _one_thread(_worker: int) -> None:
    cv2.setNumThreads(0)  # the workers are the parallelism


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # what a scheduler such as SLURM granted
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _at_least(option: str, value: int, smallest: int) -> int:
    if value < smallest:
        raise DataError(f"--data.{option} must be at least {smallest}, not {value}")
    return value
