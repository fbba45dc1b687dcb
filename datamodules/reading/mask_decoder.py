"""Decoding the values or colours that a mask file stores into class ids and void."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.errors import DataError, some

VOID = 255
"""Class id of pixels that count neither in a loss nor in a metric."""

MAX_CLASSES = 255
UnknownValues = Literal["error", "void", "nearest"]
_UNKNOWN = -1


class MaskDecoder:
    """Maps the stored values of a mask to class ids 0..C-1, and void to 255.

    Args:
        values: Stored value of every class in class order, in 0..65535, for index or grey masks.
        colors: RGB colour of every class in class order, in 0..255, for colour-coded masks. Exactly
            one of `values` and `colors` must be given.
        void: Stored values, or RGB colours, that mean "not labelled".
        unknown_values: Effect of any other value: `error` raises an error, `void` makes the pixel
            void, `nearest` takes the nearest known value or colour, for masks saved as JPEG.
        fixed: True where the dataset defines its classes, so that errors name no options for them.

    Attributes:
        as_color: True where masks must be read as colours.

    Raises:
        DataError: There are too many classes, or two of them share a value or colour.
    """

    def __init__(
        self,
        values: Sequence[int] | None = None,
        colors: Sequence[Sequence[int]] | None = None,
        void: Sequence[int] | Sequence[Sequence[int]] = (),
        unknown_values: UnknownValues = "error",
        fixed: bool = False,
    ) -> None:
        if (values is None) == (colors is None):
            raise ValueError("give either values or colors")
        self.as_color = colors is not None
        self.unknown_values = unknown_values
        self.fixed = fixed
        codes = [_code(each) for each in (values if values is not None else colors or ())]
        void_codes = [_code(each) for each in void]
        if not 1 <= len(codes) <= MAX_CLASSES:
            raise DataError(f"there are {len(codes)} classes, expected 1 to {MAX_CLASSES}")
        if len(set(codes + void_codes)) < len(codes) + len(set(void_codes)):
            raise DataError(
                "two classes, or a class and void, share a value or colour in the masks",
                option=("mask_values", "color_map", "void"),
            )
        if not self.as_color and not all(0 <= code < 1 << 16 for code in codes + void_codes):
            raise DataError("mask values must be in 0..65535", option=("mask_values", "void"))
        self._table = np.full(1 << 24 if self.as_color else 1 << 16, _UNKNOWN, np.int16)
        self._table[void_codes] = VOID
        self._table[codes] = np.arange(len(codes))
        # a second table of the first 256 values, for masks of one byte a pixel
        self._byte_table = self._table[:256].astype(np.uint8)
        self._byte_unknown = (self._table[:256] == _UNKNOWN).astype(np.uint8)
        self._known = np.array(codes + void_codes)
        self._expected = f"{some([self._name(code) for code in codes], 12)}" + (
            f" or void {some([self._name(code) for code in void_codes])}" if void_codes else ""
        )

    def __call__(self, stored: NDArray[np.integer], path: Path | str) -> NDArray[np.uint8]:
        """Decode one mask.

        Args:
            stored: (H, W) values, or (H, W, 3) uint8 colours where `as_color` is True.
            path: Name of the mask, for errors.

        Returns:
            (H, W) uint8 class ids, void as 255.

        Raises:
            DataError: The mask holds colours instead of values, or a value that is no class.
        """
        if stored.ndim == 3 and not self.as_color:
            hint = ". Name the colours in a file with a line `name,r,g,b` per class"
            raise DataError(
                f"mask {path} is colour-coded (RGB), expected one value per pixel: "
                f"{self._expected}{'' if self.fixed else hint}",
                option=() if self.fixed else "color_map FILE",
            )
        # the usual case, (H, W) uint8 of known values, by two table look-ups
        if stored.ndim == 2 and stored.dtype == np.uint8 and not self.as_color:
            stored = np.ascontiguousarray(stored)
            if not cv2.LUT(stored, self._byte_unknown).any():
                return cv2.LUT(stored, self._byte_table).astype(np.uint8, copy=False)
        # (H, W) values, or (H, W, 3) colours -> (H, W) codes
        codes = stored if stored.ndim == 2 else stored.astype(np.int32) @ (1 << 16, 1 << 8, 1)
        if codes.min() < 0 or codes.max() >= len(self._table):
            raise DataError(
                f"mask {path} holds values {codes.min()}..{codes.max()}, expected {self._expected}"
            )
        # (H, W) codes -> (H, W) class ids, -1 where unknown
        ids: NDArray[np.int16] = self._table[codes]
        unknown = ids == _UNKNOWN
        if unknown.any():
            if self.unknown_values == "error":
                raise self._unknown(codes, unknown, path)
            ids[unknown] = VOID if self.unknown_values == "void" else self._nearest(codes[unknown])
        return ids.astype(np.uint8)

    @property
    def fingerprint(self) -> str:
        """A text that differs between decoders that decode the same file differently."""
        settings = f"{self.as_color} {self.unknown_values} {self._known.tolist()}".encode()
        return sha256(settings + self._table[self._known].tobytes()).hexdigest()

    def _nearest(self, codes: NDArray[np.integer]) -> NDArray[np.int16]:
        """Return the class ids (n,) of the known values or colours nearest to codes (n,)."""
        values, where = np.unique(codes, return_inverse=True)
        # (values, 1, channels) - (known, channels) -> (values, known, channels)
        distance = self._channels(values)[:, None] - self._channels(self._known)
        nearest = self._known[np.square(distance).sum(-1).argmin(1)]
        ids: NDArray[np.int16] = self._table[nearest][where]
        return ids

    def _channels(self, codes: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return codes (n,) as colours (n, 3), or as values (n, 1)."""
        shifts, largest = ((16, 8, 0), 255) if self.as_color else ((0,), 65535)
        return np.stack([codes.astype(np.int64) >> shift & largest for shift in shifts], axis=-1)

    def _unknown(
        self, codes: NDArray[np.integer], unknown: NDArray[np.bool_], path: object
    ) -> DataError:
        """Return the error for a mask with unknown values: their names, place and number."""
        values, counts = np.unique(codes[unknown], return_counts=True)
        row, column = np.argwhere(unknown)[0]
        names = some([self._name(int(value)) for value in values])
        message = (
            f"mask {path} holds {names}, first at row {row}, column {column}, "
            f"{counts.sum()} of {codes.size} pixels; expected {self._expected}"
        )
        if self.fixed:
            return DataError(message)
        options = ("color_map",) if self.as_color else ("num_classes", "mask_values")
        return DataError(
            f"{message}. Unknown values can be left out as void or rounded to the nearest one",
            option=(*options, "void", "unknown_values void", "unknown_values nearest"),
        )

    def _name(self, code: int) -> str:
        """Return a code as a message shows it: `7`, or `(1, 2, 3)` for a colour."""
        if not self.as_color:
            return str(code)
        return f"({code >> 16}, {code >> 8 & 255}, {code & 255})"


