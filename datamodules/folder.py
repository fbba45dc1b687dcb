"""Anybody's images and masks, in folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from datamodules.base import SegmentationDataModule, Split, spread
from datamodules.errors import DataError, some
from datamodules.reading.files import read_mask
from datamodules.reading.layouts import FolderLayout
from datamodules.reading.mask_decoder import VOID, MaskDecoder, UnknownValues, read_color_map
from datamodules.reading.sources import FileSource, Source


class FolderDataModule(SegmentationDataModule):
    """Image files and mask files of the same names, one split per subfolder or list file.

    Any of these layouts is found, images and masks in any file type:

        root/images/train/*.jpg   root/masks/train/*.png     (and val, test)
        root/train/images/*.jpg   root/train/masks/*.png     (and val, test)
        root/images/*.jpg         root/masks/*.png           with root/train.txt, root/val.txt
        root/images/*.jpg         root/masks/*.png           alone: a fifth of the images validates

    Where there are both a subfolder and `train.txt`, the subfolder counts; `--data.train train.txt`
    asks for the list. A line of a list file is an id (`a/b` for `images/a/b.jpg`) or an image's
    path, or an image's and a mask's path, relative to the root or absolute, with a comma or white
    space between them. A test split that is missing and was not named is replaced by
    the validation split.

    The classes are given by one of `num_classes` (stored values 0, 1, ...), `mask_values` and
    `color_map`.

    Args:
        root: The folder of the dataset.
        num_classes: Number of classes, where masks store 0 .. num_classes - 1.
        mask_values: The stored value of each class in class order, e.g. [0, 255].
        color_map: Class name -> RGB for colour-coded masks, or a file with it: `.csv` lines
            `name,r,g,b`, `.json` or `.yaml`.
        class_names: One name per class, in class order; with a `color_map` its names.
        void: Stored values that mean "not labelled" (default 255, where that is no class), or
            with a `color_map` the names of its entries that do.
        unknown_values: `error` stops at a stored value that is no class, `void` leaves such
            pixels out, `nearest` takes the nearest value or colour (masks saved as JPEG).
        images: Name of the image folder.
        masks: Name of the mask folder.
        image_suffix: What image names have before the file type and masks have not.
        mask_suffix: Likewise for masks, e.g. `_mask` for `a.jpg` and `a_mask.png`.
        train: Name of the training split: a subfolder, or a list file.
        val: Name of the validation split.
        test: Name of the test split.
        unpaired: `error` stops where an image lacks its mask or a mask its image, `skip` leaves
            those out.
        loader_options: Passed to `SegmentationDataModule`.

    Raises:
        DataError: With the file, what was found and expected, and the option to change.
    """

    def __init__(
        self,
        root: str,
        num_classes: int | None = None,
        mask_values: list[int] | None = None,
        color_map: dict[str, list[int]] | str | None = None,
        class_names: list[str] | None = None,
        void: list[int | str] | None = None,
        unknown_values: UnknownValues = "error",
        images: str = "images",
        masks: str = "masks",
        image_suffix: str = "",
        mask_suffix: str = "",
        train: str = "train",
        val: str = "val",
        test: str = "test",
        unpaired: Literal["error", "skip"] = "error",
        **loader_options: Any,
    ) -> None:
        super().__init__(**loader_options)
        self.root = Path(root).expanduser()
        self.layout = FolderLayout(
            self.root,
            images,
            masks,
            {"train": train, "val": val, "test": test},
            image_suffix,
            mask_suffix,
        )
        self.skip_unpaired = unpaired == "skip"
        self._void_given = void is not None
        self._palette: list[list[int]] | None = None
        if color_map is not None:
            names, self.decoder = self._decode_colors(color_map, void, unknown_values)
        else:
            values = self._values(num_classes, mask_values, class_names)
            self.decoder = MaskDecoder(values, None, _void_values(void, values), unknown_values)
            names = [f"class_{index}" for index in range(len(values))]
        given = {
            "num_classes": num_classes,
            "mask_values": mask_values and len(mask_values),
            "class_names": class_names and len(class_names),
        }
        if wrong := {name: size for name, size in given.items() if size not in (None, len(names))}:
            raise DataError(f"{len(names)} classes, but {wrong}: these options must agree")
        self._class_names = list(class_names or names)

    @property
    def class_names(self) -> list[str]:
        """One name per class, in class order."""
        return self._class_names

    @property
    def dataset_name(self) -> str:
        """The name of the root folder."""
        return self.root.resolve().name

    @property
    def palette(self) -> list[list[int]] | None:
        """The colours of the colour map, where there is one."""
        return self._palette

    def source(self, split: Split) -> FileSource:
        """Pair the files of a split."""
        if split == "test" and not self.layout.has("test") and self.layout.splits["test"] == "test":
            rank_zero_info(f"no test split in {self.root}: the validation split takes its place")
            return self.source("val")
        pairs = self.layout.pairs(split, self.skip_unpaired)
        return FileSource(pairs.images, pairs.masks, self.decoder)

    def predict_source(self) -> Source:
        """Return the images to predict; those of a test folder need no masks."""
        images = self.layout.images_without_masks("test") if self.predict is None else None
        return super().predict_source() if images is None else FileSource(images)

    def _decode_colors(
        self,
        color_map: dict[str, list[int]] | str,
        void: Sequence[int | str] | None,
        unknown_values: UnknownValues,
    ) -> tuple[list[str], MaskDecoder]:
        colors = read_color_map(color_map)
        void_names = [str(name) for name in void or ()]
        if missing := [name for name in void_names if name not in colors]:
            raise DataError(
                f"--data.void names {some(missing)}, which the colour map does not hold; "
                f"it holds {some(list(colors), 20)}"
            )
        names = [name for name in colors if name not in void_names]
        self._palette = [list(colors[name]) for name in names]
        return names, MaskDecoder(
            None, self._palette, [colors[name] for name in void_names], unknown_values
        )

    def _values(
        self,
        num_classes: int | None,
        mask_values: list[int] | None,
        class_names: list[str] | None,
    ) -> list[int]:
        if mask_values is not None:
            return mask_values
        count = num_classes if num_classes is not None else len(class_names or ())
        if count < 1:
            raise DataError(
                "which classes do the masks hold? Give one of --data.num_classes (stored values "
                "0, 1, ...), --data.mask_values (e.g. [0,255]) and --data.color_map (a file of "
                f"name,r,g,b lines). {self._seen_in_masks()}"
            )
        return list(range(count))

    def _seen_in_masks(self) -> str:
        """Describe what a few of the mask files hold, as a help to write the options."""
        files = self.layout.mask_files()
        if not files:
            return f"No masks were found in {self.root}."
        chosen = spread(files, 16)
        rows = [read_mask(path) for path in chosen]
        flat = [row.reshape(-1, 3) if row.ndim == 3 else row.reshape(-1) for row in rows]
        if any(row.ndim == 2 for row in flat):
            found = np.unique(np.concatenate([row for row in flat if row.ndim == 2]), axis=0)
            named = some([str(tuple(color)) for color in found.tolist()], 24)
            return f"{len(chosen)} masks looked at are RGB and hold the colours {named}."
        values = np.unique(np.concatenate(flat)).tolist()
        return f"{len(chosen)} masks looked at hold the values {some(list(map(str, values)), 24)}."

    def probe(self, source: Source) -> set[int]:
        """Decode a few examples; tell 0 and 255 as two classes from one class and void."""
        seen = super().probe(source)
        if seen == {0, VOID} and self.num_classes == 2 and not self._void_given:
            raise DataError(
                f"the masks in {self.root} hold 0 and 255 but never 1. If 255 is the second "
                "class: --data.mask_values [0,255]; if it is void: --data.void [255]"
            )
        return seen


def _void_values(void: Sequence[int | str] | None, values: Sequence[int]) -> list[int]:
    if void is None:
        return [] if VOID in values else [VOID]
    if wrong := [value for value in void if not isinstance(value, int)]:
        raise DataError(f"--data.void names {wrong}; without a colour map it takes stored values")
    return [int(value) for value in void]
