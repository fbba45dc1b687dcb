"""Reading a whole dataset once: what it holds, and every file that a run would stumble over."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from datamodules.base import SegmentationDataModule, Split, spread
from datamodules.errors import DataError, UnpairedError, some
from datamodules.loading.loaders import cores, one_thread
from datamodules.reading.files import is_turned, read_mask
from datamodules.reading.mask_decoder import VOID
from datamodules.reading.sources import Example, FileSource, Source, Subset, files

Progress = Callable[[str, int, int], None]
"""Called with a split's name, how many of its examples were read, and how many there are."""

_REMARKS = {
    "deep": "images of more than 8 bits a channel, which are scaled to 8",
    "plain": "images of a single colour",
    "void": "images without a labelled pixel",
    "turned": "images that are turned as their EXIF tag says, which their masks must fit",
}


class Defect(NamedTuple):
    """Something that stops a run or spoils its result."""

    split: str
    id: str | None
    """The example; None where no single one is at fault."""
    message: str


@dataclass
class SplitReport:
    """What one split holds.

    Attributes:
        source: Its examples.
        sizes: Number of readable images per (height, width).
        labeled: Number of examples with a sound mask.
        pixels: (256,) pixels per class id over all sound masks; 255 is void.
        images_with: (256,) sound masks that hold each class id.
        broken: Indices of the examples with a defect.
        remarks: Names of the images that are odd but usable, by kind.
    """

    source: Source
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    labeled: int = 0
    pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))
    images_with: NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))
    broken: set[int] = field(default_factory=set)
    remarks: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def shares(self) -> NDArray[np.float64]:
        """Return (256,) shares in [0, 1] of the pixels, void among them; zeros where none are."""
        shares: NDArray[np.float64] = self.pixels / max(1, self.pixels.sum())
        return shares

    def typical_sizes(self) -> tuple[tuple[int, int], ...]:
        """Return the smallest, the median and the largest (height, width), by area; or nothing."""
        ordered = sorted(self.sizes.elements(), key=lambda size: (size[0] * size[1], size))
        return (ordered[0], ordered[len(ordered) // 2], ordered[-1]) if ordered else ()

    def examples(self, at_most: int) -> list[Example]:
        """Read sound examples at even distances."""
        sound = [index for index in range(len(self.source)) if index not in self.broken]
        return [self.source[index] for index in spread(sound, at_most)]


@dataclass
class Report:
    """What a dataset holds and what is wrong with it.

    Attributes:
        class_names: One per class, in class order.
        splits: The splits that were found, by name.
        defects: Everything that must be mended.
        notes: What is worth knowing and may be intended.
    """

    class_names: list[str]
    splits: dict[str, SplitReport] = field(default_factory=dict)
    defects: list[Defect] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain numbers, texts, lists and mappings, for a file."""
        return {
            "class_names": self.class_names,
            "splits": {name: self._split_as_dict(split) for name, split in self.splits.items()},
            "defects": [defect._asdict() for defect in self.defects],
            "notes": self.notes,
        }

    def _split_as_dict(self, split: SplitReport) -> dict[str, Any]:
        classes, shares = len(self.class_names), split.shares()
        sizes = zip(("smallest", "median", "largest"), split.typical_sizes(), strict=False)
        return {
            "images": len(split.source),
            "labeled": split.labeled,
            "different_sizes": len(split.sizes),
            "height_width": {name: list(size) for name, size in sizes},
            "pixels": split.pixels[:classes].tolist(),
            "pixel_shares": shares[:classes].tolist(),
            "images_with": split.images_with[:classes].tolist(),
            "void_pixels": int(split.pixels[VOID]),
            "void_share": float(shares[VOID]),
        }


def scan(
    data: SegmentationDataModule, workers: int | None = None, progress: Progress | None = None
) -> Report:
    """Read every example of train, val and test once, and unlabelled images if they are trained on.

    Args:
        data: Needs no `setup`. A test split that is the validation split again is left out.
        workers: Reading processes; 0 reads in this one, None takes one per granted core.
        progress: Told how far it is.

    Raises:
        DataError: No split was found at all.
    """
    sources, defects = _find(data)
    report = Report(data.class_names, defects=defects)
    seen: dict[bytes, list[tuple[str, str]]] = defaultdict(list)
    for name, source in sources.items():
        split = report.splits[name] = SplitReport(source)
        ids = source.ids
        for index, look in enumerate(_looks(source, data.num_classes, workers)):
            report.defects += [Defect(name, ids[index], text) for text in look.defects]
            if look.digest is not None:
                seen[look.digest].append((name, look.name))
            _add(split, index, look)
            if progress is not None:
                progress(name, index + 1, len(source))
    _judge_copies(report, list(seen.values()), data.trains_on_val)
    report.notes += _notes(report, data)
    return report


def _find(data: SegmentationDataModule) -> tuple[dict[str, Source], list[Defect]]:
    """Find the files of every split; what is wrong with one leaves the others."""
    sources: dict[str, Source] = {}
    defects: list[Defect] = []
    splits: tuple[Split, ...] = ("train", "val", "test")
    for split in splits:
        try:
            source, lone = _paired(data, split)
        except DataError as error:
            # a test split that is the validation split fails for the same reason
            if str(error) not in [defect.message for defect in defects]:
                defects.append(Defect(split, None, str(error)))
            continue
        if split == "test" and _same_files(source, sources.get("val")):
            continue
        sources[split] = source
        defects += [Defect(split, None, text) for text in lone]
        if len(source) == 0:
            told = f"split {split!r} of {type(data).__name__} has no images"
            defects.append(Defect(split, None, told))
    if not sources:
        raise DataError("\n".join(defect.message for defect in defects))
    try:
        if (unlabeled := _unlabeled(data, sources.get("train"))) is not None:
            sources["unlabeled"] = unlabeled
    except DataError as error:
        defects.append(Defect("unlabeled", None, str(error)))
    return sources, defects


def _unlabeled(data: SegmentationDataModule, train: Source | None) -> Source | None:
    """Return the images that only semi-supervised training reads, where it will."""
    if train is None:
        return None
    split = data.label_split(train)
    own = data.unlabeled is not None or bool(data.extra_images())
    if not (own and data.unlabeled_batch_size and data.shards is None):
        return None
    lost = 0 if split is None else len(split.unlabeled)
    source = data.unlabeled_source(train, split)
    return Subset(source, source.ids[lost:])  # the others have been read as training images


def _paired(data: SegmentationDataModule, split: Split) -> tuple[Source, list[str]]:
    """Return a split's pairs, and one sentence for each file that has no counterpart."""
    try:
        return data.source(split), []
    except UnpairedError as error:
        data.skip_unpaired, before = True, data.skip_unpaired
        try:
            return data.source(split), error.defects
        finally:
            data.skip_unpaired = before


def _same_files(source: Source, other: Source | None) -> bool:
    if not isinstance(source, FileSource) or not isinstance(other, FileSource):
        return False
    return len(source) > 0 and set(source.images.values()) == set(other.images.values())


class _Look(NamedTuple):
    """What is kept of one example: no pixels."""

    name: str
    size: tuple[int, int] | None = None
    digest: bytes | None = None
    counts: NDArray[np.int64] | None = None
    defects: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


class _Looks(Dataset[_Look]):
    def __init__(self, source: Source, num_classes: int) -> None:
        self.source = source
        self.num_classes = num_classes
        self.files = files(source)
        self.names = [str(path) for path in self.files] or source.ids

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> _Look:
        name = self.names[index]
        try:
            with _complaints() as told:
                example = self.source[index]
            if told:
                raise DataError(f"{name} is damaged: {told[0]}")
        except Exception as error:
            image, defects = _what_is_sound(self.source, index, error)
            look = _Look(name, defects=defects)
            return look if image is None else _seen(look, image)
        look = _seen(_Look(name), example.image)
        if self.files and _is_deep(self.files[index]):
            look = look._replace(remarks=(*look.remarks, "deep"))
        if self.files and is_turned(self.files[index]):
            look = look._replace(remarks=(*look.remarks, "turned"))
        return look if example.mask is None else self._labeled(look, example)

    def _labeled(self, look: _Look, example: Example) -> _Look:
        """Add what the mask holds."""
        mask = example.mask
        assert mask is not None
        if mask.shape != example.image.shape[:2]:
            told = f"{look.name} is {example.image.shape[:2]} pixels, its mask {mask.shape}"
            return look._replace(defects=(told,))
        counts = np.bincount(mask.ravel(), minlength=256)
        if len(wrong := np.flatnonzero(counts[self.num_classes : VOID])):
            ids = some([str(value + self.num_classes) for value in wrong])
            told = f"the mask of {look.name} holds {ids}, expected 0..{self.num_classes - 1}"
            return look._replace(defects=(told,))
        empty = ("void",) if counts[VOID] == mask.size else ()
        return look._replace(counts=counts, remarks=look.remarks + empty)


@contextlib.contextmanager
def _complaints() -> Iterator[list[str]]:
    """Collect what libjpeg prints about broken data that it has filled up."""
    told: list[str] = []
    with tempfile.TemporaryFile() as file:
        usual = os.dup(2)
        try:
            os.dup2(file.fileno(), 2)
            yield told
        finally:
            os.dup2(usual, 2)
            os.close(usual)
            file.seek(0)
            lines = file.read().decode(errors="replace").splitlines()
            told += [line for line in lines if "Corrupt JPEG" in line]


def _looks(source: Source, num_classes: int, workers: int | None) -> Iterator[_Look]:
    """Examine all examples in order, in several processes."""
    loader = DataLoader(
        _Looks(source, num_classes),
        batch_size=8,
        num_workers=cores() if workers is None else workers,
        collate_fn=list,
        worker_init_fn=one_thread,
    )
    for batch in loader:
        yield from batch


def _seen(look: _Look, image: NDArray[np.uint8]) -> _Look:
    """Add what the image is."""
    size = (image.shape[0], image.shape[1])
    digest = sha256(repr(size).encode())
    digest.update(image.tobytes())
    # most images differ within their first row
    plain = bool((image[0] == image[0, 0]).all()) and bool((image == image[0, 0]).all())
    return look._replace(
        size=size, digest=digest.digest()[:16], remarks=("plain",) if plain else ()
    )


def _what_is_sound(
    source: Source, index: int, error: Exception
) -> tuple[NDArray[np.uint8] | None, tuple[str, ...]]:
    """Return the image of a broken example if it is sound, and what is wrong with either file."""
    known = isinstance(error, DataError)
    told = str(error) if known else f"{source.ids[index]}: {type(error).__name__}: {error}"
    if not known or not isinstance(source, FileSource):
        return None, (told,)
    try:
        return source.without_labels()[index].image, (told,)
    except DataError:
        pass  # the image itself, then: the mask has not been looked at
    if source.masks is not None and source.decode is not None:
        path = source.masks[source.ids[index]]
        try:
            source.decode(read_mask(path, source.decode.as_color), path)
        except DataError as other:
            return None, (told, str(other))
    return None, (told,)


def _is_deep(path: Path) -> bool:
    with Image.open(path) as image:
        return image.mode.startswith("I") or image.mode == "F"


def _add(split: SplitReport, index: int, look: _Look) -> None:
    if look.size is not None:
        split.sizes[look.size] += 1
    if look.counts is not None:
        split.labeled += 1
        split.pixels += look.counts
        split.images_with += look.counts > 0
    if look.defects:
        split.broken.add(index)
    for remark in look.remarks:
        split.remarks[remark].append(look.name)


def _judge_copies(report: Report, groups: list[list[tuple[str, str]]], trains_on_val: bool) -> None:
    """Report images that are in two splits: what is trained on must not be scored on."""
    scored = {"val", "test"} if trains_on_val else {"train", "val", "test"}
    within: Counter[str] = Counter()
    for group in groups:
        splits = dict.fromkeys(split for split, _ in group)
        evaluated = splits.keys() & {"val", "test"}
        if len(splits.keys() & scored) > 1 or ("unlabeled" in splits and evaluated):
            told = ", ".join(f"{name} ({split})" for split, name in group)
            report.defects.append(
                Defect(group[-1][0], None, f"the same image in two splits: {told}")
            )
        elif len(splits) > 1:
            within[" and ".join(splits)] += 1
        elif len(group) > 1:
            within[group[0][0]] += 1
    report.notes += [
        f"{split}: images that come more than once: {count}" for split, count in within.items()
    ]


def _notes(report: Report, data: SegmentationDataModule) -> list[str]:
    notes = [
        f"{name}: {_REMARKS[kind]} ({len(found)}): {some(found)}"
        for name, split in report.splits.items()
        for kind, found in sorted(split.remarks.items())
    ]
    train, val = report.splits.get("train"), report.splits.get("val")
    if train is not None and train.labeled:
        counts = train.pixels[: data.num_classes]
        if absent := [data.class_names[index] for index in np.flatnonzero(counts == 0)]:
            notes.append(f"train: never holds {some(absent, 10)}")
    if data.shards is not None:
        notes.append("unlabeled: the images in --data.unlabeled_shards were not read")
    if val is not None and len(val.sizes) > 1 and data.val_batch_size > 1:
        notes.append(
            f"val: images of {len(val.sizes)} sizes cannot share a batch; use "
            f"--data.val_batch_size 1 instead of {data.val_batch_size}"
        )
    return notes
