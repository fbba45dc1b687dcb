"""Random scale and crop, computed only on the part of the image that the crop will show.

Scaling an image of 2048x1024 pixels to keep 512x512 of it wastes most of the work. Here the place
of the crop in the scaled image is drawn first, and each pixel of the crop is interpolated from the
pixels of the unscaled image below it. The result is the same.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.errors import DataError
from datamodules.reading.mask_decoder import VOID

# the mean colour of ImageNet, which normalisation turns into 0
PAD_COLOR = (124, 116, 104)

LARGEST = 1 << 14
"""Largest side of a crop in pixels, and largest scale factor; default chosen here."""


class Crop(NamedTuple):
    """A window into a scaled image; it may reach beyond the image, into padding."""

    source: tuple[int, int]
    """Height and width of the image before scaling, in pixels."""
    scaled: tuple[int, int]
    """Height and width of the image after scaling, in pixels."""
    top: int
    """First row of the window in the scaled image; negative where rows of padding come first."""
    left: int
    """First column of the window; negative where columns of padding come first."""
    size: tuple[int, int]
    """Height and width of the window in pixels."""

    def image(self, image: NDArray[Any], reduced: int = 1) -> NDArray[Any]:
        """Cut the window out of an image with the pixels of bilinear scaling and cropping.

        Args:
            image: (H, W, C); (H / reduced, W / reduced, C) where it was decoded smaller.
            reduced: Factor by which the image was decoded smaller, at least 1.

        Returns:
            (h, w, C); padding has the colour that `padded` gives it.
        """
        rows, columns = self.inside()
        # (H, W, C) -> only the rows and columns that the window shows
        vertical, high = self._axis(0, rows, image.shape[0], reduced)
        horizontal, wide = self._axis(1, columns, image.shape[1], reduced)
        shape = (columns.stop - columns.start, rows.stop - rows.start)
        cut = image[high, wide]
        # -> (rows, columns, C) of the window's part inside of the image
        if self.source == self.scaled and reduced == 1:
            cut = cut[: shape[1], : shape[0]]
        else:
            cut = _warp(cut, horizontal, vertical, shape)
        # -> (h, w, C) with padding around
        if shape != self.size[::-1]:
            above, below = rows.start, self.size[0] - rows.stop
            left, right = columns.start, self.size[1] - columns.stop
            cut = padded(cut, above, below, left, right)
        return cut

    def mask(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Cut the window out of a mask; each pixel gets the class id below its centre.

        OpenCV's `INTER_NEAREST` takes the class id below the corner of the pixel instead, which
        shifts labels against the image by half a pixel.

        Args:
            mask: (H, W) class ids.

        Returns:
            (h, w) class ids; padding is void, 255.
        """
        rows, columns = self.inside()
        # (H, W) -> (rows, columns); columns first, because they are adjacent in memory
        high, wide = self._nearest(0, rows), self._nearest(1, columns)
        cut: NDArray[np.uint8] = (
            mask[high[0] : high[-1] + 1].take(wide, axis=1).take(high - high[0], axis=0)
        )
        if cut.shape == self.size:
            return cut
        # -> (h, w) with void around
        whole = np.full(self.size, VOID, np.uint8)
        whole[rows, columns] = cut
        return whole

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
        """Return how to interpolate one axis of the image.

        Args:
            axis: 0 for rows, 1 for columns.
            part: Pixels of the window that lie in the scaled image.
            length: Pixels of the image along the axis.
            reduced: Factor by which the image was decoded smaller.

        Returns:
            Slope and offset that map a pixel of the part to the image, and the pixels of the image
            that are needed.
        """
        slope = self.source[axis] / self.scaled[axis] / reduced
        begin = part.start + (self.top, self.left)[axis]
        first = (begin + 0.5) * slope - 0.5  # pixel centres lie at halves
        last = first + slope * (part.stop - part.start - 1)
        low = max(0, int(np.floor(first)))
        high = min(length, int(np.floor(last)) + 2)
        return (slope, first - low), slice(low, high)

    def _nearest(self, axis: int, part: slice) -> NDArray[np.intp]:
        """Return the row or column of the image below the centre of each pixel of the window."""
        pixels = np.arange(part.start, part.stop) + (self.top, self.left)[axis]
        # floor((pixel + 1/2) * source / scaled), exactly
        return (2 * pixels + 1) * self.source[axis] // (2 * self.scaled[axis])


