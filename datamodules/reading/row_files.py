"""Image files that are read some rows at a time, for images that are larger than the memory."""

from __future__ import annotations

import contextlib
import stat
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin
from torch import Tensor

from datamodules.reading.bands import as_fractions, require_rgb
from datamodules.reading.decoding import Reading, read_image, to_bytes, value_range
from datamodules.reading.samples import (
    Opened,
    Samples,
    require_pixels,
    tiff_tags,
    undecodable,
)

SMALL_PIXELS = 4_000_000
"""Largest number of pixels of the small copy that a `RowFile` keeps."""

_ORIENTATION, _HEIGHT, _WIDTH = 0x0112, 257, 256  # tags
_AT_ONCE = 256  # rows that are read at once to find the range of values
_CACHE = 64  # MB that GDAL keeps
_NO_COLORS = (3, 5)  # photometric numbers of TIFFs: a palette, CMYK


class Header(NamedTuple):
    """What is known of a file from its first bytes and its tags."""

    opened: Opened
    """Format, size, orientation, pages and tags."""
    mode: str
    """Pillow's name of a JPEG's or PNG's kind of pixels; empty for a TIFF."""
    subsampled: bool = False
    """Whether a JPEG stores colours at a part of its size, which decoders enlarge differently."""


def header_of(path: Path) -> Header | None:
    """Read the header of a JPEG, PNG or TIFF file, without the rest of the file.

    Returns:
        The header; None for every other file, and for one that is missing or damaged.
    """
    with contextlib.suppress(Exception):  # Pillow raises many; reading the image says what is wrong
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            return None
        with path.open("rb") as file:
            tags, pages = tiff_tags(file, state.st_size)
        if tags:
            size = (int(tags[_HEIGHT]), int(tags[_WIDTH]))
            turned = int(tags.get(_ORIENTATION, 1))
            return Header(Opened(None, "TIFF", size, turned, pages, tags), "")
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            form, mode, size = str(image.format), image.mode, image.size[::-1]
            if form == "JPEG":
                turned = int(image.getexif().get(_ORIENTATION, 1))
                subsampled = mode != "L" and JpegImagePlugin.get_sampling(image) != 0
            else:
                turned, subsampled = int(_is_complete_png(path)), False
        return Header(Opened(None, form, size, turned, 1, {}), mode, subsampled)
    return None


def _is_complete_png(path: Path) -> bool:
    """Return whether a PNG file has its end, and no chunks that may turn the image."""
    length = path.stat().st_size
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            if head[4:] in (b"eXIf", b"zTXt", b"tEXt", b"acTL"):
                return False
            if head[4:] == b"IEND":
                return file.tell() + 4 <= length
            file.seek(int.from_bytes(head[:4], "big") + 4, 1)
    return False


class RowFile:
    """An image file of which some rows are in memory at a time.

    TIFF, PNG, and JPEG files whose colours are stored at full size are read by the package rasterio
    (extra `geo`). Where it is missing, and for all other files, such as those that EXIF data turn
    or that have a palette, the image is decoded whole, to as many bytes as `read_image` returns.
    Rows are the pixels that `read_image` returns, except for TIFF files that hold JPEG data with
    colours at a part of the size, which the two decoders enlarge differently.

    Args:
        path: The file.
        reading: Range of deep images, and number of channels.

    Attributes:
        size: Height and width in pixels.
        small: (h, w, channels) every n-th pixel of every n-th row that was read, of at most 4
            million pixels.
        step: That n.
    """

    def __init__(self, path: Path, header: Header, reading: Reading) -> None:
        self.path = path
        self.header = header
        self.reading = reading
        height, width = header.opened.size
        quarter = header.opened.orientation in (5, 6, 7, 8)
        self.size = (width, height) if quarter else (height, width)
        self.step = max(1, int(np.ceil(np.sqrt(height * width / SMALL_PIXELS))))
        self._source: _Whole | _ByRows | None = None
        self._kept: NDArray[Any] | None = None  # the rows from `_top` on
        self._top = 0
        self._small: list[NDArray[Any]] = []

    @property
    def small(self) -> NDArray[Any]:
        """(h, w, channels) every n-th pixel of every n-th row that was read."""
        return np.concatenate(self._small)

    def rows(self, top: int, bottom: int) -> Tensor:
        """Return the (channels, bottom - top, W) pixels of some rows.

        Args:
            top: The first row, not below that of an earlier call.
            bottom: The row after the last one.

        Raises:
            DataError: The file is damaged, or the range of its values is not known.
        """
        if self._source is None:
            self._source = _opened(self.path, self.header, self.reading)
        kept = self._kept
        begin = self._top + (0 if kept is None else len(kept))
        if bottom > begin:
            new = self._source.read(begin, bottom)
            self._small.append(new[-begin % self.step :: self.step, :: self.step].copy())
            old = [] if kept is None else [kept[max(0, top - self._top) :]]
            kept = np.concatenate([*old, new])
            self._top = bottom - len(kept)
        assert kept is not None
        self._kept = kept = kept[top - self._top :]
        self._top = top
        part = np.ascontiguousarray(kept[: bottom - top].transpose(2, 0, 1))
        return torch.from_numpy(part)

    def close(self) -> None:
        """Close the file, and forget its rows."""
        if self._source is not None:
            self._source.close()
        self._source, self._kept = None, None


