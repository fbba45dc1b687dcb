"""Where examples come from: files, a choice of another source's examples, several sources."""

from __future__ import annotations

import bisect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.errors import DataError
from datamodules.reading.cache import DecodedCache
from datamodules.reading.files import image_size, is_turned, read_image, read_mask
from datamodules.reading.mask_decoder import VOID, MaskDecoder


class Example(NamedTuple):
    """One image with its labels."""

    id: str
    image: NDArray[np.uint8]
    """(H, W, 3) RGB; smaller where it was decoded at a part of its size."""
    mask: NDArray[np.uint8] | None
    """(H, W) class ids, 255 where void; None where there are no labels."""
    reduced: int = 1
    """How many times smaller than the file's the image is."""
    full_size: tuple[int, int] | None = None
    """(H, W) of the file's image where that is not the image's."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the whole image."""
        height, width = self.image.shape[:2]
        return self.full_size or (height, width)


class Source(ABC):
    """Anything that holds examples by index."""

    @property
    @abstractmethod
    def ids(self) -> Sequence[str]:
        """One name per example, no two the same."""

    @abstractmethod
    def read(self, index: int, reduce: int = 1) -> Example:
        """Return an example; its image at 1/`reduce` of its size where that saves time.

        Raises:
            DataError: It cannot be used.
        """

    def labels_version(self) -> str | None:
        """Return a text that changes with any label; None where that cannot be told."""
        return None

    def mask(self, index: int) -> NDArray[np.uint8] | None:
        """Return an example's (H, W) labels, where that goes without its image."""
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
        decode: Turns what a mask file stores into class ids.
        cache: Keeps what was decoded.
    """

    def __init__(
        self,
        images: dict[str, Path],
        masks: dict[str, Path] | None = None,
        decode: MaskDecoder | None = None,
        cache: DecodedCache | None = None,
    ) -> None:
        self._ids = sorted(images)
        self.images = images
        self.masks = masks
        self.decode = decode
        self.cache = cache

    @property
    def ids(self) -> list[str]:
        """The names of the examples, sorted."""
        return self._ids

    def read(self, index: int, reduce: int = 1) -> Example:
        """Read one example, a JPEG at 1/`reduce` of its size where nothing is cached.

        Raises:
            DataError: A file cannot be read, the sizes differ, or the mask holds what is no class.
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
        """Return the decoder, and name, size and time of every mask file."""
        if self.masks is None or self.decode is None:
            return None
        states = [(name, self.masks[name].stat()) for name in self._ids]
        lines = [f"{name} {state.st_size} {state.st_mtime_ns}" for name, state in states]
        return "\n".join([self.decode.fingerprint, *lines])

    def mask(self, index: int) -> NDArray[np.uint8] | None:
        """Read an example's labels alone."""
        if self.masks is None or self.decode is None:
            return None
        return self._mask(self.masks[self._ids[index]], self.decode)

    def without_labels(self) -> FileSource:
        """Return the same images, without their masks."""
        return FileSource(self.images, cache=self.cache)

    def _image(self, name: str, reduce: int) -> Example:
        path = self.images[name]
        if self.cache is not None:
            return Example(name, self.cache.get(path, lambda: read_image(path), "image"), None)
        image = read_image(path, reduce)
        if reduce > 1 and image.shape[:2] != (size := image_size(path)):
            return Example(name, image, None, reduce, size)
        return Example(name, image, None)

    def _mask(self, path: Path, decode: MaskDecoder) -> NDArray[np.uint8]:
        if self.cache is None:
            return decode(read_mask(path, decode.as_color), path)
        return self.cache.get(
            path, lambda: decode(read_mask(path, decode.as_color), path), kind=decode.fingerprint
        )


class Subset(Source):
    """Some of a source's examples, in the order of its ids.

    Args:
        source: The whole.
        ids: The names of those that are wanted.
        labels: False takes the masks away.
    """

    def __init__(self, source: Source, ids: Sequence[str], labels: bool = True) -> None:
        wanted = set(ids)
        self.numbers = [number for number, name in enumerate(source.ids) if name in wanted]
        # masks that nobody wants are not read
        self.source = source if labels else without_labels(source)
        self._ids = [source.ids[number] for number in self.numbers]

    @property
    def ids(self) -> list[str]:
        """The names of the examples."""
        return self._ids

    def labels_version(self) -> str | None:
        """Return the whole's, and which of it are chosen."""
        whole = self.source.labels_version()
        return None if whole is None else f"{whole}\n{self.numbers}"

    def mask(self, index: int) -> NDArray[np.uint8] | None:
        """Return one of the chosen examples' labels."""
        return self.source.mask(self.numbers[index])

    def read(self, index: int, reduce: int = 1) -> Example:
        """Return one of the chosen examples."""
        return self.source.read(self.numbers[index], reduce)


class Joined(Source):
    """Several sources one after the other.

    Args:
        sources: The parts; a name that occurs twice gets the part's number in front.
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
        """Return one example of the part in which it lies."""
        part = bisect.bisect_right(self.ends, index)
        begin = self.ends[part - 1] if part else 0
        return self.sources[part].read(index - begin, reduce)._replace(id=self._ids[index])


class Relabeled(Source):
    """The images of a source without its labels.

    Args:
        source: Any source.
        void: Give them masks that are all void, where other images have masks.
    """

    def __init__(self, source: Source, void: bool = False) -> None:
        self.source = source
        self.void = void

    @property
    def ids(self) -> Sequence[str]:
        """The names of the examples."""
        return self.source.ids

    def read(self, index: int, reduce: int = 1) -> Example:
        """Return an example without its mask, or with one that says nothing."""
        example = self.source.read(index, reduce)
        return example._replace(mask=np.full(example.size, VOID, np.uint8) if self.void else None)


def without_labels(source: Source) -> Source:
    """Take the masks away; those of files are not even read."""
    return source.without_labels() if isinstance(source, FileSource) else Relabeled(source)


def files(source: Source) -> list[Path]:
    """Return the image files of a source's examples, in order; none where it reads no files."""
    if isinstance(source, FileSource):
        return [source.images[name] for name in source.ids]
    if isinstance(source, Subset):
        whole = files(source.source)
        return [whole[number] for number in source.numbers] if whole else []
    return files(source.source) if isinstance(source, Relabeled) else []


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
