"""Random scale and crop, computed on just the part of the image that the crop will show.

Scaling an image of 2048x1024 pixels to keep 512x512 of it wastes most of the work. Drawing the
crop's place in the scaled image first and working back to the source gives the same pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.errors import DataError
from datamodules.reading.mask_decoder import VOID

# ImageNet's mean colour: what a network sees as nothing in particular
PAD_COLOR = (124, 116, 104)


class Crop(NamedTuple):
    """A window into a scaled image, which may reach beyond it."""

    source: tuple[int, int]
    """Height and width of the image before scaling, in pixels."""
    scaled: tuple[int, int]
    """Height and width after scaling."""
    top: int
    """First row of the window in the scaled image; negative where padding comes first."""
    left: int
    """First column, likewise."""
    size: tuple[int, int]
    """Height and width of the window."""

    def image(self, image: NDArray[np.uint8], reduced: int = 1) -> NDArray[np.uint8]:
        """Cut the window out of an image with bilinear interpolation, as scale-then-crop would.

        Args:
            image: (H, W, 3), or one that was decoded at 1/`reduced` of its size.
            reduced: How many pixels of the original one of its pixels stands for.

        Returns:
            (h, w, 3); padding has ImageNet's mean colour.
        """
        rows, columns = self.inside()
        vertical, high = self._axis(0, rows, image.shape[0], reduced)
        horizontal, wide = self._axis(1, columns, image.shape[1], reduced)
        shape = (columns.stop - columns.start, rows.stop - rows.start)
        cut = image[high, wide]
        if self.source == self.scaled and reduced == 1:
            cut = cut[: shape[1], : shape[0]]
        else:
            cut = _warp(cut, horizontal, vertical, shape)
        if shape != self.size[::-1]:
            above, below = rows.start, self.size[0] - rows.stop
            before, behind = columns.start, self.size[1] - columns.stop
            cut = cv2.copyMakeBorder(
                cut, above, below, before, behind, cv2.BORDER_CONSTANT, value=PAD_COLOR
            ).astype(np.uint8, copy=False)
        return cut

    def mask(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Cut the window out of (H, W) labels: each pixel gets the label below its centre.

        OpenCV's `INTER_NEAREST` looks at the pixel's corner instead, which shifts labels against
        the image by half a pixel.
        """
        rows, columns = self.inside()
        # columns first: they lie close together
        high, wide = self._nearest(0, rows), self._nearest(1, columns)
        cut: NDArray[np.uint8] = (
            mask[high[0] : high[-1] + 1].take(wide, axis=1).take(high - high[0], axis=0)
        )
        if cut.shape == self.size:
            return cut
        padded = np.full(self.size, VOID, np.uint8)
        padded[rows, columns] = cut
        return padded

    def valid(self) -> NDArray[np.bool_]:
        """Return (h, w), True where the window shows the image and not padding."""
        inside = np.zeros(self.size, np.bool_)
        inside[self.inside()] = True
        return inside

    def inside(self) -> tuple[slice, slice]:
        """Return the rows and columns of the window that lie in the scaled image."""
        rows, columns = (
            slice(max(0, -first), min(length, scaled - first))
            for first, length, scaled in zip(
                (self.top, self.left), self.size, self.scaled, strict=True
            )
        )
        return rows, columns

    def _axis(
        self, axis: int, part: slice, length: int, reduced: int
    ) -> tuple[tuple[float, float], slice]:
        """Return slope and offset from the window's pixels to the source's, and what they touch."""
        slope = self.source[axis] / self.scaled[axis] / reduced
        begin = part.start + (self.top, self.left)[axis]
        first = (begin + 0.5) * slope - 0.5  # pixel centres lie at halves
        last = first + slope * (part.stop - part.start - 1)
        low = max(0, int(np.floor(first)))
        high = min(length, int(np.floor(last)) + 2)
        return (slope, first - low), slice(low, high)

    def _nearest(self, axis: int, part: slice) -> NDArray[np.intp]:
        pixels = np.arange(part.start, part.stop) + (self.top, self.left)[axis]
        # floor((pixel + 1/2) * source / scaled), exactly
        return (2 * pixels + 1) * self.source[axis] // (2 * self.scaled[axis])


def _warp(
    image: NDArray[np.uint8],
    horizontal: tuple[float, float],
    vertical: tuple[float, float],
    shape: tuple[int, int],
) -> NDArray[np.uint8]:
    """Sample an image at slope * pixel + offset; `shape` is the result's width and height."""
    to_source = np.array([[horizontal[0], 0, horizontal[1]], [0, vertical[0], vertical[1]]])
    warped = cv2.warpAffine(
        cv2.cvtColor(image, cv2.COLOR_RGB2RGBA),  # four channels take a third of three's time
        to_source,
        shape,
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB).astype(np.uint8, copy=False)


class RandomScaleCrop:
    """Draws a scale factor uniformly, then the place of a crop uniformly in the scaled image.

    A scaled image that is smaller than the crop is padded evenly on both sides: ImageNet's mean
    colour, and void in the mask.

    Args:
        size: Height and width of the crop in pixels, or the side of a square.
        scale: Smallest and largest factor.
        step: Draw only `scale[0]`, `scale[0] + step`, ... up to `scale[1]`; None draws any.

    Raises:
        DataError: An impossible option.
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        scale: tuple[float, float] = (0.5, 2.0),
        step: float | None = None,
    ) -> None:
        height, width = (size, size) if isinstance(size, int) else size
        if min(height, width) < 1:
            raise DataError(f"--data.crop_size must be at least 1, not {size}")
        low, high = scale
        if not 0 < low <= high:
            raise DataError(f"--data.scale must be 0 < smallest <= largest, not {[low, high]}")
        if step is not None and step <= 0:
            raise DataError(f"the step of RandomScaleCrop must be positive, not {step}")
        self.size = (height, width)
        self.scale = (float(low), float(high))
        self.step = step

    def factor(self, rng: np.random.Generator) -> float:
        """Draw a scale factor."""
        low, high = self.scale
        if self.step is None:
            return float(rng.uniform(low, high))
        count = int((high - low) / self.step + 1e-9) + 1
        return low + self.step * int(rng.integers(count))

    def place(self, rng: np.random.Generator, source: tuple[int, int], factor: float) -> Crop:
        """Draw the place of a crop in an image of (height, width), scaled by a factor."""
        scaled = (max(1, round(source[0] * factor)), max(1, round(source[1] * factor)))
        top, left = (
            int(rng.integers(have - want + 1)) if have >= want else -((want - have) // 2)
            for have, want in zip(scaled, self.size, strict=True)
        )
        return Crop(source, scaled, top, left, self.size)
