"""Label splits: which training images keep their labels, and which are used without them.

The choice depends on the ids of the images, the amount and a seed alone, and is the same on every
machine: ids are ordered by a hash of seed and id, and the first ids of that order keep their
labels. Therefore, with one seed, the images of 1/16 are among those of 1/8.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray

from datamodules.errors import DataError, some
from datamodules.reading.files import is_image, read_lines
from datamodules.reading.sources import Source, files
from datamodules.selection.class_pixels import class_pixels
from lightning_seg.files import write_whole

Amount = int | float | str


class LabelSplit(NamedTuple):
    """Ids of the images with and without labels; no id is in both lists."""

    labeled: list[str]
    """Ids of the images that keep their labels, sorted."""
    unlabeled: list[str]
    """Ids of the images that are used without their labels, sorted."""

    def write(self, folder: Path) -> None:
        """Write `labeled.txt` and `unlabeled.txt` with one id a line, each whole or not at all."""
        for name, ids in self._asdict().items():
            with write_whole(folder / f"{name}.txt") as part:
                part.write_text("".join(f"{each}\n" for each in ids), encoding="utf-8")


def count_labeled(amount: Amount, total: int) -> int:
    """Return the number of images that an amount means, rounded down.

    Args:
        amount: A fraction such as `1/8`, a share such as 0.05 in (0, 1], or a number of images
            such as 662 in [1, total].
        total: Number of training images.

    Raises:
        DataError: The amount has another form, means no image, or more images than there are.

    Examples:
        >>> [count_labeled(amount, 10582) for amount in ("1/8", "1/4", "1/2", 0.05, 662)]
        [1322, 2645, 5291, 529, 662]
    """
    share = _share(amount)
    if share is None:
        count = int(amount)
        if not 1 <= count <= total:
            raise DataError(
                f"labeled must be in [1, {total}], the number of training images, not {amount}",
                option="labeled",
            )
        return count
    if not 0 < share <= 1:
        raise DataError(
            f"labeled must be in (0, 1], or a number of images, not {amount}", option="labeled"
        )
    count = int(share * total)
    if count == 0:
        raise DataError(
            f"labeled is {amount}, which of {total} training images is none; the smallest share "
            "keeps one",
            option=f"labeled {Fraction(1, total)}",
        )
    return count


def _share(amount: Amount) -> Fraction | None:
    """Return an amount as an exact share of the images; None for a number of images."""
    text = str(amount).strip()
    if re.fullmatch(r"-?\d+", text):
        return None
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise DataError(
            "labeled must be a fraction such as 1/8, a share such as 0.05, a number of images such "
            f"as 662, or a list file that exists, not {amount}",
            option="labeled",
        ) from None


def draw_split(
    ids: Sequence[str],
    count: int,
    seed: int,
    presence: NDArray[np.bool_] | None = None,
) -> LabelSplit:
    """Choose the images that keep their labels.

    Args:
        ids: Ids of all training images, in any order.
        count: Number of images that keep their labels, in [1, len(ids)].
        seed: Seed of the choice, at least 0.
        presence: (len(ids), C), True where an image shows a class: every class that occurs is then
            shown by a chosen image. For each class, beginning with the rarest, the first image in
            the order of the seed that shows it is taken; the rest is filled up in that order. None
            takes the first images of the order.

    Raises:
        DataError: `count` images cannot show every class.
    """

    def rank(name: str) -> str:
        return sha256(f"{seed}:{name}".encode()).hexdigest()

    order = sorted(ids, key=rank)
    chosen = order[:count] if presence is None else _covering(ids, order, count, presence)
    unlabeled = set(ids) - set(chosen)
    return LabelSplit(sorted(chosen), sorted(unlabeled))


def _covering(
    ids: Sequence[str], order: Sequence[str], count: int, presence: NDArray[np.bool_]
) -> list[str]:
    """Return `count` ids, the first of the order that show every class."""
    shown = {name: presence[number] for number, name in enumerate(ids)}
    frequency = presence.sum(0)
    chosen: list[str] = []
    seen = np.zeros(presence.shape[1], np.bool_)
    for label in np.argsort(frequency, kind="stable"):
        if frequency[label] and not seen[label]:
            name = next(name for name in order if shown[name][label])
            chosen.append(name)
            seen |= shown[name]
    if len(chosen) > count:
        raise DataError(
            f"{len(chosen)} labelled images are needed to show every class, but {count} keep their "
            "labels",
            option=(f"labeled {len(chosen)}", "stratified false"),
        )
    taken = set(chosen)
    return chosen + [name for name in order if name not in taken][: count - len(chosen)]


def divide(
    source: Source, amount: Amount, seed: int, folder: Path | None, num_classes: int | None = None
) -> LabelSplit:
    """Divide training images into those that keep their labels and the others.

    Args:
        source: All training examples.
        amount: An amount that `count_labeled` accepts, or the path of a list for `read_split`.
        seed: Seed of the choice, at least 0.
        folder: Folder of the dataset, below which lists of the choice are read or written; None
            neither reads nor writes lists.
        num_classes: Number of classes that the labelled part must show where they occur; None
            makes no such demand.

    Raises:
        DataError: The amount is impossible, or a list does not fit the images.
    """
    images: dict[str, Path | None] = dict.fromkeys(source.ids)
    images |= dict(zip(source.ids, files(source), strict=False))
    listed = Path(str(amount)).expanduser()
    if listed.suffix == ".txt" or listed.is_file():
        if not listed.is_file():
            raise DataError(f"list {listed} does not exist", option="labeled")
        return read_split(listed, images)
    count = count_labeled(amount, len(source))

    def draw() -> LabelSplit:
        presence = None if num_classes is None else class_pixels(source, num_classes, folder) > 0
        return draw_split(source.ids, count, seed, presence)

    kind = str(amount).strip().replace("/", "_") + ("" if num_classes is None else "-stratified")
    if folder is None:
        return draw()
    return stored_split(folder / kind / f"seed{seed}", images, draw)


def read_split(path: Path, images: Mapping[str, Path | None]) -> LabelSplit:
    """Read a list of labelled images; all others are unlabelled.

    Beside a list called `labeled.txt`, a file `unlabeled.txt` names the unlabelled images.

    Args:
        path: A text file with an id, the path of an image, or the paths of an image and its mask
            in every line.
        images: Image file of every training id; None for an example that is no file.

    Raises:
        DataError: The list is empty, names an unknown image, names one twice, or both lists name
            the same image.
    """
    labeled = _read_ids(path, images)
    if not labeled:
        raise DataError(f"{path} names no images", option="labeled")
    other = path.with_name("unlabeled.txt")
    if path.name != "labeled.txt" or not other.is_file():
        return LabelSplit(sorted(labeled), sorted(set(images) - set(labeled)))
    unlabeled = _read_ids(other, images)
    if both := sorted(set(labeled) & set(unlabeled)):
        raise DataError(f"{path} and {other} both name {some(both)}", option="labeled")
    return LabelSplit(sorted(labeled), sorted(unlabeled))


def _read_ids(path: Path, images: Mapping[str, Path | None]) -> list[str]:
    """Return the ids that a list names."""
    ids = read_lines(path)
    if not all(line in images for line in ids):  # the lists that are written here hold ids
        by_name: dict[str, list[str]] = {}
        for name, file in images.items():
            for key in {Path(name).name, file.stem if file else name}:
                by_name.setdefault(key, []).append(name)
        ids = [_find(line, images, by_name, path) for line in ids]
    if len(set(ids)) < len(ids):
        twice = sorted(name for name, times in Counter(ids).items() if times > 1)
        raise DataError(f"{path} names {some(twice)} more than once", option="labeled")
    return ids


def _find(
    line: str, images: Mapping[str, Path | None], by_name: Mapping[str, list[str]], origin: Path
) -> str:
    """Return the id that a line names.

    Args:
        line: An id, the path of an image, or the paths of an image and its mask.
        images: Image file of every training id.
        by_name: Ids by the last part of their name or path.
        origin: The list, for errors.
    """
    words = [line, re.split(r"[,\t]", line)[0].strip()]
    if all(map(is_image, line.split())):
        words.append(line.split()[0])
    matches: list[str] = []
    for word in words:
        wanted = Path(word).with_suffix("") if is_image(word) else Path(word)
        if exact := [name for name in (word, wanted.as_posix()) if name in images]:
            return exact[0]
        matches = matches or [
            name
            for name in by_name.get(wanted.name, ())
            if _ends_with(Path(name), wanted)
            or _ends_with((images[name] or Path(name)).with_suffix(""), wanted)
        ]
    if len(matches) != 1:
        problem = f"fits {some(matches)}" if matches else "is no training image"
        raise DataError(
            f"{origin} names {line}, which {problem}; ids are such as {some(sorted(images), 3)}",
            option="labeled",
        )
    return matches[0]


def _ends_with(path: Path, end: Path) -> bool:
    """Return whether the last parts of a path are those of another."""
    parts = [part for part in end.parts if part != os.sep]
    return list(path.parts[-len(parts) :]) == parts


def stored_split(
    folder: Path, images: Mapping[str, Path | None], draw: Callable[[], LabelSplit]
) -> LabelSplit:
    """Return the split whose lists are in a folder, or draw a split and write its lists.

    Lists that divide exactly these images are used, also if they were edited. Lists of other
    images stay as they are, and the lists of a new split go into a folder beside them.

    Args:
        folder: Folder of the lists, `splits/<dataset>/<amount>/seed<k>`.
        images: Image file of every training id; None for an example that is no file.
        draw: Returns a new split.

    Raises:
        DataError: The lists name some of these images and have a mistake.
    """
    digest = sha256("\n".join(sorted(images)).encode()).hexdigest()[:8]
    for place in (folder, folder.with_name(f"{folder.name}-{digest}")):
        if not (place / "labeled.txt").is_file():
            break
        try:
            stored = read_split(place / "labeled.txt", images)
            if not (left := sorted(set(images) - set(stored.labeled) - set(stored.unlabeled))):
                return stored
            reason = f"{place}: {len(left)} of {len(images)} images are in no list: {some(left)}"
        except DataError as error:
            reason = str(error)
        lines = read_lines(place / "labeled.txt")
        if not lines or any(line in images for line in lines):
            raise DataError(f"{reason}. Correct these lists, or delete {place} to draw new ones")
        rank_zero_warn(f"the split in {place} is of other images and left alone: {reason}")
    split = draw()
    try:
        split.write(place)
        rank_zero_info(f"{len(split.labeled)} of {len(images)} images are labelled: {place}")
    except OSError as error:
        rank_zero_warn(f"the split could not be written to {place}: {error}")
    return split
