"""Which image belongs to which mask, and both to which split."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from datamodules.errors import DataError, some
from datamodules.files import SUFFIXES, by_stem, is_image, list_images


class Pairs(NamedTuple):
    """Image and mask files under the same ids."""

    images: dict[str, Path]
    masks: dict[str, Path]

    def only(self, ids: list[str]) -> Pairs:
        """Return the pairs of these ids."""
        return Pairs({key: self.images[key] for key in ids}, {key: self.masks[key] for key in ids})


class FolderLayout:
    """Finds the pairs of a split, by subfolder, by list file, or by a division of its own.

    Args:
        root: The folder of the dataset.
        images: Name of the image folder.
        masks: Name of the mask folder.
        splits: What each split is called, train and val at least: a subfolder or a list file.
        image_suffix: What image names have before the file type and masks have not.
        mask_suffix: Likewise for masks.
        skip_unpaired: Leave out an image without a mask and a mask without an image.
    """

    def __init__(
        self,
        root: Path,
        images: str,
        masks: str,
        splits: dict[str, str],
        image_suffix: str = "",
        mask_suffix: str = "",
        skip_unpaired: bool = False,
    ) -> None:
        self.root = root
        self.images = images
        self.masks = masks
        self.splits = splits
        self.image_suffix = image_suffix
        self.mask_suffix = mask_suffix
        self.skip_unpaired = skip_unpaired

    def has(self, split: str) -> bool:
        """Tell whether there is a list file or a subfolder for a split."""
        return self._list_file(split) is not None or any(
            images.is_dir() for images, _ in self._subfolders(split)
        )

    def pairs(self, split: str) -> Pairs:
        """Return the files of a split.

        Raises:
            DataError: Nothing there, names that do not pair, or a list that names what is missing.
        """
        if not self.root.is_dir():
            raise DataError(f"folder {self.root} does not exist (option: --data.root)")
        found = self._find(split)
        if not found.images:
            places = [str(images) for images, _ in self._subfolders(split)]
            places += [str(self.root / f"{self.splits[split]}.txt"), str(self.root / self.images)]
            raise DataError(
                f"split {split!r} has no images: looked in {some(places)} for "
                f"{', '.join(sorted(SUFFIXES))} (options: --data.root, --data.images, "
                f"--data.{split})"
            )
        return found

    def mask_files(self) -> list[Path]:
        """Return every file in any mask folder."""
        folders = [self.root / self.masks, *sorted(self.root.glob(f"*/{self.masks}"))]
        return [file for folder in folders if folder.is_dir() for file in list_images(folder)]

    def _find(self, split: str) -> Pairs:
        if (listed := self._list_file(split)) is not None:
            return self._listed(listed)
        for images, masks in self._subfolders(split):
            if images.is_dir():
                return self._match(images, masks)
        if any(self.has(other) for other in self.splits):
            return Pairs({}, {})
        return self._divided(split)

    def _list_file(self, split: str) -> Path | None:
        name = self.splits[split]
        places = (self.root / name, self.root / f"{name}.txt")
        return next((path for path in places if path.is_file()), None)

    def _subfolders(self, split: str) -> list[tuple[Path, Path]]:
        name = self.splits[split]
        return [
            (self.root / self.images / name, self.root / self.masks / name),
            (self.root / name / self.images, self.root / name / self.masks),
        ]

    def _index(self, images: Path, masks: Path) -> Pairs:
        for folder, option in ((images, "--data.images"), (masks, "--data.masks")):
            if not folder.is_dir():
                raise DataError(f"folder {folder} does not exist (options: --data.root, {option})")
        return Pairs(
            by_stem(list_images(images), images, self.image_suffix),
            by_stem(list_images(masks), masks, self.mask_suffix),
        )

    def _match(self, image_folder: Path, mask_folder: Path) -> Pairs:
        pairs = self._index(image_folder, mask_folder)
        images, masks = pairs
        told = []
        if lone := sorted(images.keys() - masks.keys()):
            told.append(
                f"{len(lone)} of {len(images)} images in {image_folder} without a mask in "
                f"{mask_folder}: {some(lone)}"
            )
        if lone := sorted(masks.keys() - images.keys()):
            told.append(
                f"{len(lone)} of {len(masks)} masks in {mask_folder} without an image in "
                f"{image_folder}: {some(lone)}"
            )
        if told and not self.skip_unpaired:
            raise DataError(
                f"{'; '.join(told)}. Names must agree but for the file type and "
                "--data.image_suffix, --data.mask_suffix; --data.unpaired skip leaves these out"
            )
        return pairs.only(sorted(images.keys() & masks.keys()))

    def _listed(self, path: Path) -> Pairs:
        rows = [line.split() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        rows = [row for row in rows if row]
        if all(len(row) == 2 and all(map(is_image, row)) for row in rows):
            pairs = Pairs(
                {_stem(image): self._place(image) for image, _ in rows},
                {_stem(image): self._place(mask) for image, mask in rows},
            )
            files = [*pairs.images.values(), *pairs.masks.values()]
            if absent := [str(file) for file in files if not file.is_file()]:
                raise DataError(f"{path} names files that do not exist: {some(absent)}")
            return pairs
        names = [" ".join(row) for row in rows]
        ids = [_stem(name) if is_image(name) else name for name in names]
        known = self._index(self.root / self.images, self.root / self.masks)
        for there, what, folder in (
            (known.images, "image", self.images),
            (known.masks, "mask", self.masks),
        ):
            if missing := [name for name in ids if name not in there]:
                raise DataError(
                    f"{path} names {some(missing)}, for which there is no {what} in "
                    f"{self.root / folder}"
                )
        return known.only(ids)

    def _place(self, name: str) -> Path:
        """Find a listed file; VOC's lists begin root-relative paths with a slash."""
        path = self.root / name
        return path if path.is_file() else self.root / name.lstrip("/")

    def _divided(self, split: str) -> Pairs:
        """Send every fifth image, in the order of a hash of its name, to validation."""
        images, masks = self.root / self.images, self.root / self.masks
        if not images.is_dir():
            return Pairs({}, {})
        pairs = self._match(images, masks)
        order = sorted(pairs.images, key=lambda name: hashlib.sha256(name.encode()).digest())
        held_out = order[::5]
        chosen = held_out if split == "val" else sorted(set(order) - set(held_out))
        return pairs.only(chosen)


def _stem(name: str) -> str:
    return Path(name).with_suffix("").as_posix().lstrip("/")
