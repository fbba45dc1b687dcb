"""Which images are used without labels: images that lost their labels, and extra images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from datamodules.errors import DataError, some
from datamodules.reading.cache import DecodedCache
from datamodules.reading.sources import FileSource, Joined, Relabeled, Source, Subset, files
from datamodules.selection.label_splits import LabelSplit


def labeled_part(whole: Source, split: LabelSplit | None) -> Source:
    """Return the training images that keep their labels: all of them where there is no split."""
    return whole if split is None else Subset(whole, split.labeled)


def unlabeled_images(
    whole: Source,
    split: LabelSplit | None,
    extra: Mapping[str, Path],
    evaluated: Callable[[], Iterable[Source]],
    masks: bool = False,
    cache: DecodedCache | None = None,
) -> Source:
    """Return the images without labels: first those that lost their labels, then the extra images.

    An extra image that is also among those that lost their labels comes once.

    Args:
        whole: All training examples.
        split: Division of them into images that keep and images that lose their labels; None
            where all keep them.
        extra: More image files by id.
        evaluated: Returns the sources of validation and test images; called where there are extra
            images, which must not be among them.
        masks: True returns examples with masks: their own where they lost them, all void for
            extra images. False returns examples without masks.
        cache: Keeps the decoded extra images; None decodes them each time.

    Raises:
        DataError: There are no images without labels, or some of them are labelled or evaluated.
    """
    lost = Subset(whole, [] if split is None else split.unlabeled, labels=masks)
    if not extra:
        if len(lost) == 0:
            raise DataError(
                "unlabeled_batch_size is above 0, but there are no unlabelled images: take labels "
                "away, or name a folder of further images",
                option=("labeled 1/8", "unlabeled FOLDER"),
            )
        return lost
    _refuse_used(extra, [labeled_part(whole, split), *evaluated()])
    known = _resolved([lost])
    added: Source = FileSource(
        {name: path for name, path in extra.items() if path.resolve() not in known}, cache=cache
    )
    return Joined([lost, Relabeled(added, void=True) if masks else added])


def _refuse_used(extra: Mapping[str, Path], sources: Iterable[Source]) -> None:
    """Raise an error where an extra image is among the examples of these sources."""
    used = _resolved(sources)
    if both := sorted(str(path) for path in extra.values() if path.resolve() in used):
        raise DataError(
            f"{len(both)} of {len(extra)} unlabelled images are labelled or evaluated: "
            f"{some(both)}",
            option="unlabeled",
        )


def _resolved(sources: Iterable[Source]) -> set[Path]:
    """Return the image files of sources without links, so that equal files have equal paths."""
    return {path.resolve() for source in sources for path in files(source)}
