"""Which training images keep their labels, and which are treated as if they had none.

The choice is a function of the images' ids, the amount and a seed, the same on any machine: ids
are ordered by a hash of seed and id, and the first of that order keep their labels. So with one
seed the images of 1/16 are among those of 1/8.
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

Amount = int | float | str


class LabelSplit(NamedTuple):
    """Ids of the images with and without labels, disjoint, each in sorted order."""

    labeled: list[str]
    unlabeled: list[str]

    def write(self, folder: Path) -> None:
        """Write `labeled.txt` and `unlabeled.txt`, an id a line, each whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, ids in self._asdict().items():
            temporary = folder / f".{name}.{os.getpid()}"
            temporary.write_text("".join(f"{each}\n" for each in ids), encoding="utf-8")
            temporary.replace(folder / f"{name}.txt")


def count_labeled(amount: Amount, total: int) -> int:
    """Return how many of `total` images an amount means, rounded down.

    Args:
        amount: A fraction `1/8`, a share 0.05 in (0, 1], or a number of images 662.
        total: Number of training images.

    Raises:
        DataError: Not an amount, none of the images, or more than there are.

    >>> [count_labeled(amount, 10582) for amount in ("1/8", "1/4", "1/2", 0.05, 662)]
    [1322, 2645, 5291, 529, 662]
    """
    share = _share(amount)
    if share is None:
        count = int(amount)
        if not 1 <= count <= total:
            raise DataError(f"--data.labeled {amount}: there are {total} training images")
        return count
    if not 0 < share <= 1:
        raise DataError(f"--data.labeled {amount} must lie in (0, 1], or be a number of images")
    count = int(share * total)
    if count == 0:
        raise DataError(
            f"--data.labeled {amount} of {total} training images is none; at least "
            f"{Fraction(1, total)} keeps one"
        )
    return count


def _share(amount: Amount) -> Fraction | None:
    """Read an amount as a share of the images, exactly; None for a number of images."""
    text = str(amount).strip()
    if re.fullmatch(r"-?\d+", text):
        return None
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise DataError(
            f"--data.labeled {amount}: expected a fraction such as 1/8, a share such as 0.05, a "
            "number of images such as 662, or a list file that exists"
        ) from None