class _Whole:
    """An image that is decoded whole."""

    def __init__(self, image: NDArray[Any]) -> None:
        self.image = image

    def read(self, top: int, bottom: int) -> NDArray[Any]:
        return self.image[top:bottom]

    def close(self) -> None:
        self.image = self.image[:0]


class _ByRows:
    """An image that GDAL reads by rows."""

    def __init__(self, path: Path, header: Header, reading: Reading, rasterio: Any) -> None:
        self.path, self.reading, self.rasterio = path, reading, rasterio
        self._environment = rasterio.Env(GDAL_CACHEMAX=_CACHE, GDAL_ERROR_ON_LIBJPEG_WARNING=True)
        self._file = self._within(_open, rasterio, path)
        self.deep = self._file.dtypes[0] != "uint8"
        tags = header.opened.tags
        self.full = header.opened.largest if tags else None
        self.range: tuple[float, float] | None = self._range(header.opened) if self.deep else None

    def _within(self, function: Any, *args: Any) -> Any:
        try:
            with self._environment:
                return function(*args)
        except self.rasterio.errors.RasterioError as error:
            raise undecodable(self.path, error) from error

    def _raw(self, top: int, bottom: int) -> NDArray[Any]:
        """Return the (bottom - top, W, bands) samples of some rows, without transparency."""
        window = self.rasterio.windows.Window(0, top, self._file.width, bottom - top)
        bands: NDArray[Any] = self._within(lambda: self._file.read(window=window))
        array = bands.transpose(1, 2, 0)
        if self.reading.channels != 3:
            return array
        return array[..., :3] if array.shape[2] > 2 else array[..., :1]

    def _range(self, header: Opened) -> tuple[float, float]:
        if self.reading.image_range is None and self.full is None:
            every = range(0, self._file.height, _AT_ONCE)
            parts = (self._raw(top, min(top + _AT_ONCE, self._file.height)) for top in every)
            ends = [end for part in parts for end in (part.min(), part.max())]
        else:
            ends = [np.zeros((), self._file.dtypes[0])[()]]
        values = np.array([np.min(ends), np.max(ends)])
        return value_range(values, Samples(values, self.full), self.path, self.reading)

    def read(self, top: int, bottom: int) -> NDArray[Any]:
        raw = self._raw(top, bottom)
        if self.range is not None and self.reading.channels != 3:
            return as_fractions(raw, *self.range)
        image = raw if self.range is None else to_bytes(raw, *self.range)
        if self.reading.channels == 3 and image.shape[2] == 1:
            return image.repeat(3, axis=2)
        return image

    def close(self) -> None:
        self._file.close()


def _opened(path: Path, header: Header, reading: Reading) -> _Whole | _ByRows:
    if _is_plain(path, header, reading) and (rasterio := _rasterio()) is not None:
        return _ByRows(path, header, reading, rasterio)
    return _Whole(read_image(path, reading=reading))


def _is_plain(path: Path, header: Header, reading: Reading) -> bool:
    """Return whether rows of a file are the pixels that `read_image` returns."""
    opened, tags = header.opened, header.opened.tags
    if opened.orientation != 1 or opened.pages != 1 or header.subsampled:
        return False
    if not tags:
        return reading.channels == 3 and header.mode in ("RGB", "L", "RGBA", "LA")
    if opened.inverted or opened.photometric in _NO_COLORS or opened.bits < 8:
        return False
    if reading.channels != 3:
        return opened.samples == reading.channels
    require_rgb(opened, path)
    return True


def _rasterio() -> Any | None:
    try:
        import rasterio  # a large package, for large images and georeferences
        import rasterio.windows
    except ImportError:
        return None
    return rasterio


def _open(rasterio: Any, path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        return rasterio.open(path)


def large_file(path: Path, above: int, reading: Reading) -> RowFile | None:
    """Return a file that is to be read by rows; None for one that is to be read whole.

    Args:
        path: The file.
        above: Number of pixels above which a file is read by rows.
        reading: Range of deep images, largest size, and number of channels.

    Raises:
        DataError: The image is larger than `reading.max_pixels`.
    """
    header = header_of(path)
    if header is None or header.opened.size[0] * header.opened.size[1] <= above:
        return None
    require_pixels(header.opened.size, reading.max_pixels, path)
    return RowFile(path, header, reading)


def read_whole(paths: Sequence[Path], above: int | None) -> list[Path]:
    """Return the files of at most `above` pixels, and all files for None."""
    if above is None:
        return list(paths)
    headers = ((path, header_of(path)) for path in paths)
    sizes = [(path, header.opened.size if header else (0, 0)) for path, header in headers]
    return [path for path, (height, width) in sizes if height * width <= above]
