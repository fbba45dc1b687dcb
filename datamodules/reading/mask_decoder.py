"""Decoding the values or colours that a mask file stores into class ids and void."""

from __future__ import annotations

from collections.abc import Sequence
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
        values: Stored value of every class in class order, any integer, for index or grey masks.
        colors: RGB colour of every class in class order, in 0..255, for colour-coded masks. Exactly
            one of `values` and `colors` must be given.
        void: Stored values, or RGB colours, that mean "not labelled".
        unknown_values: Effect of any other value: `error` raises an error, `void` makes the pixel
            void, `nearest` takes the nearest known value or colour, for masks saved as JPEG.
        fixed: True where the dataset defines its classes, so that errors name no options for them.
        assumed_void: True where nobody said that 255 means void. A mask that holds 0 and 255 and no
            other value is then an error, because 255 may as well be its foreground.

    Attributes:
        as_color: True where masks must be read as colours.

    Raises:
        DataError: There are too few or too many classes, or two of them share a value or colour.
    """

    def __init__(
        self,
        values: Sequence[int] | None = None,
        colors: Sequence[Sequence[int]] | None = None,
        void: Sequence[int] | Sequence[Sequence[int]] = (),
        unknown_values: UnknownValues = "error",
        fixed: bool = False,
        assumed_void: bool = False,
    ) -> None:
        if (values is None) == (colors is None):
            raise ValueError("give either values or colors")
        self.as_color = colors is not None
        self.unknown_values = unknown_values
        self.fixed = fixed
        self.assumed_void = assumed_void
        codes = [_code(each) for each in (values if values is not None else colors or ())]
        void_codes = [_code(each) for each in void]
        if not 2 <= len(codes) <= MAX_CLASSES:
            raise DataError(
                f"there {'is 1 class' if len(codes) == 1 else f'are {len(codes)} classes'}, "
                f"expected 2 to {MAX_CLASSES}; what is not the object is a class too: masks of 0 "
                "and 1 have 2 classes",
                option=("num_classes 2", "mask_values [0,255]", "color_map"),
            )
        if len(set(codes + void_codes)) < len(codes) + len(set(void_codes)):
            raise DataError(
                "two classes, or a class and void, share a value or colour in the masks",
                option=("mask_values", "color_map", "void"),
            )
        if not all(-(2**63) <= code < 2**63 for code in codes + void_codes):
            raise DataError(
                "mask values must be integers of 64 bits", option=("mask_values", "void")
            )
        self._known = np.array(codes + void_codes, np.int64)
        self._ids = np.array([*range(len(codes)), *[VOID] * len(void_codes)], np.int16)
        order = np.argsort(self._known, kind="stable")
        self._sorted, self._sorted_ids = self._known[order], self._ids[order]
        self._table = np.full(1 << 24 if self.as_color else 1 << 16, _UNKNOWN, np.int16)
        inside = (self._known >= 0) & (self._known < len(self._table))
        self._table[self._known[inside]] = self._ids[inside]
        # a second table of the first 256 values, for masks of one byte a pixel
        self._byte_table = self._table[:256].astype(np.uint8)
        self._byte_unknown = (self._table[:256] == _UNKNOWN).astype(np.uint8)
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
            DataError: The mask holds colours instead of values, a value that is no class, or 0 and
                255 alone where 255 was not said to be void.
        """
        if stored.ndim == 3 and not self.as_color:
            hint = ". Name the colours in a file with a line `name,r,g,b` per class"
            raise DataError(
                f"mask {path} is colour-coded (RGB), expected one value per pixel: "
                f"{self._expected}{'' if self.fixed else hint}",
                option=() if self.fixed else "color_map FILE",
            )
        if self.assumed_void and not self.as_color:
            self._refuse_two_values(stored, path)
        # the usual case, (H, W) uint8 of known values, by two table look-ups
        if stored.ndim == 2 and stored.dtype == np.uint8 and not self.as_color:
            stored = np.ascontiguousarray(stored)
            if not cv2.LUT(stored, self._byte_unknown).any():
                return cv2.LUT(stored, self._byte_table).astype(np.uint8, copy=False)
        # (H, W) values, or (H, W, 3) colours -> (H, W) codes
        codes = stored if stored.ndim == 2 else color_codes(stored)
        # (H, W) codes -> (H, W) class ids, -1 where unknown
        ids = self._look_up(codes)
        unknown = ids == _UNKNOWN
        if unknown.any():
            if self.unknown_values == "error":
                raise self._unknown(codes, unknown, path)
            ids[unknown] = VOID if self.unknown_values == "void" else self._nearest(codes[unknown])
        return ids.astype(np.uint8)

    def _look_up(self, codes: NDArray[np.integer]) -> NDArray[np.int16]:
        """Return the class ids of codes, -1 where they are unknown."""
        if codes.min() >= 0 and codes.max() < len(self._table):
            known: NDArray[np.int16] = self._table[codes]
            return known
        places = np.searchsorted(self._sorted, codes).clip(max=len(self._sorted) - 1)
        found: NDArray[np.int16] = np.where(
            self._sorted[places] == codes, self._sorted_ids[places], np.int16(_UNKNOWN)
        )
        return found

    def _refuse_two_values(self, stored: NDArray[np.integer], path: Path | str) -> None:
        """Raise an error for a mask without its second class, whose 255 may be that or void."""
        if self.unknown_values == "nearest":
            ambiguous = bool((stored > VOID // 2).any())  # the other class is far from its values
        else:
            # the other class makes the file's own numbering clear
            ambiguous = VOID in stored and self._known[1] not in stored
        if ambiguous:
            raise DataError(
                f"mask {path} holds 255 and no class but {self._known[0]}: is 255 the second "
                "class, or is it void?",
                option=("mask_values [0,255]", "void [255]"),
            )

    @property
    def fingerprint(self) -> str:
        """A text that differs between decoders that decode the same file differently."""
        settings = f"{self.as_color} {self.unknown_values} {self._known.tolist()}".encode()
        return sha256(settings + self._ids.tobytes()).hexdigest()

    def _nearest(self, codes: NDArray[np.integer]) -> NDArray[np.int16]:
        """Return the class ids (n,) of the known values or colours nearest to codes (n,)."""
        values, where = np.unique(codes, return_inverse=True)
        # (values, 1, channels) - (known, channels) -> (values, known, channels)
        distance = self._channels(values)[:, None] - self._channels(self._known)
        nearest = self._known[np.square(distance).sum(-1).argmin(1)]
        ids: NDArray[np.int16] = self._look_up(nearest)[where]
        return ids

    def _channels(self, codes: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return codes (n,) as colours (n, 3), or as values (n, 1)."""
        wide: NDArray[np.int64] = codes.astype(np.int64)
        if not self.as_color:
            return wide[:, None]
        return np.stack([wide >> 16, wide >> 8 & 255, wide & 255], axis=-1)

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


def color_codes(colors: NDArray[np.integer]) -> NDArray[np.int32]:
    """Return RGB colours (H, W, 3) as the numbers (H, W) of their 24 bits."""
    # bytes blue, green, red, 0 are the number on every machine of today
    padded = cv2.cvtColor(np.ascontiguousarray(colors, np.uint8), cv2.COLOR_RGB2BGRA)
    codes: NDArray[np.int32] = padded.view("<i4")[..., 0]
    codes &= 0xFFFFFF
    return codes


def _code(value: int | Sequence[int]) -> int:
    """Return a value, or the 24 bits of an RGB colour."""
    if isinstance(value, int):
        return value
    if len(value) != 3 or not all(0 <= channel <= 255 for channel in value):
        raise DataError(f"a colour is three numbers in 0..255, not {list(value)}")
    red, green, blue = value
    return red << 16 | green << 8 | blue
