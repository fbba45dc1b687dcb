"""The page of the verb `app`, served by a thread of the test."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import torch

from datamodules.uploads import upload_reader
from lightning_seg.commands.app import is_loopback, listening
from lightning_seg.commands.app_server import Server
from lightning_seg.commands.app_trial import Side, Trial, load_sides
from lightning_seg.inference import Predictor


class Served:
    """A server and the requests of a test to it."""

    def __init__(self, trial: Trial, port: int) -> None:
        self.trial, self.port = trial, port
        self.address = f"http://127.0.0.1:{port}"

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers with small letters, and content."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, found, answer.read()
        finally:
            connection.close()

    def send(self, data: bytes, name: str = "photo.png") -> tuple[int, dict[str, Any]]:
        """Send an image file; return the status and the answer."""
        status, _, content = self.ask("POST", f"/segment?name={quote(name, safe='')}", data)
        return status, json.loads(content)


def trial_of(
    *checkpoints: Any,
    sides: Sequence[Side] = (),
    max_megabytes: float = 1,
    max_pixels: int = 200_000,
    **inference: Any,
) -> Trial:
    """Return what the verb would make of checkpoints, or of networks that are in memory."""
    options = ("ckpt_path", "against")
    named = [(option, str(each)) for option, each in zip(options, checkpoints, strict=False)]
    sides = sides or load_sides(named, Predictor(**inference), torch.device("cpu"))
    reader = upload_reader(sides[0].module.channels, max_pixels)
    return Trial(sides, reader, max_megabytes, max_pixels)


@contextmanager
def served(trial: Trial, host: str = "127.0.0.1") -> Iterator[Served]:
    """Serve a page while the block runs."""
    with listening(host, 0) as taken:
        server = Server(trial, host, is_loopback(taken.getsockname()[0]))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
        thread.start()
        try:
            yield Served(trial, taken.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    pause = threading.Event()
    for _ in range(600):
        if condition():
            return
        pause.wait(0.05)
    raise AssertionError("the condition never held")
