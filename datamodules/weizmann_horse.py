"""Weizmann horses (Borenstein, Ullman 2002): images of one horse each."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from datamodules.errors import DataError
from datamodules.folder import FolderDataModule
from datamodules.images import Split
from datamodules.official import Origin
from datamodules.reading.cache import DecodedCache
from datamodules.reading.decoding import USUAL, Reading, image_size
from datamodules.reading.mask_decoder import MaskDecoder
from datamodules.reading.sources import Example, FileSource

PALETTE = {"background": [0, 0, 0], "horse": [255, 255, 255]}
ORIGIN = Origin(
    "the Weizmann horse database",
    "weizmann_horse_db.tar.gz from https://www.msri.org/people/members/eranb/",
    """
    weizmann_horse_db/
        rgb/horse001.jpg ...
        figure_ground/horse001.jpg ...
    """,
)
BLACK = "horse318"
"""Id of the image whose rgb file is all black, which is left out."""

TRAIN, VAL = 200, 63  # images, of a division chosen here
ASPECT = 0.02  # largest relative difference of the proportions of image and mask


class WeizmannHorseDataModule(FolderDataModule):
    """Weizmann horses, with the classes background and horse.

    The database has no official split. Its 327 usable images are divided into 200 for training,
    63 for validation and 64 for test, in an order by a hash of their names. Its masks are JPEG
    files, where 128 and above is horse; their sizes differ from those of the images, which are
    resized to them.

    Args:
        root: Folder `weizmann_horse_db`, or the folder that holds it; or a folder that
            `FolderDataModule` reads, such as one with `train`, `val` and `test`, each holding
            `images` and `masks` of 0 and 1.
        loader_options: Arguments of `FolderDataModule`, except `class_names`, and of
            `SegmentationDataModule`.

    Raises:
        DataError: Files are missing, or an image and its mask differ in their proportions.
    """

    fixed_options = ("class_names",)
    default_crop_size = (224, 224)
    default_scale = (0.75, 1.5)

    def __init__(self, root: str, **loader_options: Any) -> None:
        folder = Path(root).expanduser()
        inner = folder / "weizmann_horse_db"
        folder = inner if inner.is_dir() else folder
        super().__init__(str(folder), class_names=list(PALETTE), **loader_options)

    @property
    def palette(self) -> list[list[int]]:
        """The colours of the masks."""
        return list(PALETTE.values())

    def source(self, split: Split) -> FileSource:
        """Return all examples of a split, in either layout.

        Raises:
            DataError: Files are missing.
        """
        masks_in = self.root / "figure_ground"
        if masks_in.is_dir():
            pairs = ORIGIN.pairs(self.root / "rgb", masks_in, self.skip_unpaired)
            pairs = pairs.only(_divided(pairs.images, split))
            # a value is nearest to 0 below 128, and nearest to 255 otherwise
            decoder = MaskDecoder([0, 255], unknown_values="nearest")
            return ResizedSource(pairs.images, pairs.masks, decoder)
        if not any(self.layout.has(each) for each in self.layout.splits):
            raise ORIGIN.missing(masks_in if self.root.is_dir() else self.root)
        return super().source(split)


class ResizedSource(FileSource):
    """Examples whose images are resized to the size of their masks.

    Args:
        images: Image files by id.
        masks: Mask files by id.
        decode: Turns the stored values of a mask file into class ids; None returns examples
            without masks.
        cache: Keeps decoded images and masks; None decodes the files each time.
        reading: Range of deep images, and largest size of a file.
    """

    def __init__(
        self,
        images: dict[str, Path],
        masks: dict[str, Path],
        decode: MaskDecoder | None = None,
        cache: DecodedCache | None = None,
        reading: Reading = USUAL,
    ) -> None:
        super().__init__(images, masks if decode else None, decode, cache, reading)
        self.sized = masks

    def without_labels(self) -> ResizedSource:
        """Return the same images in the same sizes, without their masks."""
        return ResizedSource(self.images, self.sized, cache=self.cache, reading=self.reading)

    def _image(self, name: str, reduce: int) -> Example:
        example = super()._image(name, 1)
        (height, width), (rows, columns) = example.size, image_size(self.sized[name])
        if abs(width * rows / (height * columns) - 1) > ASPECT:
            raise DataError(
                f"image {self.images[name]} is {width}x{height} pixels (width x height) but mask "
                f"{self.sized[name]} is {columns}x{rows}; their proportions must agree within "
                f"{ASPECT:.0%}"
            )
        how = cv2.INTER_AREA if rows < height else cv2.INTER_LINEAR
        resized = cv2.resize(example.image, (columns, rows), interpolation=how)
        return example._replace(image=resized.astype(np.uint8, copy=False))


def _divided(names: dict[str, Path], split: Split) -> list[str]:
    """Return the ids of a split."""
    order = sorted(names.keys() - {BLACK}, key=lambda name: sha256(name.encode()).digest())
    parts = {
        "train": order[:TRAIN],
        "val": order[TRAIN : TRAIN + VAL],
        "test": order[TRAIN + VAL :],
    }
    return sorted(parts[split])
