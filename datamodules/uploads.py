"""Image files that somebody sends, read as those of a data module are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from datamodules.errors import DataError
from datamodules.option_checks import at_least, checked_range
from datamodules.reading.decoding import Reading, decode_image

Reader = Callable[[bytes, str], NDArray[Any]]


def upload_reader(
    channels: int, max_pixels: int, image_range: tuple[float, float] | None = None
) -> Reader:
    """Return a function that decodes the bytes of an image file; it opens no other file.

    Args:
        channels: Number of channels of an image; 3 are RGB.
        max_pixels: Largest height x width of an image, at least 1.
        image_range: Values of black and white in images of more than 8 bits a channel; None takes
            the range that a file states.

    Returns:
        A function of the bytes and of a name for errors, which returns what
        `datamodules.reading.decoding.read_image` returns, and raises `DataError` as it does.

    Raises:
        DataError: An option is out of its range.
    """
    at_least(1, max_pixels=max_pixels)
    reading = Reading(checked_range(image_range), max_pixels, channels)

    def read(data: bytes, name: str) -> NDArray[Any]:
        if not data:
            raise DataError(f"{name} is empty")
        return decode_image(data, name, reading=reading)

    return read
