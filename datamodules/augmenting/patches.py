"""Mix-and-Match's patches: squares cut out of a labelled image, each of its centre pixel's class.

X. Zhan, Z. Liu, P. Luo, X. Tang, C. C. Loy: Mix-and-Match Tuning for Self-Supervised Semantic
Segmentation (AAAI 2018, arXiv 1712.00661). Sampling follows the authors' code, but for what goes
wrong there: an image without background gets no patch labelled so, no patch is void, and overlap
is a share of the patch's own area.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.augmenting.crop import PAD_COLOR
from datamodules.errors import DataError
from datamodules.reading.mask_decoder import VOID

_CANDIDATES = 5  # per patch that is wanted


class Square(NamedTuple):
    """A patch's place in an image, which it may reach beyond."""

    row: int
    """Of the centre pixel; half the side is above it, the other half begins with it."""
    column: int
    """Of the centre pixel, likewise."""
    side: int
    """Length in pixels, even."""

    def inside(self, shape: tuple[int, ...]) -> tuple[slice, slice]:
        """Return the rows and columns that lie in an image of (height, width, ...)."""
        half = self.side // 2
        rows, columns = (
            slice(max(0, centre - half), min(length, centre + half))
            for centre, length in zip(self[:2], shape[:2], strict=True)
        )
        return rows, columns


class Patches(NamedTuple):
    """Patches of one image."""

    images: NDArray[np.uint8]
    """(k, out_size, out_size, 3) RGB; ImageNet's mean colour beyond the image."""
    labels: NDArray[np.int64]
    """(k,) class ids of the centre pixels; never void."""


