"""Sources of examples: files, a part of another source, several sources in a row."""

from __future__ import annotations

import bisect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from datamodules.errors import DataError
from datamodules.reading.cache import DecodedCache
from datamodules.reading.decoding import (
    USUAL,
    Reading,
    image_size,
    is_turned,
    read_image,
)
from datamodules.reading.mask_decoder import VOID, MaskDecoder
from datamodules.reading.mask_files import read_mask

T = TypeVar("T")


class Example(NamedTuple):
    """An image, and its mask where it is labelled."""

    id: str
    """Name of the example in its source."""
    image: NDArray[Any]
    """(H, W, C), uint8 or float32 in [0, 1]; smaller where the file was decoded at a part of its
    size. Three channels are RGB."""
    mask: NDArray[np.uint8] | None
    """(H, W) class ids, 255 where void; None where there are no labels."""
    reduced: int = 1
    """Factor by which `image` is smaller than the image in the file, at least 1."""
    full_size: tuple[int, int] | None = None
    """(H, W) of the image in the file; None where `image` has that size."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the image in the file."""
        height, width = self.image.shape[:2]
        return self.full_size or (height, width)


class Source(ABC):
    """Examples by index, from 0 to `len(source)` - 1."""

    @property
    @abstractmethod
    def ids(self) -> Sequence[str]:
        """One name per example, without duplicates."""

    @abstractmethod
    def read(self, index: int, reduce: int = 1) -> Example:
        """Return an example.

        Args:
            index: Position of the example.
            reduce: 1, 2, 4 or 8; the image may be decoded at 1/`reduce` of its size to save time.

        Raises:
            DataError: The example cannot be used.
        """

    def labels_version(self) -> str | None:
        """Return a text that differs after any change of labels; None where there is none."""
        return None

    def mask(self, index: int) -> NDArray[np.uint8] | None:
        """Return the (H, W) class ids of an example, without reading its image where possible."""
        return self.read(index).mask

    def __getitem__(self, index: int) -> Example:
        """Return an example at its full size."""
        return self.read(index)

    def __len__(self) -> int:
        return len(self.ids)


class FileSource(Source):
    """Examples read from image and mask files.

    Args:
        images: Image files by id.
        masks: Mask files by id, one for every image; None for images without labels.
        decode: Turns the stored values of a mask file into class ids.
        cache: Keeps decoded images and masks; None decodes the files each time.
        reading: Range of deep images, and largest size of a file.
    """

    def __init__(
        self,
        images: dict[str, Path],
        masks: dict[str, Path] | None = None,
        decode: MaskDecoder | None = None,
        cache: DecodedCache | None = None,
        reading: Reading = USUAL,
    ) -> None:
        self._ids = sorted(images)
        self.images = images
        self.masks = masks
        self.decode = decode
        self.cache = cache
        self.reading = reading

    @property
    def ids(self) -> list[str]:
        """The names of the examples, sorted."""
        return self._ids

    def read(self, index: int, reduce: int = 1) -> Example:
        """Read an example.

        Args:
            index: Position of the example.
            reduce: 1, 2, 4 or 8; a JPEG is decoded at 1/`reduce` of its size without a cache.

        Raises:
            DataError: A file cannot be read, image and mask differ in size, or the mask holds a
                value that is no class.
        """
        name = self._ids[index]
        example = self._image(name, reduce)
        if self.masks is None or self.decode is None:
            return example
        path, mask = self.images[name], self._mask(self.masks[name], self.decode)
        if mask.shape != example.size:
            turned = [str(each) for each in (path, self.masks[name]) if is_turned(each)]
            raise DataError(
                f"image {path} is {_size(example.size)} pixels (width x height) but mask "
                f"{self.masks[name]} is {_size(mask.shape)}; they must agree"
                + (f" (after {turned[0]} was turned as its EXIF tag says)" if turned else "")
            )
        return example._replace(mask=mask)

    def labels_version(self) -> str | None:
        """Return the decoder, and name, size and time of change of every mask file."""
        if self.masks is None or self.decode is None:
            return None
        states = [(name, self.masks[name].stat()) for name in self._ids]
        lines = [f"{name} {state.st_size} {state.st_mtime_ns}" for name, state in states]
        return "\n".join([self.decode.fingerprint, *lines])

    def mask(self, index: int) -> NDArray[np.uint8] | None:
        """Read the (H, W) class ids of an example, without its image."""
        if self.masks is None or self.decode is None:
            return None
        return self._mask(self.masks[self._ids[index]], self.decode)

    def without_labels(self) -> FileSource:
        """Return the same images without their masks, which are then not read."""
        return FileSource(self.images, cache=self.cache, reading=self.reading)

    def read_mask(self, path: Path) -> NDArray[np.uint8]:
        """Read the (H, W) class ids of a mask file, without the cache."""
        assert self.decode is not None
        return self.decode(read_mask(path, self.decode.as_color, self.reading.max_pixels), path)

    def _image(self, name: str, reduce: int) -> Example:
        path = self.images[name]
        if self.cache is not None:
            channels = "" if self.reading.channels == 3 else f" {self.reading.channels} channels"
            kind = f"image {self.reading.image_range or ''}{channels}".strip()
            read = partial(read_image, path, reading=self.reading)
            return Example(name, self.cache.get(path, read, kind), None)
        image = read_image(path, reduce, self.reading)
        if reduce > 1 and image.shape[:2] != (size := image_size(path, self.reading.channels)):
            return Example(name, image, None, reduce, size)
        return Example(name, image, None)

    def _mask(self, path: Path, decode: MaskDecoder) -> NDArray[np.uint8]:
        if self.cache is None:
            return self.read_mask(path)
        return self.cache.get(path, partial(self.read_mask, path), kind=decode.fingerprint)


