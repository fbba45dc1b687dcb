"""What the official datasets share: read as they were unpacked, or an error that says how to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from textwrap import dedent, indent
from typing import Any, Literal, NamedTuple

from lightning.pytorch.utilities import rank_zero_info

from datamodules.base import SegmentationDataModule, Split
from datamodules.errors import DataError, UnpairedError, some
from datamodules.reading.files import by_stem, list_images, read_lines
from datamodules.reading.layouts import Pairs
from datamodules.reading.sources import FileSource


class Origin(NamedTuple):
    """Where a dataset comes from and how it must look, for those who have it not or elsewhere."""

    name: str
    download: str
    """The archives, and the site that has them."""
    tree: str
    """The folder that the option names, or the one above it, one path a line."""
    option: str = "--data.root"

    def missing(self, path: Path) -> DataError:
        """Return the error for a path of the dataset that is not there."""
        return DataError(
            f"{path} does not exist; it is a part of {self.name}.\n"
            f"Download {self.download} and unpack, so that the folder of option {self.option} "
            f"holds\n{indent(dedent(self.tree).strip(), '    ')}"
        )

    def home(self, root: Path, marker: str, *below: str) -> Path:
        """Return the first of `root/below` and `root` itself that holds the folder `marker`.

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
        """Return the image files below a folder by the part of their path in front of `suffix`."""
        if not folder.is_dir():
            raise self.missing(folder)
        return by_stem(list_images(folder), folder, suffix)

    def pairs(self, images_in: Path, masks_in: Path, skip: bool) -> Pairs:
        """Return all images and masks of two folders, paired by their names; see `pair`."""
        images, masks = self.files(images_in), self.files(masks_in)
        where = f"{images_in} and {masks_in}"
        return pair(images.keys() | masks.keys(), images, masks, where, skip)

    def lines(self, path: Path) -> list[str]:
        """Return the lines of a list file."""
        if not path.is_file():
            raise self.missing(path)
        return read_lines(path)


class OfficialDataModule(SegmentationDataModule, ABC):
    """A public dataset in its own folders, without any step of conversion.

    The labels of the test split are not public: the validation split takes its place.

    Args:
        root: The folder of the dataset, or the one that it was unpacked in.
        train: The split to train on; `trainval` is both, for a test server.
        loader_options: Passed to `SegmentationDataModule`.

    Attributes:
        origin: Told where files are missing.
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
        """With the training split where that is not `train`: its label splits are its own."""
        return super().dataset_name + ("" if self.train == "train" else f"_{self.train}")

    @abstractmethod
    def split_files(self, split: Literal["train", "val"]) -> FileSource:
        """Return the examples of a split with public labels.

        Raises:
            DataError: Files are missing.
        """

    def source(self, split: Split) -> FileSource:
        """Pair the files of a split."""
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
    assert first.masks is not None
    assert second.masks is not None
    assert first.decode is not None
    assert second.decode is not None
    if first.decode.fingerprint != second.decode.fingerprint:
        raise DataError("train and val store their labels in different forms: convert one of them")
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
        ids: What a list names, or all that folders hold.
        images: Files by id; others than those of `ids` are left out.
        masks: Likewise.
        where: The list, or the folders; named in errors.
        skip: Leave out ids without an image or without a mask.

    Raises:
        UnpairedError: Ids without an image or without a mask.
        DataError: No id at all.
    """
    names = sorted(set(ids))
    if not names:
        raise DataError(f"{where}: no images there (option: --data.root)")
    told, defects = [], []
    for kind, files, others in (("image", images, masks), ("mask", masks, images)):
        if lone := [name for name in names if name not in files]:
            told.append(f"{len(lone)} of {len(names)} have no {kind}: {some(lone)}")
            defects += [f"{others.get(name, name)} has no {kind} ({where})" for name in lone]
    if told and not skip:
        raise UnpairedError(
            f"{where}: {'; '.join(told)}. Was everything unpacked? (option: --data.root)", defects
        )
    return Pairs(dict(images), dict(masks)).only([n for n in names if n in images and n in masks])
