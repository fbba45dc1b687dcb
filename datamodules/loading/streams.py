"""The loaders of one training process: which share of the images they read, and how."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from datamodules.augmenting.steps import Augmentation, StrongView
from datamodules.loading.dataset import SegmentationDataset
from datamodules.loading.loaders import (
    QuietLoader,
    ResumableLoader,
    Stream,
    own_generator,
    set_up_worker,
)
from datamodules.loading.patch_dataset import PatchDataset
from datamodules.loading.prediction import PredictionDataset
from datamodules.loading.shards import ShardStream, UnlabeledShards
from datamodules.selection.samplers import ClassSampler, KeySampler
from datamodules.selection.seeds import RandomStream

Examples = SegmentationDataset | PatchDataset | PredictionDataset

LABELED, UNLABELED, LABELED_REAL = "labeled", "unlabeled", "labeled_real"

RANDOM_STREAMS = {
    LABELED: RandomStream.LABELED,
    UNLABELED: RandomStream.UNLABELED,
    LABELED_REAL: RandomStream.LABELED_REAL,
}
"""The random stream of every group of a semi-supervised batch: it makes their orders differ."""


class Rank(NamedTuple):
    """One of the processes that train together and share the images of every stream."""

    rank: int = 0
    """Number of the process, in [0, num_replicas)."""
    num_replicas: int = 1
    """Number of processes."""

    @classmethod
    def of(cls, trainer: L.Trainer | None) -> Rank:
        """Return the rank of a trainer's process; a module without a trainer has one process."""
        return cls() if trainer is None else cls(trainer.global_rank, trainer.world_size)

    def share(self, images: int) -> int:
        """Return how many of the images each process reads in one pass, rounded up."""
        return math.ceil(images / self.num_replicas)

    def batches(self, images: int, batch_size: int) -> int:
        """Return how many batches each process needs for one pass over images, rounded up."""
        return math.ceil(self.share(images) / batch_size)


class Loaders:
    """Makes the loaders of one process, all with the same seed and the same share of the images.

    Args:
        seed: Seed of order and augmentation, at least 0.
        rank: The process.
        collate: Joins a list of a dataset's items to a batch.
    """

    def __init__(self, seed: int, rank: Rank, collate: Callable[[Any], Any]) -> None:
        self.seed = seed
        self.rank = rank
        self.collate = collate

    def shuffled(
        self,
        dataset: Examples,
        group: str,
        batch_size: int,
        iterations: int | None,
        workers: int,
        presence: NDArray[np.bool_] | None = None,
    ) -> ResumableLoader:
        """Return the training stream of a group of images.

        Args:
            dataset: The images.
            group: Name of the group, which decides the random stream.
            batch_size: Images of a batch.
            iterations: Batches of an epoch; None takes one pass without an incomplete last batch.
            workers: Number of loader processes; 0 loads in this one.
            presence: (len(dataset), C) bool, True where an image shows a class: draws classes and
                then images that show them. None goes through the images in random order.
        """
        options: dict[str, Any] = {
            **self.rank._asdict(),
            "length": None if iterations is None else iterations * batch_size,
            "stream": RANDOM_STREAMS[group],
        }
        sampler = (
            KeySampler(dataset, self.seed, shuffle=True, **options)
            if presence is None
            else ClassSampler(dataset, presence, self.seed, **options)
        )
        return ResumableLoader(
            dataset, sampler=sampler, drop_last=True, **self._options(batch_size, workers)
        )

    def streamed(
        self,
        shards: UnlabeledShards,
        augmentation: Augmentation,
        strong: StrongView | None,
        batch_size: int,
        iterations: int,
        workers: int,
    ) -> ShardStream:
        """Return the training stream of images in tar files.

        Args:
            shards: The tar files.
            augmentation: Steps that make a crop of each image.
            strong: Makes the second view of a crop; None makes none.
            batch_size: Images of a batch.
            iterations: Batches of an epoch.
            workers: Number of loader processes; 0 loads in this one.
        """
        options = {**self.rank._asdict(), **self._options(batch_size, workers)}
        return shards.stream(augmentation, strong, iterations, self.seed, **options)

    def ordered(self, dataset: Examples, batch_size: int, workers: int) -> DataLoader[Any]:
        """Return a loader that reads every example once, in order, without augmentation."""
        sampler = KeySampler(dataset, self.seed, shuffle=False, **self.rank._asdict())
        return QuietLoader(dataset, sampler=sampler, **self._options(batch_size, workers))

    def _options(self, batch_size: int, workers: int) -> dict[str, Any]:
        return {
            "batch_size": batch_size,
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "collate_fn": self.collate,
            "worker_init_fn": set_up_worker,
            "generator": own_generator(self.seed),
        }


def follow(stream: Stream, trainer: L.Trainer) -> None:
    """Let a stream begin with the trainer's epoch and end its epochs where the trainer does."""
    # not `current_epoch`, which is one too small after a finished epoch was restored
    stream.epoch = trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
    known = weakref.ref(trainer)  # a loader must not keep its trainer alive

    def limit() -> float:
        trainer = known()
        return math.inf if trainer is None else trainer.num_training_batches

    stream.limit = limit
