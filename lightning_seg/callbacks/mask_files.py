"""Files of masks that are written in strips of rows: palette PNGs, GeoTIFFs, and arrays."""

from __future__ import annotations

import struct
import warnings
import zlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_seg.files import write_whole
from lightning_seg.pictures import palette_picture


class Georeference(NamedTuple):
    """Where on the earth the pixels of an image lie."""

    crs: Any
    """The coordinate reference system; None where the file names none."""
    transform: Any
    """The affine map from columns and rows to coordinates."""


def georeference(path: str | None) -> Georeference | None:
    """Return the georeference of a TIFF file; None without one, and without the package rasterio.

    Args:
        path: The file; None and other kinds of files have no georeference.
    """
    if path is None or Path(path).suffix.lower() not in (".tif", ".tiff"):
        return None
    try:
        import rasterio  # a large package, for georeferences alone
    except ImportError:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        try:
            with rasterio.open(path) as file:
                found = Georeference(file.crs, file.transform)
        except rasterio.errors.RasterioError:  # a rare kind of TIFF
            return None
    return None if found.crs is None and found.transform.is_identity else found


def write_palette_png(path: Path, mask: NDArray[np.uint8], colors: NDArray[np.uint8]) -> None:
    """Write a mask whole, as a PNG that stores class ids and shows their colours.

    Args:
        path: The file to write.
        mask: (H, W) class ids.
        colors: (256, 3) uint8 RGB colours of the class ids.
    """
    with write_whole(path) as part:
        palette_picture(mask, colors).save(part, format="PNG", compress_level=_LEVEL)


_LEVEL = 3
"""Level of the compression of masks: half the time of zlib's default 6, and files of 1.6 times the
size."""


class MaskFile(ABC):
    """A mask that is written from top to bottom.

    Args:
        path: The file to write.
        size: Height and width in pixels.
        colors: (256, 3) uint8 RGB colours of the class ids.
    """

    def __init__(self, path: Path, size: tuple[int, int], colors: NDArray[np.uint8]) -> None:
        self.path, self.size, self.colors = path, size, colors
        self.row = 0

    def add(self, labels: NDArray[np.uint8]) -> None:
        """Write the next rows, (h, W) class ids."""
        self._write(np.ascontiguousarray(labels))
        self.row += len(labels)

    @abstractmethod
    def _write(self, labels: NDArray[np.uint8]) -> None:
        """Write the rows from `row` on."""

    @abstractmethod
    def close(self) -> None:
        """Write the end of the file."""


class PNGMask(MaskFile):
    """A palette PNG, whose stored values are class ids."""

    def __init__(self, path: Path, size: tuple[int, int], colors: NDArray[np.uint8]) -> None:
        super().__init__(path, size, colors)
        self._file = path.open("wb")
        self._packed = zlib.compressobj(6)
        self._file.write(b"\x89PNG\r\n\x1a\n")
        # width, height, 8 bits, palette, the only compression and filters, not interlaced
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", size[1], size[0], 8, 3, 0, 0, 0))
        self._chunk(b"PLTE", colors.tobytes())

    def _write(self, labels: NDArray[np.uint8]) -> None:
        filters = np.zeros((len(labels), 1), np.uint8)  # each row begins with that of its filter
        if data := self._packed.compress(np.hstack([filters, labels]).tobytes()):
            self._chunk(b"IDAT", data)

    def close(self) -> None:
        """Write the rest of the pixels, and the end."""
        self._chunk(b"IDAT", self._packed.flush())
        self._chunk(b"IEND", b"")
        self._file.close()

    def _chunk(self, kind: bytes, data: bytes) -> None:
        checksum = zlib.crc32(kind + data)
        self._file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum))


class GeoTIFFMask(MaskFile):
    """A tiled TIFF with a palette and the georeference of the image; needs the package rasterio."""

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        colors: NDArray[np.uint8],
        place: Georeference,
    ) -> None:
        super().__init__(path, size, colors)
        import rasterio  # a large package, for georeferences alone
        import rasterio.windows

        self._window = rasterio.windows.Window
        kind: dict[str, Any] = {"driver": "GTiff", "dtype": "uint8", "count": 1}
        kind |= {"height": size[0], "width": size[1], "photometric": "palette"}
        kind |= {"compress": "deflate", "bigtiff": "if_safer"}
        if min(size) >= _TILE:
            kind |= {"tiled": True, "blockxsize": _TILE, "blockysize": _TILE}
        self._environment = rasterio.Env(GDAL_CACHEMAX=64)  # MB
        with self._environment:
            self._file = rasterio.open(path, "w", **kind, crs=place.crs, transform=place.transform)
            self._file.write_colormap(
                1, {index: tuple(c) for index, c in enumerate(colors.tolist())}
            )

    def _write(self, labels: NDArray[np.uint8]) -> None:
        window = self._window(0, self.row, self.size[1], len(labels))
        with self._environment:
            self._file.write(labels, 1, window=window)

    def close(self) -> None:
        """Write what is not on the disk yet."""
        with self._environment:
            self._file.close()


_TILE = 256


class ArrayFile:
    """A `.npy` file of (C, H, W) float16 probabilities, which is written from top to bottom.

    Args:
        path: The file to write.
        size: Height and width in pixels.
    """

    def __init__(self, path: Path, size: tuple[int, int]) -> None:
        self.path, self.size, self.row = path, size, 0

    def add(self, values: NDArray[np.float16]) -> None:
        """Write the next rows, (C, h, W)."""
        count, height, width = values.shape
        if self.row == 0:
            shape = (count, self.size[0], width)
            header = {"descr": "<f2", "fortran_order": False, "shape": shape}
            with self.path.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                self._begin = file.tell()
        # no memory map: a full disk would end the process
        with self.path.open("r+b") as file:
            for number, rows in enumerate(values.astype("<f2", copy=False)):
                file.seek(self._begin + 2 * width * (number * self.size[0] + self.row))
                file.write(rows.tobytes())
        self.row += height
