"""The server of the verb `app`: one page, and one address that takes an image file.

No address of a request is ever opened as a file, and what is sent is kept in the memory alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
import socket
from asyncio import CancelledError
from collections.abc import Collection
from ipaddress import ip_address
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import anyio
import uvicorn
from anyio.to_thread import run_sync
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lightning_seg.commands.app_trial import Trial, sentence
from lightning_seg.errors import UserError

PAGE = Path(__file__).parent / "app_page" / "app.html"

SECONDS_TO_SEND = 120
"""Time in which a file must have come; default chosen here."""

_LONGEST_NAME = 80


class Refused(Exception):  # noqa: N818
    """A request that is answered with a sentence.

    Args:
        status: The status of HTTP.
        message: The sentence.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Guard:
    """Answers only requests of the page itself, and forbids the page to use anything else.

    Args:
        app: The application.
        names: Names of this machine, in small letters.
        loopback: Whether the server is reached from this machine alone.
        policy: The Content-Security-Policy.
    """

    def __init__(self, app: ASGIApp, names: Collection[str], loopback: bool, policy: str) -> None:
        self.app, self.names, self.loopback = app, names, loopback
        self.headers = {
            "content-security-policy": policy,
            "x-content-type-options": "nosniff",
            "x-frame-options": "DENY",
            "referrer-policy": "no-referrer",
            "cross-origin-opener-policy": "same-origin",
            "cross-origin-resource-policy": "same-origin",
            "cache-control": "no-store",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers)
            await send(message)

        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        reason = self._refusal(scope["method"], Headers(scope=scope))
        if reason is None:
            await self.app(scope, receive, with_headers)
        else:
            await JSONResponse({"error": reason}, 403)(scope, receive, with_headers)

    def _refusal(self, method: str, headers: Headers) -> str | None:
        """Return why a request is refused; None where it is not."""
        host = headers.get("host", "")
        # another name that leads here is how a page of the web would reach the server
        if not self._is_own(host):
            return f"this server does not answer requests to the host {host[:_LONGEST_NAME]!r}"
        origin = headers.get("origin")
        foreign = origin is not None and origin not in (f"http://{host}", f"https://{host}")
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            foreign = True
        if foreign and method not in ("GET", "HEAD"):
            return "images are taken from the page of this server alone, not from other pages"
        return None

    def _is_own(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self.names:
            return True
        try:
            address = ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not self.loopback


class Server(uvicorn.Server):
    """A server of HTTP that ends soon after a signal.

    Args:
        trial: The networks.
        host: The address as it was given.
        loopback: Whether the server is reached from this machine alone.
    """

    def __init__(self, trial: Trial, host: str, loopback: bool) -> None:
        self.trial = trial
        config = uvicorn.Config(
            build_app(trial, own_names(host, loopback), loopback),
            http="h11",
            ws="none",
            lifespan="off",
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=32,
            timeout_graceful_shutdown=3,
        )
        super().__init__(config)
        logging.getLogger("uvicorn.error").addFilter(_of_concern)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End after the window or image at hand."""
        self.trial.ending.set()
        super().handle_exit(sig, frame)


def _of_concern(record: logging.LogRecord) -> bool:
    """Return whether a line is news: that a signal ends what is in progress is none."""
    return not record.getMessage().startswith("Cancel ")


def own_names(host: str, loopback: bool) -> Collection[str]:
    """Return the names under which a server is asked, in small letters.

    Args:
        host: The address as it was given.
        loopback: Whether the server is reached from this machine alone.
    """
    if loopback:
        return {"localhost", host.lower()}
    machine = socket.gethostname().lower()
    return {"localhost", host.lower(), machine, f"{machine}.local"}


def build_app(trial: Trial, names: Collection[str], loopback: bool) -> ASGIApp:
    """Return the application of a page.

    Args:
        trial: The networks.
        names: Names of this machine under which it may be asked, in small letters.
        loopback: Whether the server is reached from this machine alone; else it may be asked under
            every numeric address, too.
    """
    page = PAGE.read_text(encoding="utf-8")
    # the pages of its documentation use other servers
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    turn = anyio.Lock()

    async def index(request: Request) -> Response:
        return HTMLResponse(page)

    async def facts(request: Request) -> Response:
        return JSONResponse(trial.facts())

    async def segment(request: Request) -> Response:
        name = file_name(request.query_params.get("name", ""))
        try:
            data = await received(request, trial.max_bytes, name)
            async with turn:
                if await request.is_disconnected():
                    return Response(status_code=204)
                content = await run_sync(_answer, trial, data, name)
        except CancelledError:  # a signal has ended the server
            return JSONResponse({"error": "the server has ended"}, 503)
        return Response(content, media_type="application/json")

    app.add_route("/", index, methods=["GET"])
    app.add_route("/facts", facts, methods=["GET"])
    app.add_route("/segment", segment, methods=["POST"])
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(UserError, _mistaken)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(HTTPException, _unknown)
    return Guard(app, names, loopback, policy_of(page))


def _answer(trial: Trial, data: bytes, name: str) -> bytes:
    return json.dumps(trial.answer(data, name)).encode()


async def received(request: Request, limit: int, name: str) -> bytes:
    """Return the body of a request, of which no more than `limit` bytes are kept.

    Args:
        request: The request.
        limit: Largest number of bytes.
        name: Name of the file, for errors.

    Raises:
        Refused: The body is longer, whatever length it announces, or takes too long to come.
    """
    problem = Refused(413, f"{name} is larger than the limit of {limit / 1e6:g} MB")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise problem
    data = bytearray()
    try:
        with anyio.fail_after(SECONDS_TO_SEND):
            async for chunk in request.stream():
                data += chunk
                if len(data) > limit:
                    raise problem
    except TimeoutError as error:
        raise Refused(408, f"{name} took more than {SECONDS_TO_SEND} seconds to come") from error
    return bytes(data)


def file_name(given: str) -> str:
    """Return the last part of a file's name for messages, without what is no printed character.

    Examples:
        >>> file_name("../a/horse.jpg"), file_name("")
        ('horse.jpg', 'the file')
    """
    last = re.split(r"[/\\]", given)[-1]
    shown = "".join(each for each in last if each.isprintable())[:_LONGEST_NAME].strip()
    return shown or "the file"


def policy_of(page: str) -> str:
    """Return the Content-Security-Policy of a page: its own script and style, and no other server.

    Args:
        page: HTML with one `<script>` and one `<style>`, which are known by their digests.
    """
    digests = {}
    for tag in ("script", "style"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        digests[tag] = f"'sha256-{digest}'"
    return (
        f"default-src 'none'; script-src {digests['script']}; style-src {digests['style']}; "
        "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


async def _refused(request: Request, error: Any) -> Response:
    # the rest of the body is not read: the connection ends
    return JSONResponse({"error": error.message}, error.status, {"connection": "close"})


async def _mistaken(request: Request, error: Any) -> Response:
    return JSONResponse({"error": sentence(error)}, 422)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)


async def _unknown(request: Request, error: Any) -> Response:
    return JSONResponse({"error": "there is no such page"}, error.status_code)