def _code(value: int | Sequence[int]) -> int:
    """Return a value, or the 24 bits of an RGB colour."""
    if isinstance(value, int):
        return value
    if len(value) != 3 or not all(0 <= channel <= 255 for channel in value):
        raise DataError(f"a colour is three numbers in 0..255, not {list(value)}")
    red, green, blue = value
    return red << 16 | green << 8 | blue


def read_color_map(source: str | Path | Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Return RGB colours by class name, in the order of a mapping or a file.

    Args:
        source: Mapping of names to three numbers in 0..255, or the path of a file: `.csv` or
            `.txt` with a line `name,r,g,b` per class after an optional header, or `.json` or
            `.yaml` with such a mapping.

    Raises:
        DataError: The file is missing, a name comes twice, or a colour is not three numbers in
            0..255.
    """
    if isinstance(source, Mapping):
        return {str(name): _rgb(name, color, "color_map") for name, color in source.items()}
    path = Path(source)
    if not path.is_file():
        raise DataError(f"colour map {path} does not exist", option="color_map")
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix in (".json", ".yaml", ".yml"):
        import yaml

        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        if not isinstance(content, Mapping):
            raise DataError(
                f"colour map {path} must map class names to [r, g, b]", option="color_map"
            )
        return {str(name): _rgb(name, color, path) for name, color in content.items()}
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if any(row)]
    if rows and not any(cell.isdigit() for cell in rows[0]):
        rows = rows[1:]
    if twice := [name for name, times in Counter(row[0] for row in rows).items() if times > 1]:
        raise DataError(f"colour map {path} names {some(twice)} more than once", option="color_map")
    return {row[0]: _rgb(row[0], row[1:], path) for row in rows}


def _rgb(name: object, color: object, origin: object) -> tuple[int, ...]:
    """Return a colour as three numbers, or raise an error that names class and origin."""
    try:
        channels = tuple(int(channel) for channel in color)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        channels = ()
    if len(channels) != 3 or not all(0 <= channel <= 255 for channel in channels):
        raise DataError(
            f"{origin}: colour of {name!r} must be three numbers in 0..255, not {color}",
            option="color_map",
        )
    return channels
