"""Where the files of a prediction lie, which of them are there, and how large ones are written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lightning_seg.callbacks.mask_files import (
    ArrayFile,
    GeoTIFFMask,
    MaskFile,
    PNGMask,
    georeference,
)
from lightning_seg.errors import SetupError
from lightning_seg.files import PART, write_whole
from lightning_seg.inference import Strip

Kind = Literal["masks", "overlays", "probabilities"]
_SUFFIX = {"masks": ".png", "overlays": ".jpg", "probabilities": ".npy"}
_LONGEST = 255  # bytes of a file's name


def place(root: Path, kind: Kind, name: str, suffix: str | None = None) -> Path:
    """Return the path of one file of a prediction.

    Args:
        root: The folder of all predictions.
        kind: The folder of the file.
        name: The id of the image. A name that is too long for a file is cut, and gets a digest.
        suffix: The end of the name; None takes that of the kind.

    Raises:
        SetupError: The id leads out of the folder.
    """
    suffix = _SUFFIX[kind] if suffix is None else suffix
    path = root / kind / f"{name}{suffix}"
    if ".." in path.parts:
        raise SetupError(f"an image's id leads out of the output folder: {path}")
    return path.with_name(f"{shortened(path.name.removesuffix(suffix), len(suffix))}{suffix}")


def shortened(stem: str, room: int) -> str:
    """Return the name of a file without its type; one that is too long is cut, and gets a digest.

    Args:
        stem: The name.
        room: Bytes that the type needs.
    """
    if len(os.fsencode(stem)) + room <= _LONGEST:
        return stem
    digest = sha256(stem.encode()).hexdigest()[:8]
    kept = stem.encode()[: _LONGEST - 16].decode(errors="ignore")
    return f"{kept}-{digest}"


def require_writable(
    root: Path, option: str = "predictions.output_dir", what: str = "predictions"
) -> None:
    """Raise `SetupError` for a folder in which no file can be made.

    Args:
        root: The folder; where it is missing, the closest folder above counts.
        option: The option that names the folder.
        what: What is to be written.
    """
    there = next(each for each in (root, *root.absolute().parents) if each.exists())
    try:
        with TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise SetupError(
            f"{what} cannot be written to {root}: {there}: {error.strerror}", option=option
        ) from error


def is_written(root: Path, overlays: bool, probabilities: bool, name: str) -> bool:
    """Return whether all files of an image are there; files appear whole or not at all."""
    masks = [place(root, "masks", name, suffix) for suffix in (".png", ".tif")]
    others: list[Path] = [place(root, "overlays", name)] * overlays
    others += [place(root, "probabilities", name)] * probabilities
    return any(path.is_file() for path in masks) and all(path.is_file() for path in others)


def remove_parts(root: Path) -> None:
    """Remove what a killed process has left half written."""
    for path in root.rglob(f"{PART}*"):
        path.unlink(missing_ok=True)


@contextmanager
def write_strips(
    root: Path,
    name: str,
    strips: Iterable[Strip],
    file: Any,
    path: str,
    colors: NDArray[np.uint8],
) -> Iterator[NDArray[np.uint8]]:
    """Write mask and probabilities of an image whose prediction comes in strips of rows.

    Args:
        root: The folder of all predictions.
        name: The id of the image.
        strips: The prediction from top to bottom.
        file: The image, with its `size`, and the `step` between the pixels of its small copy.
        path: The file of the image, whose georeference the mask gets.
        colors: (256, 3) RGB colours of the class ids.

    Yields:
        (h, w) class ids of the small copy. The files get their names where the block ends without
        an exception.
    """
    where = georeference(path)
    with ExitStack() as stack:
        suffix = ".png" if where is None else ".tif"
        part = stack.enter_context(write_whole(place(root, "masks", name, suffix)))
        mask: MaskFile
        if where is None:
            mask = PNGMask(part, file.size, colors)
        else:
            mask = GeoTIFFMask(part, file.size, colors, where)
        array: ArrayFile | None = None
        small = []
        for top, labels, probabilities in strips:
            rows = labels.numpy()
            mask.add(rows)
            small.append(rows[-top % file.step :: file.step, :: file.step].copy())
            if probabilities is not None:
                if array is None:
                    made = write_whole(place(root, "probabilities", name))
                    array = ArrayFile(stack.enter_context(made), file.size)
                array.add(probabilities.numpy())
        mask.close()
        yield np.concatenate(small)
