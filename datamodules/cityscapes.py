"""Cityscapes (Cordts et al. 2016; arXiv 1604.01685), fine annotations, 19 classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from torchvision.datasets import Cityscapes

from datamodules.official import OfficialDataModule, Origin, pair
from datamodules.reading.mask_decoder import VOID, MaskDecoder
from datamodules.reading.sources import FileSource

CLASSES = sorted(
    (each for each in Cityscapes.classes if not each.ignore_in_eval), key=lambda each: each.train_id
)
# the id of the licence plate is -1, which 8 bits would store as 255
NOT_EVALUATED = [each.id % 256 for each in Cityscapes.classes if each.ignore_in_eval]

ORIGIN = Origin(
    "Cityscapes",
    "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip (leftImg8bit_trainextra.zip for "
    "the option train_extra) from https://www.cityscapes-dataset.com/downloads/",
    """
    leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png ...   (and val, train_extra)
    gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png ...    (and val)
    """,
)


class CityscapesDataModule(OfficialDataModule):
    """Cityscapes, streets seen from a car: 2,975 training and 500 validation images.

    Images have 2048 x 1024 pixels. Masks store the dataset's 34 ids, of which 19 are classes and
    the others are void. Where every image of a split has a file `..._gtFine_labelTrainIds.png`
    (0..18, void 255), these files are read instead.

    Args:
        root: Folder with `leftImg8bit` and `gtFine`, or the folder that holds it as `cityscapes`.
        train_extra: True adds the 19,998 images of `leftImg8bit/train_extra` to the images that
            methods use without labels.
        loader_options: Arguments of `OfficialDataModule`, such as `train`, and of
            `SegmentationDataModule`.

    Raises:
        DataError: Files are missing.
    """

    default_crop_size = (512, 1024)
    default_scale = (0.5, 2.0)
    origin = ORIGIN

    def __init__(self, root: str, train_extra: bool = False, **loader_options: Any) -> None:
        super().__init__(root, **loader_options)
        self.train_extra = train_extra

    @property
    def class_names(self) -> list[str]:
        """The names of the 19 classes that are evaluated."""
        return [each.name for each in CLASSES]

    @property
    def palette(self) -> list[list[int]]:
        """The official colours of the classes."""
        return [list(each.color) for each in CLASSES]

    def split_files(self, split: Literal["train", "val"]) -> FileSource:
        """Return the examples of a split, with ids such as `aachen/aachen_000000_000019`.

        Raises:
            DataError: Files are missing.
        """
        home = self._home()
        images, folder = self._images(split), home / "gtFine" / split
        masks = ORIGIN.files(folder, "_gtFine_labelTrainIds")
        decoder = MaskDecoder(range(len(CLASSES)), void=[VOID], fixed=True)
        if not images.keys() <= masks.keys():
            masks = ORIGIN.files(folder, "_gtFine_labelIds")
            decoder = MaskDecoder([each.id for each in CLASSES], void=NOT_EVALUATED, fixed=True)
        where = f"{home / 'leftImg8bit' / split} and {folder}"
        pairs = pair(images.keys() | masks.keys(), images, masks, where, self.skip_unpaired)
        return FileSource(pairs.images, pairs.masks, decoder)

    def extra_images(self) -> dict[str, Path]:
        """Return the images of `train_extra` by id; none where the option is False."""
        return self._images("train_extra") if self.train_extra else {}

    def _home(self) -> Path:
        return ORIGIN.home(self.root, "leftImg8bit", "cityscapes", "Cityscapes")

    def _images(self, split: str) -> dict[str, Path]:
        return ORIGIN.files(self._home() / "leftImg8bit" / split, "_leftImg8bit")
