"""The samples that an image file stores, before anything scales or converts them.

Pillow decodes every file, but it returns 8 bits a channel for colours of 16 bits, scales grey
values of 2 or 4 bits and of PNM files, and shows unsigned samples of 32 bits as signed ones. This
module opens a file once, says what it stores, and returns such samples as they are.
"""

from __future__ import annotations

import io
import re
import stat
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from datamodules.errors import DataError

# an error says what is wrong with a file
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

# the limit is `max_pixels`, and its error names the option; Pillow's own one cannot be set per file
Image.MAX_IMAGE_PIXELS = None

MAX_PIXELS = 1_000_000_000
"""Default limit of height x width: 3 GB of memory as RGB."""

_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "DIB", "WEBP", "GIF", "PPM")
_ORIENTATION = 0x0112  # the EXIF tag

# tags of TIFF
_KIND, _WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _CHANNELS = 254, 256, 257, 258, 262, 277
_LARGEST, _EXTRA, _FORMAT, _LARGEST_OF_FORMAT = 281, 338, 339, 341
_NOT_A_PAGE = 1 | 4  # a smaller copy of another page, or its transparency

_SPACE = rb"(?:\s|#[^\n\r]*[\n\r])+"
_PNM = re.compile(rb"P([2356])" + 3 * (_SPACE + rb"(\d+)") + rb"\s")


class Opened(NamedTuple):
    """What the header of an image file says."""

    image: Image.Image | None
    """The file as Pillow opens it; None for a TIFF that only OpenCV reads."""
    form: str
    """Name of the format: `PNG`, `JPEG`, `TIFF` and so on."""
    size: tuple[int, int]
    """(height, width) in pixels, before turning."""
    orientation: int
    """EXIF orientation, 1 to 8."""
    pages: int
    """Number of images in the file."""
    tags: dict[int, Any]
    """Tags of a TIFF's first page; empty for other formats."""

    @property
    def inverted(self) -> bool:
        """Whether a grey TIFF stores white as 0, in more than one bit."""
        return self.tags.get(_PHOTOMETRIC) == 0 and self.bits > 1

    @property
    def bits(self) -> int:
        """Bits per sample of a TIFF; 8 for other formats."""
        return int(np.max(self.tags.get(_BITS, 1 if self.tags else 8)))

    @property
    def samples(self) -> int:
        """Samples per pixel of a TIFF's page; 1 for other formats."""
        return int(np.max(self.tags.get(_CHANNELS, 1)))

    @property
    def photometric(self) -> int:
        """The number of a TIFF's colour space; -1 where it is not stated."""
        return int(np.max(self.tags.get(_PHOTOMETRIC, -1)))

    @property
    def transparencies(self) -> int:
        """Number of a TIFF's samples per pixel that are transparency."""
        return int(np.isin(self.tags.get(_EXTRA, ()), (1, 2)).sum())

    @property
    def largest(self) -> float | None:
        """Largest value that a TIFF says it may hold; None where it does not say."""
        said = self.tags.get(_LARGEST, self.tags.get(_LARGEST_OF_FORMAT))
        largest = float(np.max(said)) if said is not None else 0.0
        if 0 < largest < float(2**self.bits - 1):
            return largest
        unsigned = int(np.max(self.tags.get(_FORMAT, 1))) == 1
        return 2.0**self.bits - 1 if unsigned and self.bits not in (16, 32, 64) else None


class Samples(NamedTuple):
    """Stored samples that are not 8 bits a channel."""

    array: NDArray[Any]
    """(H, W), or (H, W, C) in the order of RGB and alpha."""
    full: float | None
    """Largest value that the file says it may hold; None where it does not say."""


def read_bytes(path: Path) -> bytes:
    """Return the content of a file.

    Raises:
        DataError: The path is missing, or a named pipe, a socket or a device, which might never
            end.
    """
    try:
        kind = path.stat().st_mode
        if not stat.S_ISREG(kind):
            raise DataError(f"{path} is {_KINDS.get(stat.S_IFMT(kind), 'no file')}, not a file")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def opened(data: bytes, path: Path | str, max_pixels: int | None = None) -> Opened:
    """Read the header of an image file.

    Args:
        data: The bytes of the file.
        path: Name of the file, for errors.
        max_pixels: Largest height x width; None accepts any size.

    Raises:
        DataError: The file is no image, or larger than `max_pixels`.
    """
    try:
        tags, pages = tiff_tags(io.BytesIO(data), len(data))
    except Exception as error:  # of a damaged file
        raise undecodable(path, error) from error
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, struct.error, ...
        if not (tags and _WIDTH in tags and _HEIGHT in tags):
            raise undecodable(path, error) from error
        size = (int(tags[_HEIGHT]), int(tags[_WIDTH]))
        result = Opened(None, "TIFF", size, int(tags.get(_ORIENTATION, 1)), pages, tags)
    else:
        form = image.format or ""
        # the other pictures of a phone's MPO file are its depth or a small copy
        frames = pages or (1 if form in ("JPEG", "MPO") else getattr(image, "n_frames", 1))
        size = (int(tags[_HEIGHT]), int(tags[_WIDTH])) if tags else image.size[::-1]
        result = Opened(image, form, size, _orientation(image, data), frames, tags)
    if max_pixels is not None:
        require_pixels(result.size, max_pixels, path)
    return result


