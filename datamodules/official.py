"""The base class of official datasets, which are read as they were unpacked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from textwrap import dedent, indent
from typing import Any, Literal, NamedTuple

from lightning.pytorch.utilities import rank_zero_info

from datamodules.base import SegmentationDataModule
from datamodules.errors import DataError, UnpairedError, some
from datamodules.images import Split
from datamodules.reading.files import by_stem, list_images, read_lines
from datamodules.reading.layouts import Pairs
from datamodules.reading.sources import FileSource


class Origin(NamedTuple):
    """Where a dataset is downloaded, and which files it has; for errors where they are missing."""

    name: str
    """Name of the dataset."""
    download: str
    """Names of the archives, and the address of the site that has them."""
    tree: str
    """Paths below the folder that the option names, or below its parent, one a line."""
    option: str = "root"
    """Name of the option for the folder."""

    def missing(self, path: Path) -> DataError:
        """Return the error for a path of the dataset that does not exist."""
        return DataError(
            f"{path} does not exist; it is a part of {self.name}.\n"
            f"Download {self.download} and unpack the files:\n"
            f"{indent(dedent(self.tree).strip(), '    ')}\n"
            "Then give the folder that holds them",
            option=self.option,
        )

    def home(self, root: Path, marker: str, *below: str) -> Path:
        """Return the folder of the dataset.

        Args:
            root: Folder that the option names.
            marker: Name of a folder that the dataset has.
            below: Names of folders below `root` that may be the dataset.

        Returns:
            The first of `root/below` and `root` that holds `marker`.

        Raises:
            DataError: None of them does.
        """
        places = [*(root / name for name in below), root]
        for place in places:
            if (place / marker).is_dir():
                return place
        there = [place for place in places if place.is_dir()]
        raise self.missing(there[0] / marker if there else root)

    def files(self, folder: Path, suffix: str = "") -> dict[str, Path]:
        """Return the image files below a folder by their paths without file type and suffix.

        Args:
            folder: Folder of images or masks.
            suffix: End of the names, which is cut off; files with other names are left out.

        Raises:
            DataError: The folder does not exist.
        """
        if not folder.is_dir():
            raise self.missing(folder)
        return by_stem(list_images(folder), folder, suffix)

    def pairs(self, images_in: Path, masks_in: Path, skip: bool) -> Pairs:
        """Return all images and masks of two folders, paired by their names.

        Args:
            images_in: Folder of the images.
            masks_in: Folder of the masks.
            skip: True leaves out files without a partner; False raises an error.

        Raises:
            DataError: A folder does not exist or has no files, or a file has no partner.
        """
        images, masks = self.files(images_in), self.files(masks_in)
        where = f"{images_in} and {masks_in}"
        return pair(images.keys() | masks.keys(), images, masks, where, skip)

    def lines(self, path: Path) -> list[str]:
        """Return the lines of a list file.

        Raises:
            DataError: The file does not exist.
        """
        if not path.is_file():
            raise self.missing(path)
        return read_lines(path)


class OfficialDataModule(SegmentationDataModule, ABC):
    """A public dataset in its own folders, without conversion.

    The labels of the test split are not public, so that the validation split takes its place.

    Args:
        root: Folder of the dataset, or the folder that it was unpacked in.
        train: Split to train on: `train`, `val`, or `trainval` for both, as submissions to a test
            server use it.
        loader_options: Arguments of `SegmentationDataModule`.

    Attributes:
        origin: Where the dataset is downloaded, and which files it has.
    """

    origin: Origin

    def __init__(
        self,
        root: str,
        train: Literal["train", "trainval", "val"] = "train",
        **loader_options: Any,
    ) -> None:
        super().__init__(**loader_options)
        self.root = Path(root).expanduser()
        self.train = train
        self.trains_on_val = train in ("val", "trainval")

    @property
    def dataset_name(self) -> str:
        """Name in the path of label splits, with the training split where that is not `train`."""
        return super().dataset_name + ("" if self.train == "train" else f"_{self.train}")

    @abstractmethod
    def split_files(self, split: Literal["train", "val"]) -> FileSource:
        """Return the examples of a split whose labels are public.

        Raises:
            DataError: Files are missing.
        """

    def source(self, split: Split) -> FileSource:
        """Return all examples of a split.

        Raises:
            DataError: Files are missing.
        """
        if split == "test":
            rank_zero_info(
                f"the test labels of {self.origin.name} are not public: the validation split "
                "takes the place of the test split"
            )
            split = "val"
        if split == "val" or self.train == "train":
            return self.split_files(split)
        rank_zero_info("the validation images are trained on: their scores mean nothing")
        val = self.split_files("val")
        return val if self.train == "val" else _joined(self.split_files("train"), val)


def _joined(first: FileSource, second: FileSource) -> FileSource:
    """Return the examples of two sources whose masks store classes in the same way."""
    assert first.masks is not None
    assert second.masks is not None
    assert first.decode is not None
    assert second.decode is not None
    if first.decode.fingerprint != second.decode.fingerprint:
        raise DataError(
            "train and val store their labels in different forms: convert one of them",
            option="root",
        )
    return FileSource(first.images | second.images, first.masks | second.masks, first.decode)


def pair(
    ids: Iterable[str],
    images: Mapping[str, Path],
    masks: Mapping[str, Path],
    where: str,
    skip: bool = False,
) -> Pairs:
    """Return the image and the mask of every id.

    Args:
        ids: Ids to return, such as the lines of a list.
        images: Image files by id; files of other ids are left out.
        masks: Mask files by id; files of other ids are left out.
        where: The list or the folders that have the ids, for errors.
        skip: True leaves out ids without an image or without a mask; False raises an error.

    Raises:
        UnpairedError: An id has no image or no mask.
        DataError: There are no ids.
    """
    names = sorted(set(ids))
    if not names:
        raise DataError(f"{where}: no images there", option="root")
    problems, defects = [], []
    for kind, files, others in (("image", images, masks), ("mask", masks, images)):
        if lone := [name for name in names if name not in files]:
            problems.append(f"{len(lone)} of {len(names)} have no {kind}: {some(lone)}")
            defects += [f"{others.get(name, name)} has no {kind} ({where})" for name in lone]
    if problems and not skip:
        raise UnpairedError(
            f"{where}: {'; '.join(problems)} (was everything unpacked?)", defects, option="root"
        )
    return Pairs(dict(images), dict(masks)).only([n for n in names if n in images and n in masks])