class Subset(Source):
    """A part of a source's examples, in the order of the source.

    Args:
        source: The whole.
        ids: Names of the examples of the part.
        labels: False returns examples without masks, which are then not read.
    """

    def __init__(self, source: Source, ids: Sequence[str], labels: bool = True) -> None:
        wanted = set(ids)
        self.numbers = [number for number, name in enumerate(source.ids) if name in wanted]
        self.source = source if labels else without_labels(source)
        self._ids = [source.ids[number] for number in self.numbers]

    @property
    def ids(self) -> list[str]:
        """The names of the examples."""
        return self._ids

    def labels_version(self) -> str | None:
        """Return the text of the whole, and the positions of the part's examples."""
        whole = self.source.labels_version()
        return None if whole is None else f"{whole}\n{self.numbers}"

    def mask(self, index: int) -> NDArray[np.uint8] | None:
        """Return the (H, W) class ids of an example of the part."""
        return self.source.mask(self.numbers[index])

    def read(self, index: int, reduce: int = 1) -> Example:
        """Return an example of the part."""
        return self.source.read(self.numbers[index], reduce)


class Joined(Source):
    """Several sources in a row.

    Args:
        sources: The parts. If a name occurs in two of them, all names get the number of their
            part as a prefix: `0/name`.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = [source for source in sources if len(source) > 0]
        self.ends = list(accumulate(len(source) for source in self.sources))
        names = [name for source in self.sources for name in source.ids]
        if len(set(names)) < len(names):
            names = [
                f"{part}/{name}" for part, source in enumerate(self.sources) for name in source.ids
            ]
        self._ids = names

    @property
    def ids(self) -> list[str]:
        """The names of all examples."""
        return self._ids

    def read(self, index: int, reduce: int = 1) -> Example:
        """Return an example under its name in this source."""
        part = bisect.bisect_right(self.ends, index)
        begin = self.ends[part - 1] if part else 0
        return self.sources[part].read(index - begin, reduce)._replace(id=self._ids[index])


class Relabeled(Source):
    """The images of a source without its labels.

    Args:
        source: Any source.
        void: True returns masks that are all void, for batches in which other images have masks.
    """

    def __init__(self, source: Source, void: bool = False) -> None:
        self.source = source
        self.void = void

    @property
    def ids(self) -> Sequence[str]:
        """The names of the examples."""
        return self.source.ids

    def read(self, index: int, reduce: int = 1) -> Example:
        """Return an example without its mask, or with a mask that is all void."""
        example = self.source.read(index, reduce)
        return example._replace(mask=np.full(example.size, VOID, np.uint8) if self.void else None)


def part_of(source: Source, ids: Sequence[str]) -> Source:
    """Return the examples of some names; of files again a `FileSource`."""
    if not isinstance(source, FileSource):
        return Subset(source, ids)
    images = {name: source.images[name] for name in ids}
    masks = None if source.masks is None else {name: source.masks[name] for name in ids}
    return FileSource(images, masks, source.decode, source.cache, source.reading)


def without_labels(source: Source) -> Source:
    """Return the images of a source without masks; mask files are then not read."""
    return source.without_labels() if isinstance(source, FileSource) else Relabeled(source)


def configure(source: Source, reading: Reading, cache: DecodedCache | None = None) -> Source:
    """Let all files of a source be read in one way, and return the source.

    Args:
        source: Any source.
        reading: Range of deep images, and largest size of a file.
        cache: Keeps decoded images and masks; None decodes the files each time.
    """
    if isinstance(source, FileSource):
        source.reading, source.cache = reading, cache
    for part in source.sources if isinstance(source, Joined) else ():
        configure(part, reading, cache)
    if isinstance(source, Subset | Relabeled):
        configure(source.source, reading, cache)
    return source


def files(source: Source) -> list[Path]:
    """Return the image files of a source's examples in order; an empty list without files."""
    if isinstance(source, FileSource):
        return [source.images[name] for name in source.ids]
    if isinstance(source, Subset):
        whole = files(source.source)
        return [whole[number] for number in source.numbers] if whole else []
    if isinstance(source, Joined):
        parts = [files(part) for part in source.sources]
        return [path for part in parts for path in part] if all(parts) else []
    return files(source.source) if isinstance(source, Relabeled) else []


def spread(items: Sequence[T], at_most: int) -> list[T]:
    """Return items at even distances, among them the first and the last.

    Args:
        items: Sequence to choose from.
        at_most: Largest number of items to return, at least 1.
    """
    places = np.linspace(0, len(items) - 1, min(at_most, len(items))).round().astype(int)
    return [items[place] for place in places]


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
