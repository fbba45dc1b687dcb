"""Decoding image files to RGB; every error names the file."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.errors import DataError
from datamodules.reading.bands import as_fractions, band_size, require_rgb, stored_bands
from datamodules.reading.samples import (
    MAX_PIXELS,
    Opened,
    Samples,
    deep_samples,
    is_turning,
    loaded,
    opened,
    png_depth,
    read_bytes,
    require_one_page,
    require_pixels,
    require_samples,
)

_REDUCED = {
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


class Reading(NamedTuple):
    """How image files are read."""

    image_range: tuple[float, float] | None = None
    """Values of black and white in images of more than 8 bits a channel; None takes the range that
    a file states, or that of 16 bits, or 0..1 for fractions."""
    max_pixels: int = MAX_PIXELS
    """Largest height x width of an image or mask."""
    channels: int = 3
    """Number of channels of an image; 3 are RGB."""


USUAL = Reading()


class Range(NamedTuple):
    """The values of an image whose file does not state their range."""

    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    full: float
    """The value that is taken for white without an option; NaN where none can be assumed."""


def read_image(path: Path, reduce: int = 1, reading: Reading = USUAL) -> NDArray[Any]:
    """Read an image file, turned as its EXIF orientation says.

    Args:
        path: The file. RGB values of more than 8 bits are scaled to 8 bits.
        reduce: 1, 2, 4 or 8. A JPEG is decoded at 1/`reduce` of its size, which is faster and
            averages the pixels; other files, and images that are not RGB, are decoded at their
            full size.
        reading: Range of deep images, largest size, and number of channels.

    Returns:
        (H, W, 3) uint8, or (ceil(H / reduce), ceil(W / reduce), 3) uint8 for a reduced JPEG. Of
        another number of channels C, (H, W, C) uint8 for files of 8 bits a channel, and float32 in
        [0, 1] for others.

    Raises:
        DataError: The file cannot be decoded to its end, holds several images or is too large, has
            another number of channels, or the range of its values is not known.
    """
    return decode_image(read_bytes(path), path, reduce, reading)


def decode_image(
    data: bytes, path: Path | str, reduce: int = 1, reading: Reading = USUAL
) -> NDArray[Any]:
    """Decode the bytes of an image file, turned as its EXIF orientation says.

    Args:
        data: The bytes of the file.
        path: Name of the file, for errors.
        reduce: 1, 2, 4 or 8. A JPEG is decoded at 1/`reduce` of its size.
        reading: Range of deep images, largest size, and number of channels.

    Returns:
        What `read_image` returns.

    Raises:
        DataError: As `read_image` does.
    """
    if reading.channels != 3:
        return _decode_bands(data, path, reading)
    if (fast := _decode_fast(data, path, reduce, reading.max_pixels)) is not None:
        return fast
    header = opened(data, path, reading.max_pixels)
    require_one_page(header, path)
    require_rgb(header, path)
    deep = deep_samples(data, header, path)
    if deep is None:
        return np.array(loaded(header, path).convert("RGB"))
    grey_or_rgb = without_alpha(deep.array)
    image = to_bytes(grey_or_rgb, *value_range(grey_or_rgb, deep, path, reading))
    if header.inverted and header.bits > 8:
        image = 255 - image
    return np.ascontiguousarray(image if image.ndim == 3 else image[..., None].repeat(3, axis=2))


def _decode_bands(data: bytes, path: Path | str, reading: Reading) -> NDArray[Any]:
    header = opened(data, path, reading.max_pixels)
    require_samples(header, reading.channels, reading.max_pixels, path)
    bands = stored_bands(data, header, path, reading.channels)
    if bands.array.dtype == np.uint8 and bands.full == 255:
        return np.ascontiguousarray(bands.array)
    low, high = value_range(bands.array, bands, path, reading)
    fractions = as_fractions(bands.array, low, high)
    return 1 - fractions if header.inverted else fractions


def without_alpha(array: NDArray[Any]) -> NDArray[Any]:
    """Return samples without their alpha channel: (H, W) or (H, W, 3)."""
    if array.ndim == 2:
        return array
    return array[..., 0] if array.shape[2] < 3 else array[..., :3]


def to_bytes(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Return values as bytes: 0 for `low`, 255 for `high`, and values beyond clipped."""
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.clip(scaled.round(), 0, 255).astype(np.uint8)