class PatchMixer:
    """Draws labelled patches of an image.

    Centres are uniform among the pixels of all objects, and for a share of the patches among those
    of the background; sides are uniform among the even numbers of a range. Five times as many
    candidates are drawn as there shall be objects. In this order, one is discarded if those kept
    cover too much of it, and taken up again only if too few are left. Background is not compared.

    An image without background has patches of objects only, one without objects K of the
    background; one that is all void has none. So there are K patches or 0.

    Args:
        patches_per_image: K, at least 1.
        patch_size: Smallest and largest side of a patch in the image, in pixels, 2 or more.
        out_size: Side in pixels that all patches are resized to, bilinear and without
            antialiasing, as the authors do.
        background_index: The class id of the background; None for data without, such as
            Cityscapes: there the patches of all classes are drawn alike.
        background_share: Share of the patches that background gets where there is any, in [0, 1),
            rounded down, but at least one of two or more patches; 0 gives it none.
        max_overlap: How much of a candidate may be covered by those kept before it, as a share of
            its area in the image, in [0, 1].
        legacy_overlap: Take the share of the first candidate's area instead, as the authors' code.

    Raises:
        DataError: An impossible option.
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
        if min(patches_per_image, out_size) < 1:
            raise DataError(
                "--data.patches.patches_per_image and --data.patches.out_size must be at least 1, "
                f"not {patches_per_image} and {out_size}"
            )
        smallest, largest = patch_size
        if not 2 <= smallest <= largest or (smallest == largest and smallest % 2):
            raise DataError(
                "--data.patches.patch_size must be 2 <= smallest <= largest with an even number in "
                f"between, not {[smallest, largest]}"
            )
        if background_index is not None and not 0 <= background_index < VOID:
            raise DataError(
                f"--data.patches.background_index must lie in [0, {VOID - 1}] or be null, not "
                f"{background_index}"
            )
        if not 0 <= background_share < 1:
            raise DataError(
                f"--data.patches.background_share must lie in [0, 1), not {background_share}"
            )
        if not 0 <= max_overlap <= 1:
            raise DataError(f"--data.patches.max_overlap must lie in [0, 1], not {max_overlap}")
        self.patches_per_image = patches_per_image
        self.halves = ((smallest + 1) // 2, largest // 2)
        self.out_size = out_size
        self.background_index = background_index
        share = int(patches_per_image * background_share)
        self.quota = min(max(1, share), patches_per_image - 1) if background_share else 0
        self.max_overlap = max_overlap
        self.legacy_overlap = legacy_overlap

    def __call__(
        self, image: NDArray[np.uint8], mask: NDArray[np.uint8], rng: np.random.Generator
    ) -> Patches:
        """Draw patches of an image.

        Args:
            image: (H, W, 3) RGB, of any size.
            mask: (H, W) class ids, 255 where void.
            rng: Decides everything random.

        Raises:
            ValueError: Image and mask do not fit.

        Example:
            One pixel has a class; a patch of 2 pixels has it for its last, and padding around.

            >>> image, mask = np.zeros((1, 1, 3), np.uint8), np.full((1, 1), 3, np.uint8)
            >>> draw = PatchMixer(patches_per_image=2, patch_size=(2, 2), out_size=2)
            >>> patches = draw(image, mask, np.random.default_rng(0))
            >>> patches.images[0, :, :, 0].tolist(), patches.labels.tolist()
            ([[124, 124], [124, 0]], [3, 3])
        """
        if image.ndim != 3 or image.shape[2] != 3 or mask.shape != image.shape[:2]:
            raise ValueError(
                f"image {image.shape} and mask {mask.shape} do not fit: expected (H, W, 3) and "
                "(H, W)"
            )
        squares = self.draw(mask, rng)
        images = np.empty((len(squares), self.out_size, self.out_size, 3), np.uint8)
        for square, patch in zip(squares, images, strict=True):
            _cut(image, square, patch)
        return Patches(images, np.array([mask[square[:2]] for square in squares], np.int64))

    def draw(self, mask: NDArray[np.uint8], rng: np.random.Generator) -> list[Square]:
        """Draw the places of patches, those of the background last.

        Args:
            mask: (H, W) class ids, 255 where void.
            rng: Decides everything random.
        """
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
        """Return squares around random pixels of those chosen, found when they are asked for."""
        # counts per row, and looking into one row for each draw, take a tenth of np.nonzero's time
        per_row = cv2.reduce(chosen.view(np.uint8), 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S)
        ends = per_row[:, 0].cumsum()
        picks = rng.integers(ends[-1], size=count)
        sides = 2 * rng.integers(*self.halves, size=count, endpoint=True)
        rows = ends.searchsorted(picks, side="right")
        # picks count from the image's beginning, `pick - ends[row]` from the row's end
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
    """Take squares that show something new, then others if these are too few.

    Args:
        candidates: In order of preference; no more are looked at than it takes.
        wanted: How many to take.
        shape: Height and width of the image; what is outside does not count.
        max_overlap: Largest share of a square that those taken before it may cover.
        legacy_overlap: Divide by the area of the first square.

    Returns:
        At most `wanted` squares. The first ones keep to `max_overlap`, in order; then, if there
        were not enough, come those that do not.

    Example:
        Squares of 4 by 4; the second shows just a quarter that is new, the third is disjoint.

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
        if area == 0 or not legacy_overlap:
            area = part.size
        if cv2.countNonZero(part) > max_overlap * area:
            spare.append(square)
            continue
        part.fill(1)
        kept.append(square)
        if len(kept) == wanted:
            break
    return (kept + spare)[:wanted]


def _cut(image: NDArray[np.uint8], square: Square, patch: NDArray[np.uint8]) -> None:
    """Fill a patch with a square of the image, resized."""
    rows, columns = square.inside(image.shape)
    cut = image[rows, columns]
    if cut.shape[:2] != (square.side, square.side):
        top, left = square.row - square.side // 2, square.column - square.side // 2
        above, before = rows.start - top, columns.start - left
        below, behind = top + square.side - rows.stop, left + square.side - columns.stop
        padded = cv2.copyMakeBorder(
            cut, above, below, before, behind, cv2.BORDER_CONSTANT, value=PAD_COLOR
        )
        cut = padded.astype(np.uint8, copy=False)
    cv2.resize(cut, patch.shape[1::-1], dst=patch, interpolation=cv2.INTER_LINEAR)
