"""Loaders that count their epochs and go on in the middle of one."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import cv2
import torch
from torch.utils.data import DataLoader

from datamodules.selection.samplers import KeySampler


class Stream(Protocol):
    """Batches in epochs, which can be entered anywhere."""

    epoch: int
    """The epoch of the next or running iteration."""
    limit: Callable[[], float]
    """Tells how many batches at most the trainer takes from an epoch."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch, and how many of its batches were handed out."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next iteration begin behind the batches that were handed out."""
        ...

    def close(self) -> None:
        """End the loader processes."""
        ...


class ResumableLoader(DataLoader[Any]):
    """A DataLoader that counts its epochs and continues in the middle of one.

    Every iteration is an epoch of its own order and augmentation. Lightning stores the state in
    each checkpoint and restores it before training goes on; what was seen is not loaded again.

    Attributes:
        epoch: The epoch of the next or running iteration.
        limit: Tells how many batches at most the trainer takes from an epoch.
    """

    epoch = 0
    limit: Callable[[], float] = staticmethod(lambda: math.inf)
    _seen = 0
    _running = False

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator: nothing is drawn before the first batch is asked for, when a checkpoint's
        # state has been restored.
        if self._running or self._seen >= min(len(self), self.limit()):
            self.epoch += 1
            self._seen = 0
        self._running = True
        if isinstance(self.sampler, KeySampler):
            self.sampler.begin(self.epoch, skip=self._seen * (self.batch_size or 1))
        for batch in super().__iter__():
            self._seen += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch, and how many of its batches were handed out."""
        keys = self.sampler.state_dict() if isinstance(self.sampler, KeySampler) else {}
        return {"epoch": self.epoch, "seen": self._seen, "keys": keys}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next iteration begin behind the batches that were handed out."""
        self.epoch, self._seen = state.get("epoch", self.epoch), state.get("seen", 0)
        if isinstance(self.sampler, KeySampler):
            self.sampler.load_state_dict(state.get("keys", {}))
        self._running = False

    def close(self) -> None:
        """End the loader processes."""
        end_workers(self)


class GroupedLoader:
    """Several streams side by side: each batch is a dict with one batch of every stream.

    Args:
        streams: Loaders by the name of their group. The shortest ends the epoch.
    """

    def __init__(self, streams: Mapping[str, Stream]) -> None:
        self.streams = dict(streams)

    def __len__(self) -> int:
        return min(len(stream) for stream in self.streams.values())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batches in zip(*self.streams.values(), strict=False):
            yield dict(zip(self.streams, batches, strict=True))

    @property
    def epoch(self) -> int:
        """The epoch of the next or running iteration."""
        return next(iter(self.streams.values())).epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        for stream in self.streams.values():
            stream.epoch = epoch

    @property
    def limit(self) -> Callable[[], float]:
        """Tells how many batches at most the trainer takes from an epoch."""
        return next(iter(self.streams.values())).limit

    @limit.setter
    def limit(self, limit: Callable[[], float]) -> None:
        for stream in self.streams.values():
            stream.limit = limit

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every stream."""
        return {name: stream.state_dict() for name, stream in self.streams.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make every stream continue where it was."""
        for name, stream in self.streams.items():
            if name in state:
                stream.load_state_dict(state[name])

    def close(self) -> None:
        """End the loader processes."""
        for stream in self.streams.values():
            stream.close()


def end_workers(loader: DataLoader[Any]) -> None:
    """End a loader's persistent processes.

    Left to the garbage collector in a reference cycle, such as a trainer's, each takes torch five
    seconds: the queue that would tell it to end is finalised before.
    """
    loader._iterator = None


def own_generator(seed: int) -> torch.Generator:
    """Give a loader its own source of worker seeds, so that it draws nothing from the global one.

    Else a run that stops and resumes would build one loader more and see other dropout masks.
    """
    return torch.Generator().manual_seed(seed)


def share_workers(workers: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """Give every stream workers in proportion to its batch, one at least, unless there are none."""
    if workers == 0:
        return dict.fromkeys(sizes, 0)
    total = sum(sizes.values())
    return {name: max(1, round(workers * size / total)) for name, size in sizes.items()}


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # what a scheduler such as SLURM granted
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def one_thread(_worker: int) -> None:
    """Set a loader process up: the processes are the parallelism."""
    cv2.setNumThreads(0)
