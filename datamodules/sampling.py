"""Which image comes when, with which random seed: a pure function of seed, epoch and index.

Everything random about a training example is drawn from a key `(number, seed, counted)` that the
sampler makes in the main process. So the stream of batches does not depend on the number of
workers, differs between epochs and ranks, repeats with the seed, and can be entered anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sized
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler


class SampleKey(NamedTuple):
    """What a dataset is asked for."""

    number: int
    """Position of the example in its source."""
    seed: int | None = None
    """Seeds this example's augmentation; None asks for none."""
    counted: bool = True
    """False for the copies that even out the ranks: their mask is void, no metric counts them."""


class KeySampler(DistributedSampler[SampleKey]):
    """Shuffled or ordered keys for one rank.

    It is a `DistributedSampler`, so that Lightning keeps it as it is.

    Args:
        dataset: Anything with a length.
        seed: Seed of order and augmentation.
        shuffle: Draw a new order each epoch, and seed the augmentation. False walks through the
            set in order, without augmentation.
        rank: This process, in [0, num_replicas).
        num_replicas: Number of processes.

    Each rank gets ceil(n / num_replicas) keys. Training fills up with the first of the order,
    evaluation with keys that do not count.
    """

    def __init__(
        self, dataset: Sized, seed: int, shuffle: bool, rank: int = 0, num_replicas: int = 1
    ) -> None:
        self.size = len(dataset)
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.num_replicas = num_replicas
        self.begin(epoch=0)

    def begin(self, epoch: int, skip: int = 0) -> None:
        """Make the next iteration one of this epoch, without its first keys."""
        self.epoch = epoch
        self._skip = skip

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: Lightning miscounts epochs after a resume, the loader counts them itself."""

    def __len__(self) -> int:
        return math.ceil(self.size / self.num_replicas)

    def __iter__(self) -> Iterator[SampleKey]:
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.size)
        else:
            order = np.arange(self.size)
        start, self._skip = self._skip, 0
        for position in range(start, len(self)):
            place = position * self.num_replicas + self.rank
            number = int(order[place % self.size])
            if self.shuffle:
                entropy = (self.seed, self.epoch, place)
                seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
                yield SampleKey(number, seed)
            else:
                yield SampleKey(number, counted=place < self.size)


class ResumableLoader(DataLoader[Any]):
    """A DataLoader that counts its epochs and continues in the middle of one.

    Every iteration is an epoch of its own order and augmentation. Lightning stores the state in
    each checkpoint and restores it before training goes on; what was seen is not loaded again.

    Attributes:
        epoch: The epoch of the next or running iteration.
        epoch_length: Tells how many batches the trainer takes from an epoch.
    """

    epoch = 0
    epoch_length: Callable[[], int]
    _seen = 0
    _running = False

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator: nothing is drawn before the first batch is asked for, when a checkpoint's
        # state has been restored.
        if self._running or self._seen >= self.epoch_length():
            self.epoch += 1
            self._seen = 0
        self._running = True
        if isinstance(self.sampler, KeySampler):
            self.sampler.begin(self.epoch, skip=self._seen * (self.batch_size or 1))
        for batch in super().__iter__():
            self._seen += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, and how many of its batches were handed out."""
        return {"epoch": self.epoch, "seen": self._seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Make the next iteration begin behind the batches that were handed out."""
        self.epoch, self._seen = state["epoch"], state["seen"]
        self._running = False


def own_generator(seed: int) -> torch.Generator:
    """Give a loader its own source of worker seeds, so that it draws nothing from the global one.

    Else a run that stops and resumes would build one loader more and see other dropout masks.
    """
    return torch.Generator().manual_seed(seed)
