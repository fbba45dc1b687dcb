"""Pascal VOC 2012 (Everingham et al. 2010) and its extension SBD (Hariharan et al. 2011)."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_info

from datamodules.errors import DataError, some
from datamodules.official import OfficialDataModule, Origin, pair
from datamodules.reading.layouts import Pairs
from datamodules.reading.mask_decoder import VOID, MaskDecoder
from datamodules.reading.sources import FileSource

PALETTE = {
    "background": [0, 0, 0],
    "aeroplane": [128, 0, 0],
    "bicycle": [0, 128, 0],
    "bird": [128, 128, 0],
    "boat": [0, 0, 128],
    "bottle": [128, 0, 128],
    "bus": [0, 128, 128],
    "car": [128, 128, 128],
    "cat": [64, 0, 0],
    "chair": [192, 0, 0],
    "cow": [64, 128, 0],
    "diningtable": [192, 128, 0],
    "dog": [64, 0, 128],
    "horse": [192, 0, 128],
    "motorbike": [64, 128, 128],
    "person": [192, 128, 128],
    "pottedplant": [0, 64, 0],
    "sheep": [128, 64, 0],
    "sofa": [0, 192, 0],
    "train": [128, 192, 0],
    "tvmonitor": [0, 64, 128],
}

VOC = Origin(
    "Pascal VOC 2012",
    "VOCtrainval_11-May-2012.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
    """
    VOCdevkit/VOC2012/
        JPEGImages/2007_000032.jpg ...
        SegmentationClass/2007_000032.png ...
        ImageSets/Segmentation/train.txt, val.txt, trainval.txt
    """,
)
SBD = Origin(
    "SBD, the Semantic Boundaries Dataset",
    "benchmark.tgz from http://home.bharathh.info/pubs/codes/SBD/download.html",
    """
    benchmark_RELEASE/dataset/
        cls/2008_000002.mat ...
        img/2008_000002.jpg ...
        train.txt, val.txt
    """,
    "sbd",
)
SBD_LISTS = ("train", "val")
AUG_LISTS = [
    f"{folder}/{name}.txt"
    for folder in ("Segmentation", "SegmentationAug")
    for name in ("trainaug", "train_aug")
]


class VOCDataModule(OfficialDataModule):
    """Pascal VOC 2012: 20 objects and background, 1,449 validation images.

    There are 1,464 training images, or 10,582 with those of SBD. Masks store 0..20, and 255 for
    void, which is the border of objects.

    Args:
        root: Folder `VOC2012`, its parent `VOCdevkit`, or the folder that holds `VOCdevkit`.
        train: Split to train on: `train`; `trainval`, which also holds the validation images, for
            a submission; or `trainaug`, the training images of VOC and all images of SBD that are
            not for validation.
        sbd: Folder `benchmark_RELEASE` with SBD's own files, for `trainaug`. None takes the masks
            of `VOC2012/SegmentationClassAug` that the list `trainaug.txt` or `train_aug.txt` in
            `ImageSets/Segmentation` or `ImageSets/SegmentationAug` names; without a list it takes
            all masks there that are not for validation.
        loader_options: Arguments of `SegmentationDataModule`.

    Raises:
        DataError: Files are missing, or a training list names validation images.
    """

    default_crop_size = (321, 321)
    default_scale = (0.5, 2.0)
    origin = VOC

    def __init__(
        self,
        root: str,
        train: Literal["train", "trainval", "trainaug"] = "train",
        sbd: str | None = None,
        **loader_options: Any,
    ) -> None:
        super().__init__(root, **loader_options)
        if sbd is not None and train != "trainaug":
            raise DataError(
                f"sbd is for the training split trainaug, not for {train}", option="train trainaug"
            )
        self.train_list = train
        self.trains_on_val = train == "trainval"
        self.sbd = None if sbd is None else Path(sbd).expanduser()
        self.decoder = MaskDecoder(range(len(PALETTE)), void=[VOID], fixed=True)

    @property
    def dataset_name(self) -> str:
        """Name in the path of label splits, with the training list: `voc_trainaug`."""
        return f"voc_{self.train_list}"

    @property
    def class_names(self) -> list[str]:
        """The 21 class names of the benchmark."""
        return list(PALETTE)

    @property
    def palette(self) -> list[list[int]]:
        """The colours in the palette of the mask files."""
        return list(PALETTE.values())

    def split_files(self, split: Literal["train", "val"]) -> FileSource:
        """Return the examples that the list of a split names.

        Raises:
            DataError: Files are missing, or a training list names validation images.
        """
        home = VOC.home(self.root, "JPEGImages", "VOCdevkit/VOC2012", "VOC2012")
        name = self.train_list if split == "train" else "val"
        if name == "trainaug":
            pairs = self._from_pngs(home) if self.sbd is None else self._from_sbd(home, self.sbd)
        else:
            if name == "trainval":
                rank_zero_info("trainval holds the validation images: their scores mean nothing")
            images, masks = VOC.files(home / "JPEGImages"), VOC.files(home / "SegmentationClass")
            pairs = pair(
                _listed(home, name), images, masks, str(_list(home, name)), self.skip_unpaired
            )
        return FileSource(pairs.images, pairs.masks, self.decoder)

    def _from_pngs(self, home: Path) -> Pairs:
        """Return the pairs of `trainaug` whose masks are PNG files in `SegmentationClassAug`."""
        folder = home / "SegmentationClassAug"
        if not folder.is_dir():
            raise DataError(
                f"{folder} does not exist; trainaug needs that folder of PNG files, or the folder "
                f"with SBD's own files (cls/*.mat): {SBD.download}",
                option=("sbd", "train train"),
            )
        masks = VOC.files(folder)
        lists = [home / "ImageSets" / name for name in AUG_LISTS]
        found = next((path for path in lists if path.is_file()), None)
        if found is None:
            where, ids = str(folder), set(masks) - set(_listed(home, "val"))
        else:
            # a line is an id, or the paths of the image and of the mask
            where = str(found)
            ids = {PurePosixPath(line.split()[0]).stem for line in VOC.lines(found)}
            if leaked := sorted(ids & set(_listed(home, "val"))):
                raise DataError(
                    f"{found} names {len(leaked)} images of the validation split: {some(leaked)}",
                    option="root",
                )
        return pair(ids, VOC.files(home / "JPEGImages"), masks, where, self.skip_unpaired)

    def _from_sbd(self, home: Path, root: Path) -> Pairs:
        """Return the pairs of `trainaug` from the files of VOC and of SBD."""
        sbd = SBD.home(root, "cls", "benchmark_RELEASE/dataset", "dataset")
        own = set(_listed(home, "train"))
        ids = own.union(*(SBD.lines(sbd / f"{name}.txt") for name in SBD_LISTS))
        ids -= set(_listed(home, "val"))
        # where both have a mask, VOC's is finer
        masks = {path.stem: path for path in (sbd / "cls").glob("*.mat") if path.stem not in own}
        masks |= {
            name: path
            for name, path in VOC.files(home / "SegmentationClass").items()
            if name in own
        }
        images = SBD.files(sbd / "img") | VOC.files(home / "JPEGImages")
        where = f"VOC's train and SBD's lists ({home}, {sbd})"
        return pair(ids, images, masks, where, self.skip_unpaired)


def _list(home: Path, name: str) -> Path:
    return home / "ImageSets" / "Segmentation" / f"{name}.txt"


def _listed(home: Path, name: str) -> list[str]:
    return VOC.lines(_list(home, name))
