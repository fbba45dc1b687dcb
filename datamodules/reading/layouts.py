"""Layouts of folders: which image belongs to which mask, and both to which split."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch.utilities import rank_zero_info

from datamodules.errors import DataError, UnpairedError, some
from datamodules.reading.annotations import other_annotations
from datamodules.reading.files import SUFFIXES, by_stem, is_image, list_images, read_lines

Suffix = str | Mapping[str, str]
"""End of file names, or one for each split by its name."""


class Pairs(NamedTuple):
    """Image and mask files under the same ids."""

    images: dict[str, Path]
    """Image files by id."""
    masks: dict[str, Path]
    """Mask files by id."""

    def only(self, ids: list[str]) -> Pairs:
        """Return the pairs of these ids."""
        return Pairs({key: self.images[key] for key in ids}, {key: self.masks[key] for key in ids})


class FolderLayout:
    """Finds the pairs of a split in subfolders, in a list file, or by dividing all pairs.

    Args:
        root: Folder of the dataset.
        images: Name of the image folder.
        masks: Name of the mask folder.
        splits: Name of a subfolder or list file for each split, at least for `train` and `val`.
        image_suffix: End of image names that mask names do not have, before the file type or with
            it; a mapping has one for each split.
        mask_suffix: End of mask names that image names do not have, in the same form.

    Raises:
        DataError: A mapping of suffixes names something that is no split.
    """

    def __init__(
        self,
        root: Path,
        images: str,
        masks: str,
        splits: dict[str, str],
        image_suffix: Suffix = "",
        mask_suffix: Suffix = "",
    ) -> None:
        self.root = root
        self.images = images
        self.masks = masks
        self.splits = splits
        self.suffixes = [
            _per_split(image_suffix, splits, "image_suffix"),
            _per_split(mask_suffix, splits, "mask_suffix"),
        ]

    def has(self, split: str) -> bool:
        """Return whether there is a list file or a subfolder for a split."""
        return self._list_file(split) is not None or any(
            images.is_dir() for images, _ in self._subfolders(split)
        )

    def pairs(self, split: str, skip_unpaired: bool = False) -> Pairs:
        """Return the files of a split.

        Args:
            split: Name of the split.
            skip_unpaired: True leaves out images without masks and masks without images; False
                raises an error.

        Raises:
            UnpairedError: An image has no mask, a mask no image, or a listed file does not exist.
            DataError: There are no images, or a list names an image twice.
        """
        if not self.root.is_dir():
            raise DataError(f"folder {self.root} does not exist", option="root")
        pairs = self._find(split, skip_unpaired)
        if not pairs.images:
            places = [str(images) for images, _ in self._subfolders(split)]
            places += [str(self.root / f"{self.splits[split]}.txt"), str(self.root / self.images)]
            raise DataError(
                f"split {split!r} has no images: looked in {some(places)} for "
                f"{', '.join(sorted(SUFFIXES))}",
                option=("root", "images", split),
            )
        return pairs

    def images_without_masks(self, split: str) -> dict[str, Path] | None:
        """Return the images of a split by id where it has an image folder and no mask folder."""
        for images, masks in self._subfolders(split):
            if images.is_dir() and not masks.is_dir():
                return by_stem(list_images(images), images, self.suffixes[0][split])
        return None

    def mask_folders(self) -> list[Path]:
        """Return all folders that may hold masks."""
        if not self.root.is_dir():
            return []
        places = [self.root / self.masks]
        places += [masks for split in self.splits for _, masks in self._subfolders(split)]
        places += [each / self.masks for each in sorted(self.root.iterdir()) if each.is_dir()]
        folders = dict.fromkeys(place for place in places if place.is_dir())
        # a folder within another one is listed with it
        return [each for each in folders if not folders.keys() & set(each.parents)]

    def mask_files(self) -> list[Path]:
        """Return the files in all mask folders."""
        ends = dict.fromkeys(self.suffixes[1].values())
        files: dict[Path, None] = {}
        for folder in self.mask_folders():
            listed = list_images(folder)
            for end in ends:
                files |= dict.fromkeys(by_stem(listed, folder, end, skip=True).values())
        return list(files)

    def _find(self, split: str, skip_unpaired: bool) -> Pairs:
        """Return the pairs of a split from the first place that has any, or no pairs."""
        named = self.root / self.splits[split]
        if named.is_file():
            return self._listed(split, named, skip_unpaired)
        for images, masks in self._subfolders(split):
            if images.is_dir():
                return self._match(split, images, masks, skip_unpaired)
        if (listed := self._list_file(split)) is not None:
            return self._listed(split, listed, skip_unpaired)
        if any(self.has(other) for other in self.splits):
            return Pairs({}, {})
        return self._divided(split, skip_unpaired)

    def _list_file(self, split: str) -> Path | None:
        """Return the list file of a split, where there is one."""
        name = self.splits[split]
        places = (self.root / name, self.root / f"{name}.txt")
        return next((path for path in places if path.is_file()), None)

    def _subfolders(self, split: str) -> list[tuple[Path, Path]]:
        """Return the places where the image and the mask folder of a split may be."""
        name = self.splits[split]
        return [
            (self.root / self.images / name, self.root / self.masks / name),
            (self.root / name / self.images, self.root / name / self.masks),
        ]

    def _index(self, split: str, images: Path, masks: Path, skip: bool) -> Pairs:
        """Return all images and all masks of two folders by their names, paired or not."""
        for folder, option in ((images, "images"), (masks, "masks")):
            if not folder.is_dir():
                raise DataError(f"folder {folder} does not exist", option=("root", option))
        image_end, mask_end = (suffix[split] for suffix in self.suffixes)
        together = images.resolve() == masks.resolve()
        if together and image_end == mask_end:
            raise DataError(
                f"{images} holds images and masks: name the end of the masks' names, such as "
                "_mask or _mask.png, or .png where the images are .jpg",
                option=("mask_suffix _mask", "image_suffix .jpg", "masks"),
            )
        others = (mask_end, image_end) if together else ("", "")
        listed = list_images(images)
        pairs = Pairs(
            by_stem(listed, images, image_end, skip, others[0]),
            by_stem(listed if together else list_images(masks), masks, mask_end, skip, others[1]),
        )
        if pairs.images and (other := other_annotations(masks, masks=bool(pairs.masks))):
            raise DataError(other, option="masks")
        return pairs

    def _match(
        self, split: str, image_folder: Path, mask_folder: Path, skip_unpaired: bool
    ) -> Pairs:
        """Return the pairs of two folders; raise an error for files without a partner."""
        pairs = self._index(split, image_folder, mask_folder, skip_unpaired)
        images, masks = pairs
        problems, defects = [], []
        if lone := sorted(images.keys() - masks.keys()):
            problems.append(
                f"{len(lone)} of {len(images)} images in {image_folder} without a mask in "
                f"{mask_folder}: {some(lone)}"
            )
            defects += [f"{images[name]} has no mask in {mask_folder}" for name in lone]
        if lone := sorted(masks.keys() - images.keys()):
            problems.append(
                f"{len(lone)} of {len(masks)} masks in {mask_folder} without an image in "
                f"{image_folder}: {some(lone)}"
            )
            defects += [f"{masks[name]} has no image in {image_folder}" for name in lone]
        if problems and not skip_unpaired:
            raise UnpairedError(
                f"{'; '.join(problems)}. Names must agree but for the file type and the two "
                "suffixes; skip leaves files without a partner out",
                defects,
                option=("image_suffix", "mask_suffix", "unpaired skip"),
            )
        return pairs.only(sorted(images.keys() & masks.keys()))

    def _listed(self, split: str, path: Path, skip_unpaired: bool) -> Pairs:
        """Return the pairs that a list file names; raise an error for files that do not exist."""
        lines = read_lines(path)
        rows = [row for line in lines if (row := self._two_files(line)) is not None]
        defects: list[str] = []
        if len(rows) == len(lines):  # every line names both files
            absent = {file for row in rows for file in row if not file.is_file()}
            defects += [f"{path} names {file}, which does not exist" for file in sorted(absent)]
            listed = [
                (_id(image, self.root), image, mask)
                for image, mask in rows
                if not {image, mask} & absent
            ]
        else:
            folders = (self.root / self.images, self.root / self.masks)
            known = self._index(split, *folders, skip_unpaired)
            results = [self._known(line, split, known, path) for line in lines]
            defects += [each for each in results if isinstance(each, str)]
            listed = [each for each in results if not isinstance(each, str)]
        if defects and not skip_unpaired:
            raise UnpairedError(some(defects, 3), defects, option="unpaired skip")
        count = Counter(name for name, _, _ in listed)
        if twice := [name for name, times in count.items() if times > 1]:
            raise DataError(f"{path} names {some(twice)} more than once")
        return Pairs(
            {name: image for name, image, _ in listed}, {name: mask for name, _, mask in listed}
        )

    def _two_files(self, line: str) -> tuple[Path, Path] | None:
        """Return the paths of image and mask that a line names; None for a line of another form."""
        for separator in (",", "\t", None):
            words = [word.strip() for word in line.split(separator)]
            if len(words) == 2 and all(map(is_image, words)):
                return self._place(words[0]), self._place(words[1])
        return None

    def _known(
        self, line: str, split: str, known: Pairs, path: Path
    ) -> tuple[str, Path, Path] | str:
        """Return id, image and mask for a line that is an id or the path of an image.

        Args:
            line: The line.
            split: Name of the split.
            known: All images and masks of the dataset.
            path: The list file, for errors.

        Returns:
            The three, or one sentence that names what is missing.
        """
        name = line
        if is_image(line):
            folder, file = self.root / self.images, self._place(line)
            inside = file.relative_to(folder) if file.is_relative_to(folder) else Path(line)
            name = inside.with_suffix("").as_posix()
            end = self.suffixes[0][split]
            name = name.removesuffix(end.removesuffix(inside.suffix))
        for files, kind, folder in (
            (known.images, "image", self.root / self.images),
            (known.masks, "mask", self.root / self.masks),
        ):
            if name not in files:
                return f"{path} names {line}, for which there is no {kind} in {folder}"
        return name, known.images[name], known.masks[name]

    def _place(self, name: str) -> Path:
        """Return the path of a listed file; VOC's lists put a slash before paths below the root."""
        path = self.root / name
        return path if path.is_file() else self.root / name.lstrip("/")

    def _divided(self, split: str, skip_unpaired: bool) -> Pairs:
        """Divide all pairs: the fifth whose names have the smallest hashes is for validation."""
        images, masks = self.root / self.images, self.root / self.masks
        if not images.is_dir():
            return Pairs({}, {})
        folders = sorted(path.name for path in images.iterdir() if path.is_dir())
        if any(name.lower().startswith(("train", "val", "test")) for name in folders):
            raise DataError(
                f"{images} has the subfolders {some(folders)}, but none is called "
                f"{' or '.join(self.splits.values())}: give the names of the splits",
                option=("train", "val"),
            )
        pairs = self._match(split, images, masks, skip_unpaired)
        held_out = smallest_hashes(pairs.images, 1 / 5)
        chosen = held_out if split == "val" else sorted(pairs.images.keys() - set(held_out))
        rank_zero_info(
            f"no splits in {self.root}: {len(chosen)} of {len(pairs.images)} images for {split}"
        )
        return pairs.only(chosen)


