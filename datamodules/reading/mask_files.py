"""Reading the stored values or colours of mask files, which are never scaled or converted."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.errors import DataError
from datamodules.reading.decoding import Reading, decode_image, without_alpha
from datamodules.reading.samples import (
    MAX_PIXELS,
    Opened,
    deep_samples,
    loaded,
    opened,
    read_bytes,
    require_one_page,
)

_MODES = ("1", "L", "P", "LA", "PA", "RGB", "RGBA")


def read_mask(
    path: Path, as_color: bool = False, max_pixels: int = MAX_PIXELS
) -> NDArray[np.integer]:
    """Read the stored values of a mask: palette indices, grey values or colours.

    Args:
        path: The mask file. A `.mat` file is read as SBD's `GTcls.Segmentation`.
        as_color: True returns the colours of a palette instead of its indices.
        max_pixels: Largest height x width.

    Returns:
        (H, W) values of any integer type, or (H, W, 3) uint8 where the file holds colours or
        `as_color` is True. Three equal channels are returned as one. Values are never scaled.

    Raises:
        DataError: The file cannot be decoded to its end, is too large, holds several images or
            fractional values, or stores samples that would have to be converted.
    """
    if path.suffix == ".mat":
        return _read_mat(path)
    data = read_bytes(path)
    header = opened(data, path, max_pixels)
    require_one_page(header, path)
    _require_plain(header, data, path)
    deep = deep_samples(data, header, path)
    if deep is not None:
        values = _whole(without_alpha(deep.array), path)
        # few grey levels have the colours that viewers show
        level = 255 // int(deep.full) if deep.full is not None and deep.full < 255 else 1
        return _as_color(values * np.uint8(level), path) if as_color else _one(values)
    if header.form == "PNG" and header.image is not None and header.image.mode == "RGB":
        # in a third of Pillow's time
        color = decode_image(data, path, reading=Reading(max_pixels=max_pixels))
        return color if as_color else _one(color)
    image = loaded(header, path)
    if as_color:
        return _palette(image) if image.mode in ("P", "PA") else np.array(image.convert("RGB"))
    array = np.asarray(image)
    if image.mode == "1":
        return array.astype(np.uint8)
    if header.form == "GIF" and image.mode == "P":
        # writers of GIF number the colours anew, so that grey values are the stored values
        used = _palette(image)
        return used[..., 0] if (used == used[..., :1]).all() else np.array(array)
    return array if array.ndim == 2 else _one(without_alpha(array))


def _require_plain(header: Opened, data: bytes, path: Path) -> None:
    """Raise an error for a mask whose samples cannot be read without converting them."""
    mode = "I" if header.image is None else header.image.mode
    reason = None
    if header.inverted:
        reason = "is a TIFF that stores white as 0, so that readers differ in its values"
    elif header.form == "PPM" and data[:2] in (b"P1", b"P4"):
        reason = "is a bitmap that stores black as 1, so that readers differ in its values"
    elif header.form in ("BMP", "DIB") and data[28:30] == b"\x10\x00":
        reason = "is a BMP of 16 bits a pixel, whose values readers scale"
    elif mode not in _MODES and mode[0] not in "IF":
        reason = f"holds {mode} samples, which have no exact values as grey or RGB"
    if reason is not None:
        raise DataError(f"mask {path} {reason}; save it as PNG with one value per pixel")


def _whole(values: NDArray[Any], path: Path) -> NDArray[np.integer]:
    """Return whole numbers stored as floating point as integers."""
    if values.dtype.kind != "f":
        return values
    if not np.isfinite(values).all():
        raise DataError(f"mask {path} holds NaN or infinity; expected whole class ids")
    if (values != values.round()).any():
        raise DataError(f"mask {path} holds fractional values; expected whole class ids")
    if np.abs(values).max() > 2**53:
        raise DataError(
            f"mask {path} holds values {values.min():g}..{values.max():g}; expected class ids"
        )
    return values.astype(np.int64)


def _one(values: NDArray[np.integer]) -> NDArray[np.integer]:
    """Return three equal channels as one, and other values as they are."""
    if values.ndim == 2 or not (values == values[..., :1]).all():
        return values
    return np.ascontiguousarray(values[..., 0])


def _as_color(values: NDArray[np.integer], path: Path) -> NDArray[np.uint8]:
    """Return grey values, or colours of 16 bits, as colours of 8 bits."""
    if values.dtype == np.uint16 and values.max() > 255 and not (values % 257).any():
        values = values // 257  # 8 bits in the full range of 16 bits
    if values.min() < 0 or values.max() > 255:
        raise DataError(
            f"mask {path} holds values {values.min()}..{values.max()}; expected colours of 8 bits "
            "a channel"
        )
    color = values.astype(np.uint8)
    return color if color.ndim == 3 else color[..., None].repeat(3, axis=2)


def _palette(image: Image.Image) -> NDArray[np.uint8]:
    """Return the colours of a palette image; indices without a colour are black."""
    colors = np.zeros((256, 3), np.uint8)
    listed = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    colors[: len(listed)] = listed
    shown: NDArray[np.uint8] = colors[without_alpha(np.asarray(image))]
    return shown


def _read_mat(path: Path) -> NDArray[np.integer]:
    """Read a mask of SBD, the Semantic Boundaries Dataset."""
    from scipy.io import loadmat  # imported here, because few runs need it

    data = read_bytes(path)
    try:
        content = loadmat(io.BytesIO(data), squeeze_me=True, struct_as_record=False)
        labels = content["GTcls"].Segmentation
    except Exception as error:
        raise DataError(f"{path} cannot be read as SBD's GTcls.Segmentation: {error}") from error
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{path} holds {labels.dtype} of shape {labels.shape}, expected class ids")
    return np.asarray(labels)
