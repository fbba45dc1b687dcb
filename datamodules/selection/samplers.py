"""Which image comes when, with which random seed: a pure function of seed, epoch and index.

Everything random about a training example is drawn from a key `(number, seed, counted)` that the
sampler makes in the main process. So the stream of batches does not depend on the number of
workers, differs between epochs and ranks, repeats with the seed, and can be entered anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence, Sized
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
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
        length: Keys of this rank per epoch; None takes one pass over the set.
        stream: Number of the stream: streams of one seed differ.

    Without a `length` each rank gets ceil(n / num_replicas) keys. Training fills up with the first
    of the order, evaluation with keys that do not count.

    With a `length` the ranks share an endless sequence of passes over the set, each in an order
    of its own, and an epoch goes on where the one before it ended: as many passes as it takes, or
    part of one.
    """

    def __init__(
        self,
        dataset: Sized,
        seed: int,
        shuffle: bool,
        rank: int = 0,
        num_replicas: int = 1,
        length: int | None = None,
        stream: int = 0,
    ) -> None:
        self.size = len(dataset)
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.num_replicas = num_replicas
        self.length = length
        self.stream = stream
        self._order: tuple[int, NDArray[np.int64]] | None = None
        self.begin(epoch=0)

    def begin(self, epoch: int, skip: int = 0) -> None:
        """Make the next iteration one of this epoch, without its first keys."""
        self.epoch = epoch
        self._skip = skip

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: Lightning miscounts epochs after a resume, the loader counts them itself."""

    def __len__(self) -> int:
        return math.ceil(self.size / self.num_replicas) if self.length is None else self.length

    def __iter__(self) -> Iterator[SampleKey]:
        start, self._skip = self._skip, 0
        for position in range(start, len(self)):
            yield self._key(position * self.num_replicas + self.rank)

    def _key(self, step: int) -> SampleKey:
        """Return the key of a step of this epoch, counted over all ranks."""
        if not self.shuffle:
            return SampleKey(step % self.size, counted=step < self.size)
        if self.length is None:
            turn, place = self.epoch, step % self.size
        else:
            before = self.epoch * self.length * self.num_replicas
            turn, place = divmod(before + step, self.size)
        return SampleKey(int(self._shuffled(turn)[place]), self._draw(self.epoch, step))

    def state_dict(self) -> dict[str, Any]:
        """Return what the keys of an epoch depend on beside its number: nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what `state_dict` returned."""

    def _shuffled(self, turn: int) -> NDArray[np.int64]:
        """Return the order of one pass over the set."""
        if self._order is None or self._order[0] != turn:
            rng = np.random.default_rng((self.seed, self.stream, turn))
            self._order = turn, rng.permutation(self.size)
        return self._order[1]

    def _draw(self, epoch: int, step: int) -> int:
        entropy = (self.seed, self.stream, epoch, step)
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])


class ClassSampler(KeySampler):
    """Draws a class, then an image that shows it: rare classes come as often as others.

    The sampling that loss max-pooling's paper calls complementary. Classes are drawn uniformly, or
    with the probabilities of `weigh`, which hold from the next epoch on.

    Args:
        dataset: Anything with a length.
        presence: (len(dataset), C), True where an image shows a class.
        seed: Seed of the draws and of augmentation.
        options: Passed to `KeySampler`.
    """

    def __init__(
        self, dataset: Sized, presence: NDArray[np.bool_], seed: int, **options: Any
    ) -> None:
        self.members = [np.flatnonzero(column) for column in presence.T]
        self._now = self._normalized([1.0] * len(self.members))
        self._next: list[float] | None = None
        super().__init__(dataset, seed, shuffle=True, **options)

    def weigh(self, weights: Sequence[float]) -> None:
        """Draw classes in proportion to these weights (C,), from the next epoch on."""
        self._next = self._normalized(weights)

    def begin(self, epoch: int, skip: int = 0) -> None:
        """Make the next iteration one of this epoch, without its first keys."""
        super().begin(epoch, skip)
        if skip == 0 and self._next is not None:
            self._now, self._next = self._next, None

    def _key(self, step: int) -> SampleKey:
        rng = np.random.default_rng((self.seed, self.stream, self.epoch, step))
        members = self.members[rng.choice(len(self.members), p=self._now)]
        return SampleKey(int(rng.choice(members)), int(rng.integers(1 << 32)))

    def state_dict(self) -> dict[str, Any]:
        """Return the probabilities of this epoch and of the next."""
        return {"now": self._now, "next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what `state_dict` returned."""
        self._now, self._next = state.get("now", self._now), state.get("next")

    def _normalized(self, weights: Sequence[float]) -> list[float]:
        shown = np.array([len(members) > 0 for members in self.members])
        kept = np.where(shown, np.asarray(weights, np.float64), 0)
        kept = kept if kept.sum() > 0 else shown.astype(np.float64)
        normalized: list[float] = (kept / kept.sum()).tolist()
        return normalized
