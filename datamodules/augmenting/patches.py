"""Labelled patches for mix-and-match tuning: squares with the class of their centre pixel.

X. Zhan, Z. Liu, P. Luo, X. Tang, C. C. Loy: Mix-and-Match Tuning for Self-Supervised Semantic
Segmentation (AAAI 2018, arXiv 1712.00661). Sampling follows the authors' code with three
differences: an image without background gets no patch labelled background, no patch is void, and
overlap is a share of the patch's own area.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.augmenting.crop import padded
from datamodules.errors import DataError
from datamodules.reading.mask_decoder import VOID
from lightning_seg.errors import require_range

_CANDIDATES = 5  # squares drawn per patch of an object, as in the authors' code


class Square(NamedTuple):
    """The place of a patch in an image; it may reach beyond the image."""

    row: int
    """Row of the centre pixel, which is the first row of the lower half."""
    column: int
    """Column of the centre pixel, which is the first column of the right half."""
    side: int
    """Side in pixels, even."""

    def inside(self, shape: tuple[int, ...]) -> tuple[slice, slice]:
        """Return the rows and columns of the square in an image of shape (height, width, ...)."""
        half = self.side // 2
        rows, columns = (
            slice(max(0, centre - half), min(length, centre + half))
            for centre, length in zip(self[:2], shape[:2], strict=True)
        )
        return rows, columns


class Patches(NamedTuple):
    """Patches of one image."""

    images: NDArray[Any]
    """(k, o, o, C); pixels beyond the image have the mean colour of ImageNet in RGB patches."""
    labels: NDArray[np.int64]
    """(k,) class ids of the centre pixels, without void."""


class PatchMixer:
    """Draws labelled patches of an image.

    Centres are drawn uniformly among the pixels of all objects, and for a share of the patches
    among the pixels of the background; sides are drawn uniformly among the even numbers of a
    range. Five candidates are drawn per patch of an object. A candidate is discarded if the
    candidates kept before it cover too much of its area; discarded candidates are used only where
    too few were kept. Patches of the background are not compared.

    An image without background has K patches of objects, an image without objects K patches of the
    background, and an image that is all void has none: there are either K patches or 0.

    Args:
        patches_per_image: Number of patches K of an image, at least 1.
        patch_size: Smallest and largest side of a patch in the image, in pixels, at least 2.
        out_size: Side o in pixels that all patches are resized to, at least 1; bilinear and
            without antialiasing, as in the authors' code.
        background_index: Class id of the background, in [0, 254]. None is for data without
            background, such as Cityscapes: the pixels of all classes are then drawn alike.
        background_share: Share of the patches that show background where an image has any, in
            [0, 1), rounded down, but at least one of two or more patches; 0 gives none.
        max_overlap: Share of a candidate's area in the image that the candidates kept before it
            may cover, in [0, 1].
        legacy_overlap: True divides the covered area by the area of the first candidate, its part
            beyond the image included, as the authors' code does.

    Raises:
        DataError: An argument is out of its range.
    """

    def __init__(
        self,
        patches_per_image: int = 10,
        patch_size: tuple[int, int] = (64, 256),
        out_size: int = 128,
        background_index: int | None = 0,
        background_share: float = 0.1,
        max_overlap: float = 0.6,
        legacy_overlap: bool = False,
    ) -> None:
        sizes = {"patches_per_image": patches_per_image, "out_size": out_size}
        require_range(1, math.inf, error=DataError, **sizes)
        require_range(0, 1, error=DataError, max_overlap=max_overlap)
        smallest, largest = patch_size
        if not 2 <= smallest <= largest or (smallest == largest and smallest % 2):
            raise DataError(
                "patch_size must be 2 <= smallest <= largest with an even number in between, not "
                f"{[smallest, largest]}",
                option="patch_size",
            )
        if background_index is not None and not 0 <= background_index < VOID:
            raise DataError(
                f"background_index must be in [0, {VOID - 1}] or null, not {background_index}",
                option="background_index",
            )
        if not 0 <= background_share < 1:
            raise DataError(
                f"background_share must be in [0, 1), not {background_share}",
                option="background_share",
            )
        self.patches_per_image = patches_per_image
        self.halves = ((smallest + 1) // 2, largest // 2)
        self.out_size = out_size
        self.background_index = background_index
        share = int(patches_per_image * background_share)
        self.quota = min(max(1, share), patches_per_image - 1) if background_share else 0
        self.max_overlap = max_overlap
        self.legacy_overlap = legacy_overlap

    def __call__(
        self, image: NDArray[Any], mask: NDArray[np.uint8], rng: np.random.Generator
    ) -> Patches:
        """Draw patches of an image.

        Args:
            image: (H, W, C) of any size: uint8, or float32 in [0, 1].
            mask: (H, W) class ids, 255 where void.
            rng: Source of the random numbers.

        Raises:
            ValueError: Image and mask differ in size, or the image has no channels.

        Examples:
            The image has one pixel. In a patch of 2 x 2 pixels it is the last, the others are
            padding.

            >>> image, mask = np.zeros((1, 1, 3), np.uint8), np.full((1, 1), 3, np.uint8)
            >>> draw = PatchMixer(patches_per_image=2, patch_size=(2, 2), out_size=2)
            >>> patches = draw(image, mask, np.random.default_rng(0))
            >>> patches.images[0, :, :, 0].tolist(), patches.labels.tolist()
            ([[124, 124], [124, 0]], [3, 3])
        """
        if image.ndim != 3 or mask.shape != image.shape[:2]:
            raise ValueError(
                f"image {image.shape} and mask {mask.shape} do not fit: expected (H, W, C) and "
                "(H, W)"
            )
        squares = self.draw(mask, rng)
        # K squares of (side, side, C) -> (K, o, o, C)
        shape = (len(squares), self.out_size, self.out_size, image.shape[2])
        images = np.empty(shape, image.dtype)
        for square, patch in zip(squares, images, strict=True):
            _cut(image, square, patch)
        return Patches(images, np.array([mask[square[:2]] for square in squares], np.int64))

    def draw(self, mask: NDArray[np.uint8], rng: np.random.Generator) -> list[Square]:
        """Draw the places of patches; squares in the background come last.

        Args:
            mask: (H, W) class ids, 255 where void.
            rng: Source of the random numbers.
        """
        # (H, W) class ids -> (H, W) bool, two maps without void
        objects = mask != VOID
        if self.background_index is None:
            background = np.zeros_like(objects)
        else:
            background = mask == self.background_index
        objects &= ~background
        if not objects.any():
            objects, background = background, objects
        if not objects.any():
            return []
        # (H, W) bool -> squares around random pixels
        quota = self.quota if background.any() else 0
        wanted = self.patches_per_image - quota
        squares = discard_covered(
            self._squares(objects, _CANDIDATES * wanted, rng),
            wanted,
            (mask.shape[0], mask.shape[1]),
            self.max_overlap,
            self.legacy_overlap,
        )
        if quota:
            squares += self._squares(background, quota, rng)
        return squares

    def _squares(
        self, chosen: NDArray[np.bool_], count: int, rng: np.random.Generator
    ) -> Iterator[Square]:
        """Yield squares around random pixels of a map.

        Args:
            chosen: (H, W), True where a centre may be.
            count: Number of squares.
            rng: Source of the random numbers.
        """
        # a count per row and a search in one row per square take a tenth of the time of np.nonzero
        # (H, W) -> (H,) number of True pixels up to the end of each row
        per_row = cv2.reduce(chosen.view(np.uint8), 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S)
        ends = per_row[:, 0].cumsum()
        picks = rng.integers(ends[-1], size=count)
        sides = 2 * rng.integers(*self.halves, size=count, endpoint=True)
        rows = ends.searchsorted(picks, side="right")
        # a pick counts True pixels from the first row on; `pick - ends[row]` is negative and counts
        # them from the end of the row
        return (
            Square(int(row), int(np.flatnonzero(chosen[row])[pick - ends[row]]), int(side))
            for row, pick, side in zip(rows, picks, sides, strict=True)
        )


def discard_covered(
    candidates: Iterable[Square],
    wanted: int,
    shape: tuple[int, int],
    max_overlap: float = 0.6,
    legacy_overlap: bool = False,
) -> list[Square]:
    """Take squares that overlap little with those taken before, then others if these are too few.

    Args:
        candidates: Squares in order of preference; candidates after the last one taken are not
            evaluated.
        wanted: Number of squares to take.
        shape: Height and width of the image; pixels outside do not count.
        max_overlap: Largest share of a square's area that squares taken before may cover, in
            [0, 1].
        legacy_overlap: True divides the covered area by the area of the first square, its part
            beyond the image included.

    Returns:
        At most `wanted` squares: those within `max_overlap` in order, then, if these are too few,
        those above it in order.

    Examples:
        Squares of 4 x 4 pixels: the first covers three quarters of the second and nothing of the
        third.

        >>> squares = [Square(2, 2, 4), Square(2, 3, 4), Square(2, 6, 4)]
        >>> [each.column for each in discard_covered(squares, 3, (9, 9))]
        [2, 6, 3]
    """
    covered = np.zeros(shape, np.uint8)
    kept: list[Square] = []
    spare: list[Square] = []
    area = 0
    for square in candidates:
        part = covered[square.inside(shape)]
        if not legacy_overlap:
            area = part.size
        elif area == 0:
            area = square.side**2
        if cv2.countNonZero(part) > max_overlap * area:
            spare.append(square)
            continue
        part.fill(1)
        kept.append(square)
        if len(kept) == wanted:
            break
    return (kept + spare)[:wanted]


def _cut(image: NDArray[Any], square: Square, patch: NDArray[Any]) -> None:
    """Resize a square of an image (H, W, C) into a patch (o, o, C)."""
    # (H, W, C) -> the part of (side, side, C) inside of the image
    rows, columns = square.inside(image.shape)
    cut = image[rows, columns]
    if cut.shape[:2] != (square.side, square.side):
        top, left = square.row - square.side // 2, square.column - square.side // 2
        # -> (side, side, C) with padding around
        above, before = rows.start - top, columns.start - left
        below, after = top + square.side - rows.stop, left + square.side - columns.stop
        cut = padded(cut, above, below, before, after)
    # -> (o, o, C)
    cv2.resize(cut, patch.shape[1::-1], dst=patch, interpolation=cv2.INTER_LINEAR)
