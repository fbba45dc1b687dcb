"""Threads that write files while a network goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

_THREADS = 2


class FileThreads:
    """Writes files in threads, few of them at a time; errors are raised by a later call."""

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None
        self._pending: deque[Future[None]] = deque()

    def submit(self, write: Callable[..., None], *values: Any) -> None:
        """Let a thread write a file, and wait where many files are not written yet."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, "files")
        self._pending.append(self._threads.submit(write, *values))
        self._wait(2 * _THREADS)

    def _wait(self, most: int) -> None:
        """Wait until so many files are not written yet; raise the first error of the others."""
        while self._pending and (len(self._pending) > most or self._pending[0].done()):
            self._pending.popleft().result()

    def finish(self) -> None:
        """Wait until all files are written or one was not, and end the threads.

        Raises:
            Exception: The first error of a file that was not written.
        """
        try:
            self._wait(0)
        finally:
            self.stop()

    def stop(self) -> None:
        """Finish the files that were begun, and no others."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        self._threads = None
        self._pending.clear()