def require_pixels(size: tuple[int, int], max_pixels: int, path: Path | str) -> None:
    """Raise an error for an image of more than `max_pixels` pixels."""
    if (pixels := size[0] * size[1]) > max_pixels:
        raise DataError(
            f"{path} is {size[1]}x{size[0]} pixels (width x height), {pixels} in all, more than "
            f"the limit of {max_pixels}",
            option=f"max_pixels {pixels}",
        )


def require_samples(header: Opened, channels: int, max_pixels: int, path: Path | str) -> None:
    """Raise an error for a file whose pages and samples together exceed the limit of its size.

    A compressed file of a few bytes may hold many large pages, which are decoded together.
    """
    size, pages, samples = header.size, header.pages, header.samples
    # grey values may be stored three times, and with transparency
    if size[0] * size[1] * pages * samples > max_pixels * max(channels, 4):
        raise DataError(
            f"{path} holds {pages * samples} samples in each of {size[1]}x{size[0]} pixels (width "
            f"x height), more than the limit of {max_pixels} pixels of {channels} channels",
            option="max_pixels",
        )


def require_one_page(header: Opened, path: Path | str) -> None:
    """Raise an error for a file of several images."""
    if header.pages > 1:
        bands = header.form == "TIFF"
        raise DataError(
            f"{path} holds {header.pages} pages or frames, expected one image; save them as files "
            "of one image each" + ", unless each page is a channel" * bands,
            option=f"channels {header.pages}" if bands else (),
        )


def undecodable(path: Path | str, error: Exception) -> DataError:
    """Return the error for a file that no decoder can read."""
    reason = "no known format" if isinstance(error, UnidentifiedImageError) else error
    return DataError(f"{path} cannot be read as an image: {reason}")


def deep_samples(data: bytes, header: Opened, path: Path | str) -> Samples | None:
    """Return the samples of a file that Pillow would scale, cut or fail to open, turned by EXIF.

    Args:
        data: The bytes of the file.
        header: Its header.
        path: Its name, for errors.

    Returns:
        The samples; None for a file whose samples Pillow returns as they are.

    Raises:
        DataError: The file is damaged, or no decoder reads its samples.
    """
    if header.form == "PPM":
        return _pnm(data, path)
    if header.form == "PNG":
        return _png(data, header, path)
    return _tiff_samples(data, header, path) if header.tags else None


def loaded(header: Opened, path: Path | str) -> Image.Image:
    """Decode the pixels of an opened file with Pillow, turned as its EXIF orientation says.

    Raises:
        DataError: The file cannot be decoded to its end.
    """
    assert header.image is not None
    try:
        header.image.load()
    except Exception as error:  # Pillow's decoders raise OSError, ValueError, struct.error, ...
        raise undecodable(path, error) from error
    # Pillow turns a TIFF by itself, and then finds no orientation
    return ImageOps.exif_transpose(header.image) if header.orientation > 1 else header.image


