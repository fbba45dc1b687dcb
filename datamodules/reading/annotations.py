"""What a mask folder holds where it holds no masks, and what its masks hold."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from datamodules.errors import DataError, some
from datamodules.reading.mask_decoder import color_codes
from datamodules.reading.mask_files import read_mask

_BUDGET = 0.6  # seconds for reading masks, so that an error does not keep its reader waiting
_KINDS = {
    ".json": "JSON files",
    ".xml": "XML files, such as Pascal VOC's and CVAT's boxes and polygons",
    ".txt": "text files, such as YOLO's polygons",
    ".npy": "NumPy arrays",
    ".npz": "NumPy arrays",
    ".shp": "shape files",
    ".geojson": "GeoJSON files",
    ".nii": "NIfTI volumes",
    ".gz": "compressed files",
}


def other_annotations(folder: Path, masks: bool) -> str | None:
    """Return one sentence about a folder of annotations that are not masks.

    Args:
        folder: The mask folder.
        masks: Whether there are image files in it; polygons whose pictures lie beside them are
            then looked for, because the image files are the pictures and not masks.

    Returns:
        The sentence; None where nothing of that kind is there.
    """
    found = _first(folder, {".json"} if masks else set(_KINDS))
    if found is None:
        return None
    kind, picture = _described(found)
    if masks and not (picture and (found.parent / Path(picture.replace("\\", "/")).name).is_file()):
        return None
    return (
        f"{folder} holds {kind} (such as {found.name}), which are not masks: a mask is an image "
        "file with the class of every pixel. Export or draw the annotations as PNG masks first"
    )


def _first(folder: Path, suffixes: set[str]) -> Path | None:
    """Return the first file with one of the suffixes, in the folder or its folders."""

    def search(place: Path, depth: int) -> Iterator[Path]:
        children = sorted(place.iterdir())
        yield from (each for each in children if each.suffix.lower() in suffixes)
        for each in children if depth else ():
            if each.is_dir() and not each.is_symlink():
                yield from search(each, depth - 1)

    return next((each for each in search(folder, 2) if each.is_file()), None)


def _described(path: Path) -> tuple[str, str | None]:
    """Return what an annotation file is, and the name of the picture it belongs to."""
    kind = _KINDS[path.suffix.lower()]
    if path.suffix.lower() != ".json":
        return kind, None
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        return kind, None
    keys = content.keys() if isinstance(content, dict) else set()
    if "shapes" in keys:
        return "LabelMe's JSON files of polygons", str(content.get("imagePath") or "")
    if {"annotations", "images"} <= keys:
        return "a JSON file of annotations in the form of COCO", None
    return kind, None


def seen_in_masks(files: Sequence[Path]) -> str:
    """Return one sentence about the values or colours of some masks, for an error.

    Args:
        files: Masks in any order; as many are read as a fraction of a second allows.

    Raises:
        DataError: Not one mask can be read.
    """
    begin = time.monotonic()
    values: set[int] = set()
    colors = np.zeros(1 << 24, np.bool_)
    read, colored = 0, 0
    failure: DataError | None = None
    for path in files:
        try:
            stored = read_mask(path)
        except DataError as error:
            failure = error
            continue
        read += 1
        if stored.ndim == 3 and stored.dtype == np.uint8:
            colored += 1
            colors[color_codes(stored).ravel()] = True
        else:
            values.update(np.unique(stored).tolist())
        if time.monotonic() - begin > _BUDGET:
            break
    if read == 0 and failure is not None:
        raise failure
    if colored:
        codes = np.flatnonzero(colors).tolist()
        shown = some([str((code >> 16, code >> 8 & 255, code & 255)) for code in codes], 24)
        return f"{read} of the masks are RGB and hold the colours {shown}"
    return f"{read} of the masks hold the values {some([str(each) for each in sorted(values)], 24)}"
