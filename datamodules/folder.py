"""Your own images and masks, in folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_info

from datamodules.base import SegmentationDataModule
from datamodules.errors import DataError, some
from datamodules.images import Split
from datamodules.reading.annotations import other_annotations, seen_in_masks
from datamodules.reading.color_maps import class_names as unique_names
from datamodules.reading.color_maps import read_color_map
from datamodules.reading.layouts import FolderLayout
from datamodules.reading.mask_decoder import VOID, MaskDecoder, UnknownValues
from datamodules.reading.sources import FileSource, Source, spread


class FolderDataModule(SegmentationDataModule):
    """Image files and mask files of the same names, in one subfolder or list file per split.

    These layouts are found, with images and masks of any file type:

        root/images/train/*.jpg   root/masks/train/*.png     (and val, test)
        root/train/images/*.jpg   root/train/masks/*.png     (and val, test)
        root/images/*.jpg         root/masks/*.png           with root/train.txt, root/val.txt
        root/images/*.jpg         root/masks/*.png           without lists: a fifth is for val
        root/train/*.jpg          root/train/*_mask.png      images and masks "." with a suffix

    A subfolder `train` goes before a list `train.txt`; the option `train` can name the list. A
    line of a list is an id (`a/b` for `images/a/b.jpg`), the path of an image, or the paths of an
    image and its mask with a comma or white space between them; paths are absolute or relative to
    the root. The validation split replaces a test split that is missing and was not named.

    The classes are given by one of `num_classes`, `mask_values` and `color_map`.

    Args:
        root: Folder of the dataset.
        num_classes: Number of classes C of masks that store 0..C-1.
        mask_values: Stored value of every class in class order, such as [0, 255].
        color_map: RGB colours in 0..255 by class name for colour-coded masks, or the path of a
            file with them, also below the root: lines `name,r,g,b`, CVAT's `labelmap.txt`, `.json`
            or `.yaml`. A file may name stored values instead of colours, as Roboflow's
            `_classes.csv` does.
        class_names: One name per class, in class order. None takes the names of the `color_map`,
            or `class_0` and so on. A name that YAML reads as true or false needs quotes.
        void: Stored values that mean "not labelled", or names of entries of the `color_map` that
            do. None takes 255 where that is no class, and nothing with a `color_map`; of two
            classes, a mask of 0 and 255 alone is then an error, because 255 may be a class.
        unknown_values: Effect of a stored value that is neither class nor void: `error` stops,
            `void` makes the pixel void, `nearest` takes the nearest value or colour, for masks
            saved as JPEG.
        images: Name of the image folder.
        masks: Name of the mask folder.
        image_suffix: End of image names that mask names do not have, such as `_img`, `_img.tif` or
            `.jpg`; a mapping such as `{train: _training, val: _test}` has one for each split.
        mask_suffix: End of mask names that image names do not have, in the same form, such as
            `_mask` for `a.jpg` and `a_mask.png`. Images and masks may then lie in one folder.
        train: Name of the subfolder or list file of the training split.
        val: Name of the subfolder or list file of the validation split.
        test: Name of the subfolder or list file of the test split.
        unpaired: `error` stops at an image without a mask or a mask without an image; `skip`
            leaves them out.
        loader_options: Arguments of `SegmentationDataModule`.

    Raises:
        DataError: An option or a file is wrong; the message has the file and what was expected.
    """

    def __init__(
        self,
        root: str,
        num_classes: int | None = None,
        mask_values: list[int] | None = None,
        color_map: dict[str, list[int]] | str | None = None,
        class_names: list[str | bool] | None = None,
        void: list[int | str] | None = None,
        unknown_values: UnknownValues = "error",
        images: str = "images",
        masks: str = "masks",
        image_suffix: str | dict[str, str] = "",
        mask_suffix: str | dict[str, str] = "",
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
        # what the verb autolabel wrote has no class 255
        self._void_given = void is not None or (self.root / "autolabel.json").is_file()
        self._palette: list[list[int]] | None = None
        if color_map is not None:
            names, self.decoder = self._decode_colors(color_map, void, unknown_values)
        else:
            values = self._values(num_classes, mask_values, class_names)
            self.decoder = self._decode_values(values, _void_values(void, values), unknown_values)
            names = [f"class_{index}" for index in range(len(values))]
        given = {
            "num_classes": num_classes,
            "mask_values": mask_values and len(mask_values),
            "class_names": class_names and len(class_names),
        }
        if wrong := {name: size for name, size in given.items() if size not in (None, len(names))}:
            raise DataError(
                f"there are {len(names)} classes, but {wrong}: these options must agree",
                option=list(wrong),
            )
        self._class_names = unique_names(class_names or names, "class_names")

    @property
    def class_names(self) -> list[str]:
        """One name per class, in class order."""
        return self._class_names

    @property
    def dataset_name(self) -> str:
        """The name of the root folder, for the path of label splits."""
        return self.root.resolve().name

    @property
    def palette(self) -> list[list[int]] | None:
        """The colours of the colour map; None without one."""
        return self._palette

    def source(self, split: Split) -> FileSource:
        """Return all examples of a split.

        Raises:
            DataError: Files are missing or unpaired.
        """
        if split == "test" and not self.layout.has("test") and self.layout.splits["test"] == "test":
            rank_zero_info(f"no test split in {self.root}: the validation split takes its place")
            return self.source("val")
        pairs = self.layout.pairs(split, self.skip_unpaired)
        return FileSource(pairs.images, pairs.masks, self.decoder)

    def predict_source(self) -> Source:
        """Return the images to predict; a test folder of images needs no masks."""
        images = self.layout.images_without_masks("test") if self.predict is None else None
        return super().predict_source() if images is None else FileSource(images)

    def _decode_colors(
        self,
        color_map: dict[str, list[int]] | str,
        void: Sequence[int | str] | None,
        unknown_values: UnknownValues,
    ) -> tuple[list[str], MaskDecoder]:
        """Return class names and decoder of masks whose classes a colour map names."""
        if isinstance(color_map, str) and not Path(color_map).expanduser().is_file():
            inside = self.root / color_map
            color_map = str(inside) if inside.is_file() else color_map
        codes = read_color_map(color_map)
        of_values = all(len(code) == 1 for code in codes.values())
        void_names = [str(name) for name in void or () if str(name) in codes or not of_values]
        if missing := [name for name in void_names if name not in codes]:
            raise DataError(
                f"void names {some(missing)}, which the colour map does not hold; it holds "
                f"{some(list(codes), 20)}",
                option=("void", "color_map"),
            )
        names = [name for name in codes if name not in void_names]
        if of_values:
            values = [codes[name][0] for name in names]
            others = [value for value in void or () if str(value) not in codes]
            unlabeled = _void_values(others or None, values) if others or void is None else []
            unlabeled += [codes[name][0] for name in void_names]
            return names, self._decode_values(values, unlabeled, unknown_values)
        self._palette = [list(codes[name]) for name in names]
        return names, MaskDecoder(
            None, self._palette, [codes[name] for name in void_names], unknown_values
        )

    def _decode_values(
        self, values: list[int], void: list[int], unknown_values: UnknownValues
    ) -> MaskDecoder:
        """Return the decoder of masks that store a value per class."""
        assumed = not self._void_given and len(values) == 2 and void == [VOID]
        return MaskDecoder(values, None, void, unknown_values, assumed_void=assumed)

    def _values(
        self,
        num_classes: int | None,
        mask_values: list[int] | None,
        class_names: Sequence[object] | None,
    ) -> list[int]:
        """Return the stored value of every class."""
        if mask_values is not None:
            return mask_values
        count = num_classes if num_classes is not None else len(class_names or ())
        if count < 1:
            raise DataError(
                "which classes do the masks hold? Give the number of classes (stored values 0, 1, "
                "...), their stored values such as [0,255], or a file with a line name,r,g,b per "
                f"class. {self._seen_in_masks()}",
                option=("num_classes", "mask_values", "color_map"),
            )
        return list(range(count))

    def _seen_in_masks(self) -> str:
        """Return one sentence about the values or colours of some masks, for an error."""
        files = self.layout.mask_files()
        for folder in self.layout.mask_folders():
            if other := other_annotations(folder, masks=bool(files)):
                return other
        if not files:
            return f"No masks were found in {self.root}"
        chosen = spread(files, 16)
        return seen_in_masks(chosen[::2] + chosen[1::2])

    def probe(self, source: Source) -> set[int]:
        """Decode up to 8 examples, so that an error comes before training.

        Returns:
            The class ids in their masks.

        Raises:
            DataError: An example cannot be used, or all masks hold 0 and 255 alone, where 255 may
                be a class or void.
        """
        seen = super().probe(source)
        if seen == {0, VOID} and not self._void_given:
            raise DataError(
                f"the masks in {self.root} hold 0 and 255 and no other class: is 255 a class, "
                "or is it void?",
                option=("mask_values [0,255]", "void [255]"),
            )
        return seen


def _void_values(void: Sequence[int | str] | None, values: Sequence[int]) -> list[int]:
    """Return the stored values that mean void."""
    if void is None:
        return [] if VOID in values else [VOID]
    if wrong := [value for value in void if not isinstance(value, int)]:
        raise DataError(
            f"void is {wrong}; without a colour map it must hold stored values", option="void"
        )
    return [int(value) for value in void]