def value_range(
    values: NDArray[Any], deep: Samples, path: Path | str, reading: Reading
) -> tuple[float, float]:
    """Return the values of black and white in an image.

    Args:
        values: The samples, or their smallest and largest value.
        deep: States the largest value that the file may hold.
        path: Name of the file, for errors.
        reading: States the range where it is an option.

    Raises:
        DataError: The range is not known, or a value is not finite.
    """
    if not np.isfinite(values).all():
        raise DataError(f"image {path} must hold finite numbers; it holds NaN or infinity")
    if reading.image_range is not None and not (deep.full and deep.full <= 255):
        return reading.image_range
    if deep.full is not None:
        return 0.0, deep.full
    found = _found(values)
    if math.isnan(found.full):
        raise DataError(
            f"image {path} holds {found.low:g}..{found.high:g} as {values.dtype}, and the file "
            "does not say which values are black and white",
            option=f"image_range {_suggested(found.low, found.high)}",
        )
    if found.low < found.high < found.full / 8:
        raise DataError(
            f"image {path} holds {found.low:g}..{found.high:g} of 0..{found.full:g} and would be "
            "nearly black, and the file does not say which value is white",
            option=(
                f"image_range {_suggested(found.low, found.high)}",
                f"image_range [0,{found.full:g}]",
            ),
        )
    return 0.0, found.full


def _found(values: NDArray[Any]) -> Range:
    low, high = float(values.min()), float(values.max())
    if values.dtype == np.uint16:
        return Range(low, high, 65535.0)
    fractions = values.dtype.kind == "f" and low >= 0 and high <= 1
    return Range(low, high, 1.0 if fractions else math.nan)


def unstated_range(path: Path, reading: Reading = USUAL) -> Range | None:
    """Return the values of an image whose file does not state their range.

    Returns:
        The range; None for an image of 8 bits a channel, or whose file states its range.

    Raises:
        DataError: The file cannot be decoded.
    """
    data = read_bytes(path)
    deep = _deep(data, opened(data, path, reading.max_pixels), path, reading)
    return None if deep is None or deep.full is not None else _found(deep.array)


def unstated(data: bytes, path: Path | str, reading: Reading = USUAL) -> bool:
    """Return whether an image has more than 8 bits a channel and does not state their range."""
    deep = _deep(data, opened(data, path), path, reading)
    return deep is not None and deep.full is None


def stored_facts(path: Path, reading: Reading = USUAL) -> tuple[bool, tuple[float, float] | None]:
    """Return whether EXIF data turn an image, and its range where it is deep.

    Returns:
        The first is True where the image is turned or mirrored. The second is the smallest and the
        largest value of an image of more than 8 bits a channel, and None for other images.

    Raises:
        DataError: The file cannot be decoded.
    """
    data = read_bytes(path)
    header = opened(data, path, reading.max_pixels)
    turns = is_turning(header.orientation)
    deep = _deep(data, header, path, reading)
    if deep is None:
        return turns, None
    return turns, (float(deep.array.min()), float(deep.array.max()))


def _deep(data: bytes, header: Opened, path: Path | str, reading: Reading) -> Samples | None:
    """Return the samples of an image of more than 8 bits a channel; None for other images."""
    if reading.channels != 3:
        bands = stored_bands(data, header, path, reading.channels)
        return bands if bands.array.dtype != np.uint8 else None
    deep = deep_samples(data, header, path) if is_deep(header, data) else None
    return None if deep is None else deep._replace(array=without_alpha(deep.array))