def padded(image: NDArray[Any], above: int, below: int, left: int, right: int) -> NDArray[Any]:
    """Return an image (H, W, C) with so many pixels of padding at its sides.

    Padding of RGB has the mean colour of ImageNet, which normalisation turns into 0. Padding of
    other images has the mean of their own pixels.
    """
    if image.shape[2] == 3 and image.dtype == np.uint8:
        sides = (above, below, left, right)
        return cv2.copyMakeBorder(image, *sides, cv2.BORDER_CONSTANT, value=PAD_COLOR).astype(
            image.dtype, copy=False
        )
    height, width, channels = image.shape
    whole = np.empty((above + height + below, left + width + right, channels), image.dtype)
    whole[:] = image.mean((0, 1))
    whole[above : above + height, left : left + width] = image
    return whole


def _warp(
    image: NDArray[Any],
    horizontal: tuple[float, float],
    vertical: tuple[float, float],
    shape: tuple[int, int],
) -> NDArray[Any]:
    """Sample an image bilinearly at slope * pixel + offset.

    Args:
        image: (rows, columns, C).
        horizontal: Slope and offset of columns.
        vertical: Slope and offset of rows.
        shape: Width and height of the result.
    """
    to_source = np.array([[horizontal[0], 0, horizontal[1]], [0, vertical[0], vertical[1]]])
    warp = partial(
        cv2.warpAffine,
        M=to_source,
        dsize=shape,
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    if image.shape[2] == 3:
        # warping four channels takes a third of the time of three
        four = warp(cv2.cvtColor(image, cv2.COLOR_RGB2RGBA))
        return cv2.cvtColor(four, cv2.COLOR_RGBA2RGB).astype(image.dtype, copy=False)
    # OpenCV 5 rounds places to 1/32 of a pixel unless an image has 1, 3 or 4 channels
    parts = np.split(image, range(4, image.shape[2], 4), 2)
    alike = [one for part in parts for one in np.split(part, 2 if part.shape[2] == 2 else 1, 2)]
    return np.concatenate([np.atleast_3d(warp(np.ascontiguousarray(one))) for one in alike], 2)


class RandomScaleCrop:
    """Draws a scale factor uniformly, then the place of a crop uniformly in the scaled image.

    A scaled image that is smaller than the crop is padded evenly on both sides, with the mean
    colour of ImageNet in an RGB image, the mean of its pixels in another image, and void in the
    mask.

    Args:
        size: Height and width of the crop in pixels, or the side of a square, in [1, 16384].
        scale: Smallest and largest factor, above 0 and at most 16384.
        step: Distance of the factors `scale[0]`, `scale[0] + step`, ... up to `scale[1]`, above 0;
            None draws any factor in the range.

    Raises:
        DataError: An argument is out of its range.
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        scale: tuple[float, float] = (0.5, 2.0),
        step: float | None = None,
    ) -> None:
        height, width = (size, size) if isinstance(size, int) else size
        if not 1 <= min(height, width) <= max(height, width) <= LARGEST:
            raise DataError(f"crop_size must be in [1, {LARGEST}], not {size}", option="crop_size")
        low, high = scale
        if not 0 < low <= high <= LARGEST:
            raise DataError(
                f"scale must be 0 < smallest <= largest <= {LARGEST}, not {[low, high]}",
                option="scale",
            )
        if step is not None and not 0 < step <= LARGEST:
            raise DataError(f"the step of RandomScaleCrop must be above 0, not {step}")
        self.size = (height, width)
        self.scale = (float(low), float(high))
        self.step = step

    def factor(self, rng: np.random.Generator) -> float:
        """Draw a scale factor of the range."""
        low, high = self.scale
        if self.step is None:
            return float(rng.uniform(low, high))
        count = int((high - low) / self.step + 1e-9) + 1
        return low + self.step * int(rng.integers(count))

    def place(self, rng: np.random.Generator, source: tuple[int, int], factor: float) -> Crop:
        """Draw the place of a crop.

        Args:
            rng: Source of the random numbers.
            source: Height and width of the image in pixels.
            factor: Scale factor, above 0.
        """
        scaled = (max(1, round(source[0] * factor)), max(1, round(source[1] * factor)))
        top, left = (
            int(rng.integers(have - want + 1)) if have >= want else -((want - have) // 2)
            for have, want in zip(scaled, self.size, strict=True)
        )
        return Crop(source, scaled, top, left, self.size)
