"""What one example holds, and what is wrong with its files."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from datamodules.errors import DataError, some
from datamodules.reading.decoding import USUAL, Reading, stored_facts
from datamodules.reading.mask_decoder import VOID
from datamodules.reading.sources import Example, FileSource, Source, files


class Finding(NamedTuple):
    """Facts about one example, without its pixels."""

    name: str
    """Path of the image, or the id of an example that is no file."""
    size: tuple[int, int] | None = None
    """(height, width) of the image in pixels; None where it cannot be read."""
    digest: bytes | None = None
    """Hash of size and pixels, equal for copies of an image; None where it cannot be read."""
    counts: NDArray[np.int64] | None = None
    """(256,) pixels per class id, 255 for void; None without a sound mask."""
    defects: tuple[str, ...] = ()
    """One sentence for everything that makes the example unusable."""
    remarks: tuple[str, ...] = ()
    """Kinds of oddities of a usable example: `narrow`, `plain`, `void`, `turned`."""
    deep: tuple[float, float] | None = None
    """Smallest and largest value of an image with more than 8 bits a channel; else None."""
    moments: NDArray[np.float64] | None = None
    """(2, C) mean of each channel, and of its square, in [0, 1]; None where it cannot be read."""


class Inspection(Dataset[Finding]):
    """The findings about every example of a source.

    Args:
        source: The examples.
        num_classes: Number of classes C; class ids of masks must be in [0, C - 1], or void.
        reading: How image files are read.
    """

    def __init__(self, source: Source, num_classes: int, reading: Reading = USUAL) -> None:
        self.source = source
        self.num_classes = num_classes
        self.files = files(source)
        self.reading = reading
        self.names = [str(path) for path in self.files] or source.ids

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Finding:
        """Return the findings about an example; an error in its files is a defect."""
        name = self.names[index]
        try:
            with _jpeg_complaints() as complaints:
                example = self.source[index]
            if complaints:
                raise DataError(f"{name} is damaged: {complaints[0]}")
        except Exception as error:
            image, defects = _sound_image(self.source, index, error)
            finding = Finding(name, defects=defects)
            return finding if image is None else _with_image(finding, image)
        finding = _with_image(Finding(name), example.image)
        if self.files:
            finding = self._with_facts(finding, self.files[index])
        return finding if example.mask is None else self._with_mask(finding, example, example.mask)

    def _with_facts(self, finding: Finding, path: Path) -> Finding:
        """Add the range of an image of more than 8 bits a channel, and whether it is turned."""
        turned, deep = stored_facts(path, self.reading)
        if turned:
            finding = finding._replace(remarks=(*finding.remarks, "turned"))
        if deep is None:
            return finding
        # in 8 bits, dark images are equal that are not equal in the file
        return finding._replace(deep=deep, digest=sha256(path.read_bytes()).digest()[:16])

    def _with_mask(self, finding: Finding, example: Example, mask: NDArray[np.uint8]) -> Finding:
        """Add the counts of the mask's class ids, or the defect of the mask."""
        if mask.shape != example.image.shape[:2]:
            defect = f"{finding.name} is {example.image.shape[:2]} pixels, its mask {mask.shape}"
            return finding._replace(defects=(defect,))
        # (H, W) -> (256,)
        counts = np.bincount(mask.ravel(), minlength=256)
        if len(wrong := np.flatnonzero(counts[self.num_classes : VOID])):
            ids = some([str(value + self.num_classes) for value in wrong])
            expected = f"expected 0..{self.num_classes - 1}"
            defect = f"the mask of {finding.name} holds {ids}, {expected}"
            return finding._replace(defects=(defect,))
        empty = ("void",) if counts[VOID] == mask.size else ()
        return finding._replace(counts=counts, remarks=finding.remarks + empty)


@contextlib.contextmanager
def _jpeg_complaints() -> Iterator[list[str]]:
    """Collect the lines that libjpeg prints where it replaces damaged data by grey."""
    complaints: list[str] = []
    with tempfile.TemporaryFile() as file:
        stderr = os.dup(2)
        try:
            os.dup2(file.fileno(), 2)
            yield complaints
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            file.seek(0)
            lines = file.read().decode(errors="replace").splitlines()
            complaints += [line for line in lines if "Corrupt JPEG" in line]


def _with_image(finding: Finding, image: NDArray[Any]) -> Finding:
    """Add size, digest and moments of an image (H, W, C), and whether it has a single colour."""
    size = (image.shape[0], image.shape[1])
    digest = sha256(repr(size).encode())
    digest.update(image.tobytes())
    remark = _uniform(image)
    return finding._replace(
        size=size,
        digest=digest.digest()[:16],
        remarks=() if remark is None else (remark,),
        moments=_moments(image),
    )


def _moments(image: NDArray[Any]) -> NDArray[np.float64]:
    """Return (2, C), the mean of each channel and of its square, white being 1."""
    pixels = image.reshape(-1, image.shape[2])
    if image.dtype == np.uint8:
        # (256,) shares of the values of a channel; exact, and faster than sums over pixels
        values = np.arange(256) / 255
        shares = [np.bincount(channel, minlength=256) / len(pixels) for channel in pixels.T]
        return np.array([[share @ values, share @ values**2] for share in shares]).T
    return np.stack([pixels.mean(0, np.float64), np.square(pixels, dtype=np.float64).mean(0)])


def _uniform(image: NDArray[Any]) -> str | None:
    """Return `plain` for an image of one colour, `narrow` for one of under 1/8 of the range."""
    # a few rows alone rule most images out
    for part in (image[:: max(1, len(image) // 8)], image):
        white = 255 if part.dtype == np.uint8 else 1
        if (float(part.max()) - float(part.min())) * 255 / white >= 32:
            return None
    return "plain" if (image == image[0, 0]).all() else "narrow"


def _sound_image(
    source: Source, index: int, error: Exception
) -> tuple[NDArray[Any] | None, tuple[str, ...]]:
    """Return the image of a broken example if it can be read, and the defects of both files."""
    known = isinstance(error, DataError)
    defect = str(error) if known else f"{source.ids[index]}: {type(error).__name__}: {error}"
    if not known or not isinstance(source, FileSource):
        return None, (defect,)
    try:
        return source.without_labels()[index].image, (defect,)
    except DataError:
        pass  # the image is broken, so that its mask was not read yet
    if source.masks is not None and source.decode is not None:
        path = source.masks[source.ids[index]]
        try:
            source.read_mask(path)
        except DataError as other:
            return None, (defect, str(other))
    return None, (defect,)
