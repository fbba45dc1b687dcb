"""A page in headless Chromium: screenshots, keys, scripts, and everything that it complains of."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Page:
    """One open page, spoken to by Chromium's own protocol.

    Attributes:
        complaints: Errors and warnings of the console, and exceptions of scripts.
        requests: The addresses that were asked for, without `data:`.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0
        self.complaints: list[str] = []
        self.requests: list[str] = []

    async def call(self, method: str, **options: Any) -> dict[str, Any]:
        """Call a method of the protocol, return its result."""
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": options})
        while (answer := await self._next()).get("id") != self._number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    async def open(
        self, place: Path | str, width: int = 1280, dark: bool = False, scripts: bool = True
    ) -> None:
        """Open a file or an address at a width, in light or dark colours, or without scripts."""
        for domain in ("Page", "Network", "Log", "Runtime"):
            await self.call(f"{domain}.enable")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])
        await self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        await self.call("Emulation.setDeviceMetricsOverride", **size)
        address = place if isinstance(place, str) else place.resolve().as_uri()
        await self.call("Page.navigate", url=address)
        while (await self._next()).get("method") != "Page.loadEventFired":
            pass

    async def evaluate(self, script: str) -> Any:
        """Return the value of a script."""
        found = await self.call("Runtime.evaluate", expression=script, returnByValue=True)
        return found["result"].get("value")

    async def until(self, script: str, tries: int = 300) -> None:
        """Wait until the value of a script is true."""
        for _ in range(tries):
            if await self.evaluate(script):
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"not true after {tries / 10:g} s: {script}")

    async def choose(self, selector: str, *files: Path) -> None:
        """Choose files in an input, as a person does in the dialogue."""
        root = (await self.call("DOM.getDocument"))["root"]["nodeId"]
        found = await self.call("DOM.querySelector", nodeId=root, selector=selector)
        paths = [str(file.resolve()) for file in files]
        await self.call("DOM.setFileInputFiles", files=paths, nodeId=found["nodeId"])

    async def press(self, key: str, code: int) -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            options = {"key": key, "code": key, "windowsVirtualKeyCode": code}
            await self.call("Input.dispatchKeyEvent", type=kind, **options)

    async def screenshot(self, file: Path) -> None:
        """Write a PNG of the whole page."""
        found = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(found["data"]))

    async def _next(self) -> dict[str, Any]:
        message = await asyncio.wait_for(self._socket.receive_json(), 30)
        method, found = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            address = found["request"]["url"]
            self.requests += [address] * (not address.startswith("data:"))
        if method in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
            self.complaints.append(json.dumps(found))
        return message


def with_page(work: Callable[[Page], Awaitable[None]]) -> None:
    """Start Chromium, hand a page to some work, and end it."""
    assert CHROMIUM
    with tempfile.TemporaryDirectory() as profile:
        command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += ["--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            asyncio.run(_work(Path(profile, "DevToolsActivePort"), work))
        finally:
            browser.terminate()
            browser.wait(30)


async def _work(port_file: Path, work: Callable[[Page], Awaitable[None]]) -> None:
    for _ in range(300):
        if port_file.is_file() and (lines := port_file.read_text().splitlines()):
            break
        await asyncio.sleep(0.1)
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{lines[0]}/json") as answer:
            pages = [each for each in await answer.json() if each["type"] == "page"]
        address = pages[0]["webSocketDebuggerUrl"]
        async with session.ws_connect(address, max_msg_size=0) as socket:
            await work(Page(socket))