def turned(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Return samples (H, W) or (H, W, C) turned as an EXIF orientation says."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array


def png_depth(data: bytes) -> int:
    """Return the bits per sample of a PNG file."""
    return data[24]


def _png(data: bytes, header: Opened, path: Path | str) -> Samples | None:
    depth, color_type = png_depth(data), data[25]
    if depth in (2, 4) and color_type == 0:
        # Pillow multiplies the samples by 85 or 17
        grey = np.asarray(loaded(header, path).convert("L")) // (255 // (2**depth - 1))
        return Samples(grey, 2**depth - 1)
    if depth < 16:
        return None
    return Samples(turned(_by_opencv(data, path), header.orientation), None)


def _pnm(data: bytes, path: Path | str) -> Samples | None:
    """Parse a PGM or PPM file, whose samples Pillow scales to 8 or 16 bits."""
    header = _PNM.match(data)
    if header is None:
        return None  # a bitmap
    kind, width, height, largest = map(int, header.groups())
    channels = 3 if kind in (3, 6) else 1
    count = height * width * channels
    if not 0 < largest < 1 << 16:
        raise DataError(f"{path} cannot be read as an image: its largest value is {largest}")
    try:
        if kind in (2, 3):
            words = re.sub(rb"#[^\n\r]*", b"", data[header.end() :]).split()
            values, size = np.array([int(word) for word in words], np.uint16), len(words)
        else:
            dtype = np.dtype(np.uint8 if largest < 256 else ">u2")
            size = (len(data) - header.end()) // dtype.itemsize
            values = np.frombuffer(data, dtype, min(size, count), header.end())
            rest = data[header.end() + count * dtype.itemsize :]
            if _PNM.match(rest.lstrip()):
                raise DataError(f"{path} holds several images, expected one")
    except (ValueError, OverflowError) as error:
        raise undecodable(path, error) from error
    if size < count or (kind in (2, 3) and size > count):
        raise DataError(f"{path} cannot be read as an image: {size} samples instead of {count}")
    if largest == 255:
        return None
    values = values.astype(np.uint8 if largest < 256 else np.uint16, copy=False)
    shape = (height, width, channels) if channels > 1 else (height, width)
    # writers that know no other maximum take 65535
    return Samples(values.reshape(shape), None if largest == 65535 else largest)


def tiff_tags(file: BinaryIO, length: int) -> tuple[dict[int, Any], int]:
    """Return the tags of a TIFF's first page and the number of pages; of other files nothing and 0.

    Args:
        file: The file at its beginning.
        length: Its length in bytes.
    """
    head = file.read(16)
    if head[:2] not in (b"II", b"MM"):
        return {}, 0
    big = head[2:4] in (b"\x2b\x00", b"\x00\x2b")
    directory = TiffImagePlugin.ImageFileDirectory_v2(head[: 16 if big else 8])
    first: dict[int, Any] = {}
    seen: set[int] = set()
    pages = 0
    while directory.next and directory.next not in seen and directory.next < length:
        seen.add(directory.next)
        file.seek(directory.next)
        directory.load(file)
        tags = {tag: directory.get(tag) for tag in _TAGS if tag in directory}
        first = first or tags
        pages += not int(tags.get(_KIND) or 0) & _NOT_A_PAGE
    return first, max(1, pages)


_TAGS = (
    *(_KIND, _WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _CHANNELS, _ORIENTATION),
    *(_LARGEST, _EXTRA, _FORMAT, _LARGEST_OF_FORMAT),
)


def _tiff_samples(data: bytes, header: Opened, path: Path | str) -> Samples | None:
    tags, bits = header.tags, header.bits
    form = int(np.max(tags.get(_FORMAT, 1)))  # 1 unsigned, 2 signed, 3 floating point
    channels = int(tags.get(_CHANNELS, 1))
    if header.image is not None and bits in (1, 8) and form == 1:
        return None
    if bits in (2, 4):
        if header.image is None or header.image.mode == "P":
            return None
        step = 255 // (2**bits - 1)
        return Samples(np.asarray(loaded(header, path)) // step, 2**bits - 1)
    # both decoders turn a TIFF as its tag says
    if header.image is None or channels > 1:
        array = _by_opencv(data, path)
    else:
        array = np.asarray(loaded(header, path))
        if form == 2 and bits == 8:
            array = array.view(np.int8)
        elif form == 1 and bits == 32:
            array = array.astype("=i4").view(np.uint32)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return Samples(array, header.largest)


def _by_opencv(data: bytes, path: Path | str) -> NDArray[Any]:
    """Decode a file whose samples Pillow would cut to 8 bits."""
    flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        array = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise undecodable(path, error) from error
    if array is None:
        raise DataError(f"{path} cannot be read as an image: it is damaged, or of a rare kind")
    if array.ndim == 2:
        return array
    # (H, W, BGR) or (H, W, BGRA) -> RGB first
    order = [2, 1, 0, *range(3, array.shape[2])] if array.shape[2] > 2 else [0, 1]
    return np.ascontiguousarray(array[..., order])


def _orientation(image: Image.Image, data: bytes) -> int:
    """Return an opened image's EXIF orientation, 1 to 8."""
    # Pillow would decode a whole PNG to look for EXIF after its pixels
    if image.format == "PNG" and b"eXIf" not in data and b"Raw profile" not in data:
        return 1
    return int(image.getexif().get(_ORIENTATION, 1))


def is_turning(orientation: int) -> bool:
    """Return whether an EXIF orientation turns or mirrors an image."""
    return 2 <= orientation <= 8
