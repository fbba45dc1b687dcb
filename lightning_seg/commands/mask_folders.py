"""Scores of a folder of predicted masks, against a folder of true ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from lightning_seg.errors import SetupError, require_range
from lightning_seg.scores import Scores
from lightning_seg.training.evaluation import image_counts, regions


def scores_of_masks(
    predictions: Path, truths: Path, classes: list[str], ignore_index: int = 255
) -> Scores:
    """Count the pixels of every image that has a predicted and a true mask.

    Args:
        predictions: A folder of PNG files with class ids as values, or one that holds `masks/`,
            such as the folder that `predict` writes. `ignore_index` predicts no class.
        truths: The folder of true masks; files belong together by their path without suffix.
        classes: The names of the classes.
        ignore_index: The value of true pixels to leave out.

    Raises:
        SetupError: A folder has no masks, no mask belongs to another one, two masks that belong
            together differ in size, or a value is no class.
    """
    predicted, true = mask_files(predictions), mask_files(truths, ["masks"])
    ids = sorted(predicted.keys() & true.keys())
    if not ids:
        raise SetupError(
            f"no mask of {predictions} has the name of one in {truths}: "
            f"{min(predicted)} and {min(true)}",
            option="masks",
        )
    counts = []
    for name in ids:
        mask, truth = read_mask(predicted[name]), read_mask(true[name])
        if mask.shape != truth.shape:
            raise SetupError(
                f"{predicted[name]} has {_size(mask)} pixels and {true[name]} has {_size(truth)}"
            )
        _require_classes(true[name], truth, len(classes), ignore_index)
        _require_classes(predicted[name], mask[truth != ignore_index], len(classes), ignore_index)
        counts.append(mask_counts(mask, truth, len(classes), ignore_index))
    return Scores(ids, regions(), np.stack(counts), {"classes": classes})


def mask_counts(
    mask: NDArray[np.uint8], truth: NDArray[np.uint8], num_classes: int, ignore_index: int
) -> NDArray[np.int64]:
    """Return the (R, C, 3) counts of one image in the regions of `test`.

    Args:
        mask: (H, W) predicted class ids; `ignore_index` is no class.
        truth: (H, W) true class ids, or `ignore_index`.
        num_classes: Number of classes C.
        ignore_index: The value of pixels to leave out.

    Examples:
        Three of four pixels are labelled. Class 0 is right at one of two pixels.

        >>> mask, truth = np.array([[0, 1], [1, 0]]), np.array([[0, 0], [1, 255]])
        >>> mask_counts(mask, truth, 2, 255)[0].tolist()
        [[1, 1, 2], [1, 2, 1]]
    """
    # "no class" is counted as one more class, which is left out afterwards
    known = np.where(mask == ignore_index, num_classes, mask)
    maps = [torch.from_numpy(each.astype(np.int16))[None] for each in (known, truth)]
    found = image_counts(maps[0], maps[1], num_classes + 1, ignore_index)
    return found[0, :, :num_classes].numpy()


def class_names(given: str | None, folders: list[Path], ignore_index: int) -> list[str]:
    """Return the names of the classes of mask folders.

    Args:
        given: A text file with a name a line, or the number of classes. None takes the largest
            class id in the folders, whose masks are read.
        folders: Folders of masks.
        ignore_index: The value that is no class.

    Raises:
        SetupError: The file cannot be read or is empty, or the number is not in [1, 255].
    """
    if given is None:
        files = [file for folder in folders for file in mask_files(folder).values()]
        largest = 0
        for file in files:
            values = np.unique(read_mask(file))
            largest = max(largest, *values[values != ignore_index].tolist(), 0)
        given = str(largest + 1)
    if given.isdecimal():
        require_range(1, 255, classes=int(given))
        return [f"class_{index}" for index in range(int(given))]
    try:
        lines = Path(given).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(
            f"the names of the classes cannot be read: {error}", option="classes"
        ) from error
    if not (names := [line.strip() for line in lines if line.strip()]):
        raise SetupError(f"{given} holds no names of classes", option="classes")
    return names


def mask_files(folder: Path, option: Sequence[str] = ()) -> dict[str, Path]:
    """Return the PNG files of a folder, or of its `masks/`, by their path without suffix.

    Args:
        folder: The folder.
        option: The options to change where it holds none.

    Raises:
        SetupError: There are none.
    """
    inside = folder / "masks"
    for place in (inside if inside.is_dir() else folder, folder):
        files = sorted(path for path in place.rglob("*") if path.suffix.lower() == ".png")
        if files:
            return {path.relative_to(place).with_suffix("").as_posix(): path for path in files}
    raise SetupError(f"{folder} holds no PNG masks", option=option)


def read_mask(path: Path) -> NDArray[np.uint8]:
    """Return the (H, W) values of a grey or palette PNG of 8 bits.

    Raises:
        SetupError: The file is damaged or of another kind.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "P"):
                raise SetupError(
                    f"{path} is an image of mode {image.mode}, and a mask must be a PNG of 8 bits "
                    "whose values are class ids"
                )
            return np.asarray(image)
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise SetupError(f"{path} cannot be read: {error}") from error


def _require_classes(
    path: Path, values: NDArray[np.uint8], num_classes: int, ignore_index: int
) -> None:
    wrong = values[(values >= num_classes) & (values != ignore_index)]
    if wrong.size:
        raise SetupError(
            f"{path} holds {wrong[0]}, which is neither a class in [0, {num_classes - 1}] nor "
            f"{ignore_index} (void)",
            option=("classes", "ignore_index"),
        )


def _size(mask: NDArray[np.uint8]) -> str:
    return f"{mask.shape[1]}x{mask.shape[0]}"
