"""Which image comes when, with which random seed: a pure function of seed, epoch and step.

Everything random about a training example is drawn from a key `(number, seed, counted)`, which the
sampler makes in the main process. Therefore the batches do not depend on the number of loader
processes, differ between epochs and ranks, repeat with the seed, and can be entered at any step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence, Sized
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data.distributed import DistributedSampler

from datamodules.selection.seeds import RandomStream, derive_seed, generator


class SampleKey(NamedTuple):
    """The index of a dataset: which example to return, and how."""

    number: int
    """Position of the example in its source."""
    seed: int | None = None
    """Seed of the example's augmentation, in [0, 2**32); None returns the example as it is."""
    counted: bool = True
    """False for a copy that gives all ranks equally many keys: its mask is void, so that no metric
    counts it."""


class KeySampler(DistributedSampler[SampleKey]):
    """Keys of one rank, shuffled for training or in order for evaluation.

    It is a `DistributedSampler`, because Lightning replaces samplers of other classes.

    Without a `length` each rank gets ceil(n / num_replicas) keys of n examples. Training repeats
    the first examples of the order to fill up; evaluation fills up with keys that do not count.

    With a `length` the ranks share an endless sequence of passes over the examples, each in an
    order of its own. An epoch begins where the epoch before it ended, so that it may take several
    passes or a part of one.

    Args:
        dataset: Anything with a length n.
        seed: Seed of order and augmentation, at least 0.
        shuffle: True draws a new order in each epoch and gives every key a seed; False goes
            through the examples in order, without augmentation.
        rank: Number of this process, in [0, num_replicas).
        num_replicas: Number of processes that share the examples.
        length: Keys of this rank per epoch; None takes one pass over the examples.
        stream: The random stream; samplers of different streams draw different numbers.
    """

    def __init__(
        self,
        dataset: Sized,
        seed: int,
        shuffle: bool,
        rank: int = 0,
        num_replicas: int = 1,
        length: int | None = None,
        stream: RandomStream = RandomStream.LABELED,
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
        """Set the epoch of the next iteration, and how many of its first keys to skip."""
        self.epoch = epoch
        self._skip = skip

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: Lightning miscounts epochs after a resume, so the loader calls `begin`."""

    def __len__(self) -> int:
        return math.ceil(self.size / self.num_replicas) if self.length is None else self.length

    def __iter__(self) -> Iterator[SampleKey]:
        start, self._skip = self._skip, 0
        for position in range(start, len(self)):
            yield self._key(position * self.num_replicas + self.rank)

    def _key(self, step: int) -> SampleKey:
        """Return the key of a step of this epoch, where steps are counted over all ranks."""
        if not self.shuffle:
            return SampleKey(step % self.size, counted=step < self.size)
        if self.length is None:
            turn, place = self.epoch, step % self.size
        else:
            before = self.epoch * self.length * self.num_replicas
            turn, place = divmod(before + step, self.size)
        seed = derive_seed(self.seed, self.stream, self.epoch, step)
        return SampleKey(int(self._shuffled(turn)[place]), seed)

    def state_dict(self) -> dict[str, Any]:
        """Return what the keys depend on besides seed, epoch and step: nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""

    def _shuffled(self, turn: int) -> NDArray[np.int64]:
        """Return the order of one pass over the examples."""
        if self._order is None or self._order[0] != turn:
            rng = generator(self.seed, self.stream, turn)
            self._order = turn, rng.permutation(self.size)
        return self._order[1]


class ClassSampler(KeySampler):
    """Keys of images that show a drawn class: rare classes are drawn as often as frequent ones.

    The paper of loss max-pooling calls this complementary sampling. A class is drawn uniformly, or
    with the probabilities of `weigh`, which hold from the next epoch on; then an image is drawn
    uniformly among those that show the class.

    Args:
        dataset: Anything with a length.
        presence: (len(dataset), C) bool, True where an image shows a class.
        seed: Seed of the draws and of augmentation, at least 0.
        options: Arguments of `KeySampler`.
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
        """Set the epoch of the next iteration, and how many of its first keys to skip."""
        super().begin(epoch, skip)
        if skip == 0 and self._next is not None:
            self._now, self._next = self._next, None

    def _key(self, step: int) -> SampleKey:
        rng = generator(self.seed, self.stream, self.epoch, step)
        members = self.members[rng.choice(len(self.members), p=self._now)]
        return SampleKey(int(rng.choice(members)), int(rng.integers(1 << 32)))

    def state_dict(self) -> dict[str, Any]:
        """Return the probabilities of the classes in this epoch and in the next."""
        return {"now": self._now, "next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._now, self._next = state.get("now", self._now), state.get("next")

    def _normalized(self, weights: Sequence[float]) -> list[float]:
        """Return probabilities (C,) without classes that no image shows."""
        shown = np.array([len(members) > 0 for members in self.members])
        kept = np.where(shown, np.asarray(weights, np.float64), 0)
        kept = kept if kept.sum() > 0 else shown.astype(np.float64)
        normalized: list[float] = (kept / kept.sum()).tolist()
        return normalized