def unstated_ranges(paths: Iterable[Path], reading: Reading) -> list[Range | None]:
    """Return `unstated_range` of every image that can be read; nothing where an option states it.

    Args:
        paths: Some images of a dataset.
        reading: The range that the option states, and the largest size of a file.
    """
    ranges: list[Range | None] = []
    for path in paths if reading.image_range is None else ():
        with contextlib.suppress(DataError):  # reported where the image is read
            ranges.append(unstated_range(path, reading))
    return ranges


def require_known_range(ranges: Iterable[Range | None]) -> None:
    """Raise an error for images that would be nearly black without the option `image_range`.

    Args:
        ranges: The result of `unstated_ranges`.

    Raises:
        DataError: Files do not state what white is, and hold less than half of the range that is
            taken then.
    """
    # an image whose file says nothing at all is refused where it is read
    known = [each for each in ranges if each is not None and not math.isnan(each.full)]
    if not known:
        return
    low, high = min(each.low for each in known), max(each.high for each in known)
    full = max(each.full for each in known)
    if high * 2 < full:
        raise DataError(
            f"{len(known)} images hold values of {low:g}..{high:g}, where 0..{full:g} is possible, "
            "and their files do not say which value is white",
            option=f"image_range {_suggested(low, high)}",
        )


def _suggested(low: float, high: float) -> str:
    """Return the range that values most likely have, as an option shows it."""
    if low < 0:
        return f"[{low:g},{high:g}]"
    if high > 1:
        return f"[0,{2 ** max(8, math.ceil(high).bit_length()) - 1}]"
    step = 10.0 ** (math.floor(math.log10(high)) - 1) if high > 0 else 1.0
    return f"[0,{math.ceil(round(high / step, 6)) * step:g}]"


def is_deep(header: Opened, data: bytes) -> bool:
    """Return whether an image file has more than 8 bits a channel."""
    if header.form == "PNG":
        return png_depth(data) > 8
    if header.form == "PPM":
        return header.image is not None and header.image.mode in ("I", "F")
    return header.bits > 8


def _decode_fast(
    data: bytes, path: Path | str, reduce: int, max_pixels: int
) -> NDArray[np.uint8] | None:
    """Decode a JPEG or PNG file with OpenCV, which takes half of Pillow's time.

    Returns:
        The image, or None for a file that the general way must decode or report.
    """
    try:
        header = opened(data, path)
    except DataError:  # raised again by the general way
        return None
    mode = None if header.image is None else header.image.mode
    form = header.form
    if is_turning(header.orientation) or mode not in ("RGB", "L") or form not in ("JPEG", "PNG"):
        return None
    # OpenCV fills the missing part of a JPEG up; Pillow reports a JPEG without its end
    if form == "JPEG" and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        return None
    if form == "PNG" and (png_depth(data) > 8 or header.pages > 1):
        return None
    require_pixels(header.size, max_pixels, path)
    flags = cv2.IMREAD_COLOR_RGB
    if form == "JPEG" and reduce > 1:
        flags = _REDUCED[reduce]
    encoded = np.frombuffer(data, np.uint8)
    try:
        image: Any = cv2.imdecode(encoded, flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:  # of images above OpenCV's own limit
        return None
    if image is not None and flags != cv2.IMREAD_COLOR_RGB:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    decoded: NDArray[np.uint8] | None = image
    return decoded


def image_size(path: Path, channels: int = 3) -> tuple[int, int]:
    """Return height and width of the image that `read_image` returns, without decoding pixels.

    Args:
        path: The file.
        channels: Number of channels of the image.

    Raises:
        DataError: The file is no image.
    """
    data = read_bytes(path)
    header = opened(data, path)
    height, width = header.size if channels == 3 else band_size(data, header, path, channels)
    return (width, height) if 5 <= header.orientation <= 8 else (height, width)  # by a quarter


def is_turned(path: Path) -> bool:
    """Return whether the EXIF orientation of a readable file turns or mirrors the image."""
    return path.suffix != ".mat" and is_turning(opened(read_bytes(path), path).orientation)