def smallest_hashes(names: Iterable[str], share: float) -> list[str]:
    """Return the share of names that have the smallest hashes, sorted.

    Args:
        names: The names.
        share: Part of the names, in (0, 1]; their number is rounded, and at least 1.
    """
    order = sorted(names, key=lambda name: sha256(os.fsencode(name)).digest())
    return sorted(order[: max(1, round(len(order) * share))])


def _per_split(suffix: Suffix, splits: Mapping[str, str], option: str) -> dict[str, str]:
    """Return the suffix of every split.

    A split that a mapping leaves out takes the suffix of another split in the same place, or none.
    """
    if isinstance(suffix, str):
        return dict.fromkeys(splits, suffix)
    if unknown := sorted(suffix.keys() - splits.keys()):
        raise DataError(
            f"{option} names {some(unknown)}; the splits are {', '.join(splits)}", option=option
        )
    same = {splits[split]: end for split, end in suffix.items()}
    return {split: suffix.get(split, same.get(place, "")) for split, place in splits.items()}


def _id(file: Path, root: Path) -> str:
    """Return the path of a file below the root, or its name where it lies elsewhere."""
    file, root = Path(os.path.normpath(file)), Path(os.path.normpath(root))
    inside = file.relative_to(root) if file.is_relative_to(root) else Path(file.name)
    return inside.with_suffix("").as_posix()
