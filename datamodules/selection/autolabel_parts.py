"""Which images get labels from a network, and which ones have labels already."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from datamodules.errors import DataError
from datamodules.reading.sources import Joined, Source, files, part_of, without_labels


class AutolabelParts(NamedTuple):
    """The images of an automatic labelling, in three parts that share no file."""

    unlabeled: Source
    """Images that get labels, without masks."""
    labeled: Source
    """Training images that have labels."""
    validation: Source
    """Validation images, which say how many of the new labels are right."""
    left_out: int
    """Number of images that were asked for and that have labels already."""

    @classmethod
    def of(cls, wanted: Source | None, labeled: Source, validation: Source) -> AutolabelParts:
        """Return the parts, without the images that have labels among those that are to get some.

        Raises:
            DataError: No image was asked for, or none is left.
        """
        options = ("predict FOLDER", "unlabeled FOLDER", "labeled 1/8")
        if wanted is None or len(wanted) == 0:
            raise DataError(
                "there are no images without labels: name some, or take labels away", option=options
            )
        known = {path.resolve() for part in (labeled, validation) for path in files(part)}
        paths = files(wanted)
        left = wanted
        if paths and known:
            places = zip(wanted.ids, paths, strict=True)
            names = [name for name, path in places if path.resolve() not in known]
            left = wanted if len(names) == len(wanted) else part_of(wanted, names)
        if len(left) == 0:
            raise DataError(
                f"there are no images without labels: all {len(wanted)} images have labels already",
                option=options,
            )
        return cls(without_labels(left), labeled, validation, len(wanted) - len(left))

    def joined(self) -> Source:
        """Return the images that a network sees: first those without labels, then validation."""
        return Joined([self.unlabeled, self.validation])

    def paths(self, part: Source) -> list[Path | None]:
        """Return the files of a part's images; None for images that are no files."""
        found = files(part)
        return list(found) if found else [None] * len(part)
