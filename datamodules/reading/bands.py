"""Images with another number of channels than the three of RGB, such as 13 bands of a satellite."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.errors import DataError
from datamodules.reading.samples import (
    Opened,
    Samples,
    deep_samples,
    loaded,
    require_one_page,
    turned,
    undecodable,
)

_COLORS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3, 9: 3}
"""Channels of each colour space of a TIFF, by the value of its tag `PhotometricInterpretation`."""


def require_rgb(header: Opened, path: Path | str) -> None:
    """Raise an error for a TIFF whose further channels would be lost in an RGB image.

    Grey images and transparency are no such channels.

    Raises:
        DataError: The file has channels that are neither a colour nor transparency.
    """
    stored, further = _channels(header)
    if further > 0:
        raise DataError(
            f"image {path} holds {stored} channels, expected the 3 of RGB or 1 of grey values, "
            "with or without transparency",
            option=f"channels {stored}",
        )


def _channels(header: Opened) -> tuple[int, int]:
    """Return the number of a TIFF's channels, and of those that are no colour or transparency."""
    if not header.tags:
        return 0, 0
    colors = _COLORS.get(header.photometric, 3)
    stored = header.samples
    # grey values in three channels are colours that the writer did not name
    shown = 3 if colors == 1 and stored == 3 else min(colors, stored)
    return stored, stored - shown - header.transparencies


def stored_bands(data: bytes, header: Opened, path: Path | str, channels: int) -> Samples:
    """Return all channels that a file stores, turned as its EXIF orientation says.

    Args:
        data: The bytes of the file.
        header: Its header.
        path: Its name, for errors.
        channels: Number of channels that the file must have. A single one may be stored three
            times, as grey images often are, and may come with transparency.

    Returns:
        (H, W, channels) samples, whose `full` is 255 for 8 bits a channel.

    Raises:
        DataError: The file has another number of channels, or cannot be decoded.
    """
    if header.form == "TIFF" and (header.pages > 1 or header.samples > 1):
        samples = _tiff_bands(data, header, path, channels)
    else:
        require_one_page(header, path)
        samples = deep_samples(data, header, path) or _plain(header, path)
    array = samples.array if samples.array.ndim == 3 else samples.array[..., None]
    if channels == 1:
        array = _grey(array, header)
    if array.shape[2] != channels:
        found = array.shape[2]
        raise DataError(
            f"image {path} holds {found} channel{'s' * (found != 1)}, expected {channels}",
            option=f"channels {found}",
        )
    return samples._replace(array=array)


def _plain(header: Opened, path: Path | str) -> Samples:
    """Decode a file of 8 bits a channel."""
    image = loaded(header, path)
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        transparent = image.mode in ("PA", "RGBa") or "transparency" in image.info
        image = image.convert("L" if image.mode == "1" else "RGBA" if transparent else "RGB")
    return Samples(np.asarray(image), 255)


def _grey(array: NDArray[Any], header: Opened) -> NDArray[Any]:
    """Return the single channel of grey values that are stored three times or with transparency."""
    count = array.shape[2]
    if count in (2, 4) and (header.transparencies or header.form != "TIFF"):
        array = array[..., :-1]
    if array.shape[2] == 3 and (array == array[..., :1]).all():
        array = array[..., :1]
    return array


def _tiff_bands(data: bytes, header: Opened, path: Path | str, channels: int) -> Samples:
    """Decode a TIFF of several channels, which are the last axis, the first axis, or pages."""
    tifffile = _tifffile(path)
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            series = file.series[0]
            axes, array = str(series.axes), np.asarray(series.asarray())
    except Exception as error:  # damaged, or compressed in a way that needs another package
        raise undecodable(path, error) from error
    if array.ndim == 2:
        array, axes = array[..., None], f"{axes}S"
    if array.ndim != 3:
        raise DataError(
            f"image {path} holds an array of shape {array.shape}, expected height, width and "
            f"{channels} channels"
        )
    array = array if _has_channels_last(axes, array.shape, channels) else np.moveaxis(array, 0, -1)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if header.orientation > 1:
        array = turned(array, header.orientation)
    full = 255.0 if array.dtype == np.uint8 else header.largest
    return Samples(np.ascontiguousarray(array), full)


def _has_channels_last(axes: str, shape: tuple[int, ...], channels: int) -> bool:
    """Return whether the channels of a TIFF's array are its last axis, and not its first one.

    Args:
        axes: A letter for each axis; `S` is that of the samples of a pixel. Pages have other ones,
            and writers that know no channels make a page of every row.
        shape: The length of each axis.
        channels: Number of channels that are expected.
    """
    if "S" in axes:
        return axes[-1] == "S"
    return shape[0] != channels and shape[-1] == channels


def band_size(data: bytes, header: Opened, path: Path | str, channels: int) -> tuple[int, int]:
    """Return height and width of an image of several bands, before turning, without its pixels.

    Raises:
        DataError: The file is damaged.
    """
    if header.pages == 1:
        return header.size
    tifffile = _tifffile(path)
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            axes, shape = str(file.series[0].axes), tuple(file.series[0].shape)
    except Exception as error:
        raise undecodable(path, error) from error
    if len(shape) != 3:
        return header.size
    return shape[:2] if _has_channels_last(axes, shape, channels) else shape[1:]


def _tifffile(path: Path | str) -> Any:
    try:
        import tifffile  # only images of several bands need it
    except ImportError as error:
        raise DataError(
            f"{path} is a TIFF of several channels, which the packages tifffile and imagecodecs "
            "read: pip install 'lightning-seg[tiff]'"
        ) from error
    return tifffile


def as_fractions(samples: NDArray[Any], black: float, white: float) -> NDArray[np.float32]:
    """Return samples as fractions: 0 for black, 1 for white, and values beyond clipped."""
    scaled = (samples.astype(np.float32) - np.float32(black)) / np.float32(white - black)
    return np.ascontiguousarray(scaled.clip(0, 1))
