"""The verb `app`: a page in the browser that segments photographs with a trained network.

    lightning-seg app --ckpt_path runs/lmp --against runs/cross_entropy

`docs/app.md` shows the page.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address

import torch
from jsonargparse import Namespace

from lightning_seg.commands.app_trial import Reader, Trial, load_sides
from lightning_seg.errors import SetupError, require_packages, require_range
from lightning_seg.inference import Predictor

MakeReader = Callable[[int, int, "tuple[float, float] | None"], Reader]


def app(options: Namespace, make_reader: MakeReader) -> int:
    """Serve the page until Ctrl-C.

    Args:
        options: The options of the verb, parsed.
        make_reader: Returns what decodes image files of a number of channels, of at most a number
            of pixels, with the values of black and white of deep images.

    Returns:
        The exit code, 0.

    Raises:
        SetupError: A checkpoint cannot be used, or the address not be taken.
        DataError: An option on images is out of its range.
    """
    require_packages("the page needs the packages", "app", "fastapi", "uvicorn")
    from lightning_seg.commands.app_server import Server

    require_range(0, 65535, port=options.port)
    require_range(1e-3, math.inf, max_megabytes=options.max_megabytes)
    predictor = Predictor(**vars(options.inference))
    make_reader(3, options.max_pixels, options.image_range)  # checks them before the wait
    paths = [("ckpt_path", options.ckpt_path)]
    paths += [("against", options.against)] if options.against else []
    sides = load_sides(paths, predictor, device_of(options.device))
    reader = make_reader(sides[0].module.channels, options.max_pixels, options.image_range)
    with listening(options.host, options.port) as taken:
        trial = Trial(sides, reader, options.max_megabytes, options.max_pixels)
        server = Server(trial, options.host, is_loopback(taken.getsockname()[0]))
        print(notice(options.host, taken), flush=True)
        with suppress(KeyboardInterrupt):
            server.run(sockets=[taken])
    return 0


def device_of(name: str) -> torch.device:
    """Return the device of a name.

    Raises:
        SetupError: There is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except Exception as error:  # torch raises RuntimeError, AssertionError, AcceleratorError
        first = str(error).partition("\n")[0]
        raise SetupError(
            f"the device {name} cannot be used: {first}", option="device cpu"
        ) from error
    return device


def listening(host: str, port: int) -> socket.socket:
    """Return a socket at an address.

    Args:
        host: A name or a numeric address of this machine.
        port: From 1 to 65535; 0 takes a free port.

    Raises:
        SetupError: The address is not of this machine, or the port is in use or not allowed.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise SetupError(f"there is no address {host}: {error}", option="host") from error
    family, kind, protocol, _, address = found[0]
    taken = socket.socket(family, kind, protocol)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind(address)
        taken.listen()
    except OSError as error:
        taken.close()
        raise SetupError(
            f"port {port} of {host} cannot be taken: {(error.strerror or str(error)).lower()}",
            option=("port 0", "host"),
        ) from error
    return taken


def is_loopback(address: str) -> bool:
    """Return whether a numeric address is reached from this machine alone.

    Examples:
        >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("0.0.0.0")
        (True, True, False)
    """
    return ip_address(address.partition("%")[0]).is_loopback


def notice(host: str, taken: socket.socket) -> str:
    """Return the line that says where the page is, and a second one on who can use it.

    Args:
        host: The address as it was given.
        taken: The socket that the server listens at.
    """
    address, port = taken.getsockname()[:2]
    name = socket.gethostname() if ip_address(address.partition("%")[0]).is_unspecified else host
    shown = f"[{name}]" if ":" in name else name
    line = f"the page is at http://{shown}:{port}, and Ctrl-C ends it"
    if is_loopback(address):
        return line
    return (
        f"{line}\nnote: {host} is not this machine alone: anyone on the network can use the page, "
        "and there is no password"
    )
