"""Loaders that count their epochs and continue in the middle of one."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import cv2
import torch
from torch.utils.data import DataLoader

from datamodules.selection.samplers import KeySampler

_HOLDS_SIGNALS = hasattr(signal, "sigwaitinfo")  # Linux
_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1} if _HOLDS_SIGNALS else set()


class Stream(Protocol):
    """Batches in epochs, which can be entered at any batch."""

    epoch: int
    """The epoch of the running iteration, or of the next one where none is running."""
    limit: Callable[[], float]
    """Returns the largest number of batches that the trainer takes from an epoch."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch, and how many of its batches were returned."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next iteration begin after the batches that were returned."""
        ...

    def close(self) -> None:
        """End the loader processes."""
        ...


class QuietLoader(DataLoader[Any]):
    """A DataLoader without torch's advice on the number of processes in every epoch.

    The number is an option, or follows the cores that the process may use.
    """

    def check_worker_number_rationality(self) -> None:
        """Accept any number of processes."""

    def _get_iterator(self) -> Any:
        """Start the loader processes with signals held back, until `set_up_worker` listens."""
        if self.num_workers == 0 or not _HOLDS_SIGNALS:
            return super()._get_iterator()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            return super()._get_iterator()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class ResumableLoader(QuietLoader):
    """A DataLoader that counts its epochs and continues in the middle of one.

    Every iteration is an epoch with its own order and augmentation. Lightning stores the state in
    each checkpoint and restores it before training continues; images of batches that were returned
    before are not loaded again.

    Attributes:
        epoch: The epoch of the running iteration, or of the next one where none is running.
        limit: Returns the largest number of batches that the trainer takes from an epoch.
    """

    epoch = 0
    limit: Callable[[], float] = staticmethod(lambda: math.inf)
    _seen = 0
    _running = False

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # a generator function: this code runs at the first `next`, when Lightning has restored the
        # state of a checkpoint
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
        """Return the epoch, how many of its batches were returned, and the sampler's state."""
        keys = self.sampler.state_dict() if isinstance(self.sampler, KeySampler) else {}
        return {"epoch": self.epoch, "seen": self._seen, "keys": keys}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next iteration begin after the batches that were returned."""
        self.epoch, self._seen = state.get("epoch", self.epoch), state.get("seen", 0)
        if isinstance(self.sampler, KeySampler):
            self.sampler.load_state_dict(state.get("keys", {}))
        self._running = False

    def close(self) -> None:
        """End the loader processes."""
        end_workers(self)


class GroupedLoader:
    """Several streams in parallel: a batch is a dict with one batch of every stream.

    Args:
        streams: Streams by the names of their groups. The shortest stream ends the epoch.
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
        """The epoch of the running iteration, or of the next one where none is running."""
        return next(iter(self.streams.values())).epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        for stream in self.streams.values():
            stream.epoch = epoch

    @property
    def limit(self) -> Callable[[], float]:
        """Returns the largest number of batches that the trainer takes from an epoch."""
        return next(iter(self.streams.values())).limit

    @limit.setter
    def limit(self, limit: Callable[[], float]) -> None:
        for stream in self.streams.values():
            stream.limit = limit

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every stream by the name of its group."""
        return {name: stream.state_dict() for name, stream in self.streams.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make every stream continue after the batches that it returned."""
        for name, stream in self.streams.items():
            if name in state:
                stream.load_state_dict(state[name])

    def close(self) -> None:
        """End the loader processes of all streams."""
        for stream in self.streams.values():
            stream.close()


def end_workers(loader: DataLoader[Any]) -> None:
    """End a loader's persistent processes.

    The garbage collector would take five seconds for each process of a loader in a reference cycle,
    such as a trainer's: it finalises the queue that ends the process first.
    """
    loader._iterator = None


def own_generator(seed: int) -> torch.Generator:
    """Return the generator of a loader's worker seeds, so that torch's global one stays untouched.

    With the global generator a run that stops and resumes would create one loader more, and its
    dropout masks would differ from those of a run that does not stop.
    """
    return torch.Generator().manual_seed(seed)


def share_workers(workers: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """Divide loader processes among streams in proportion to their batch sizes, at least one each.

    Args:
        workers: Number of loader processes; 0 gives every stream 0.
        sizes: Batch size by the name of the stream.
    """
    if workers == 0:
        return dict.fromkeys(sizes, 0)
    total = sum(sizes.values())
    return {name: max(1, round(workers * size / total)) for name, size in sizes.items()}


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # the cores that a scheduler such as SLURM granted
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_up_worker(_worker: int) -> None:
    """Set a loader process up: one thread, because there is one process per core already.

    A scheduler or a terminal sends its signals to all processes of a run. The main process ends the
    run after the step, for which it needs its loader processes. They listen to it alone.
    """
    cv2.setNumThreads(0)
    if _HOLDS_SIGNALS:
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        threading.Thread(target=_obey_parent, daemon=True).start()


def _obey_parent() -> None:
    """End this process at SIGTERM of its parent; drop the signals of others."""
    while True:
        found = signal.sigwaitinfo(_SIGNALS)
        if found.si_signo == signal.SIGTERM and found.si_pid == os.getppid():
            os._exit(0)