def draw_split(
    ids: Sequence[str],
    count: int,
    seed: int,
    presence: NDArray[np.bool_] | None = None,
) -> LabelSplit:
    """Choose the images that keep their labels.

    Args:
        ids: All training images; their order does not matter.
        count: How many keep their labels.
        seed: Another seed, another choice.
        presence: (len(ids), C), True where an image shows a class. Given, every class that occurs
            is in the labelled part: beginning with the rarest, the first image in the seed's order
            that shows it is taken; the rest is filled up in that order.

    Raises:
        DataError: So few images that not every class can be among them.
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
            f"--data.stratified: {len(chosen)} labelled images are needed to show every class, "
            f"--data.labeled gives {count}"
        )
    taken = set(chosen)
    return chosen + [name for name in order if name not in taken][: count - len(chosen)]


def divide(
    source: Source, amount: Amount, seed: int, folder: Path | None, num_classes: int | None = None
) -> LabelSplit:
    """Divide training images into those that keep their labels and the others.

    Args:
        source: All training examples.
        amount: See `count_labeled`; or the path of a list, see `read_split`.
        seed: Another seed, another choice.
        folder: The dataset's folder, below which the choice is kept; None keeps it nowhere.
        num_classes: Given, every class is to be in the labelled part.

    Raises:
        DataError: An impossible amount, or a list that does not fit the images.
    """
    images: dict[str, Path | None] = dict.fromkeys(source.ids)
    images |= dict(zip(source.ids, files(source), strict=False))
    listed = Path(str(amount)).expanduser()
    if listed.suffix == ".txt" or listed.is_file():
        if not listed.is_file():
            raise DataError(f"list {listed} does not exist (option: --data.labeled)")
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
    """Read a list of labelled images; `unlabeled.txt` beside a `labeled.txt` is read with it.

    Args:
        path: A text file. A line is an id, an image's path, or the paths of an image and its mask.
        images: The image file of every training id, None where it is not a file.

    Raises:
        DataError: An unknown, a repeated or an overlapping name, or an empty list.
    """
    labeled = _read_ids(path, images)
    if not labeled:
        raise DataError(f"{path} names no images (option: --data.labeled)")
    other = path.with_name("unlabeled.txt")
    if path.name != "labeled.txt" or not other.is_file():
        return LabelSplit(sorted(labeled), sorted(set(images) - set(labeled)))
    unlabeled = _read_ids(other, images)
    if both := sorted(set(labeled) & set(unlabeled)):
        raise DataError(f"{path} and {other} both name {some(both)}")
    return LabelSplit(sorted(labeled), sorted(unlabeled))


def _read_ids(path: Path, images: Mapping[str, Path | None]) -> list[str]:
    by_name: dict[str, list[str]] = {}
    for name, file in images.items():
        for key in {Path(name).name, file.stem if file else name}:
            by_name.setdefault(key, []).append(name)
    found = [_find(line, images, by_name, path) for line in read_lines(path)]
    if len(set(found)) < len(found):
        twice = sorted(name for name, times in Counter(found).items() if times > 1)
        raise DataError(f"{path} names {some(twice)} more than once")
    return found


def _find(
    line: str, images: Mapping[str, Path | None], by_name: Mapping[str, list[str]], origin: Path
) -> str:
    """Find the id that a line stands for: all of it, or the first of two paths."""
    words = [line, re.split(r"[,\t]", line)[0].strip()]
    if all(map(is_image, line.split())):
        words.append(line.split()[0])
    matches: list[str] = []
    for word in words:
        wanted = Path(word).with_suffix("") if is_image(word) else Path(word)
        if found := [name for name in (word, wanted.as_posix()) if name in images]:
            return found[0]
        matches = matches or [
            name
            for name in by_name.get(wanted.name, ())
            if _ends_with(Path(name), wanted)
            or _ends_with((images[name] or Path(name)).with_suffix(""), wanted)
        ]
    if len(matches) != 1:
        problem = f"fits {some(matches)}" if matches else "is no training image"
        raise DataError(
            f"{origin} names {line}, which {problem}; ids look like "
            f"{some(sorted(images), 3)} (option: --data.labeled)"
        )
    return matches[0]


def _ends_with(path: Path, end: Path) -> bool:
    parts = [part for part in end.parts if part != os.sep]
    return list(path.parts[-len(parts) :]) == parts


def stored_split(
    folder: Path, images: Mapping[str, Path | None], draw: Callable[[], LabelSplit]
) -> LabelSplit:
    """Return the split whose lists lie in a folder; draw and write it where there is none.

    Lists that divide just these images are taken, also when somebody has edited them. Lists of
    other images stay as they are: the new split goes beside them.

    Args:
        folder: `splits/<dataset>/<amount>/seed<k>`.
        images: As for `read_split`.
        draw: Makes the split.

    Raises:
        DataError: The lists name some of these images and have a mistake.
    """
    digest = sha256("\n".join(sorted(images)).encode()).hexdigest()[:8]
    for place in (folder, folder.with_name(f"{folder.name}-{digest}")):
        if not (place / "labeled.txt").is_file():
            break
        try:
            found = read_split(place / "labeled.txt", images)
            if not (left := sorted(set(images) - set(found.labeled) - set(found.unlabeled))):
                return found
            reason = f"{place}: {len(left)} of {len(images)} images are in no list: {some(left)}"
        except DataError as error:
            reason = str(error)
        lines = read_lines(place / "labeled.txt")
        if not lines or any(line in images for line in lines):
            raise DataError(f"{reason}. Mend these lists, or delete {place} to draw new ones")
        rank_zero_warn(f"the split in {place} is not of these images and left alone: {reason}")
    split = draw()
    try:
        split.write(place)
        rank_zero_info(f"{len(split.labeled)} of {len(images)} images are labelled: {place}")
    except OSError as error:
        rank_zero_warn(f"the split could not be written to {place}: {error}")
    return split
