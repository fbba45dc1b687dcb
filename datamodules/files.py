"""Finding image files and reading them, with an error that names the file."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from datamodules.errors import DataError, some

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")
)


def list_images(folder: Path) -> list[Path]:
    """Return the image files below a folder, sorted, hidden ones left out, links followed."""
    found: list[Path] = []
    for place, folders, names in os.walk(folder, followlinks=True):  # rglob follows no links
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in names if is_image(name)]
    return sorted(found)


def is_image(name: str) -> bool:
    """Tell by its name whether a file is an image and not hidden."""
    path = Path(name)
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def find_images(where: str | list[str]) -> dict[str, Path]:
    """Return images without masks by id: a folder, a file, a glob, a `.txt` list, or several.

    An id is the path below the folder (the file name otherwise) without its suffix; with it,
    where two files differ in nothing else.

    Raises:
        DataError: Nothing there, or two files that would get the same id.
    """
    found: list[tuple[Path, Path]] = []  # what the id is relative to, the file
    for each in [where] if isinstance(where, str) else where:
        found += _expand(each)
    stems = [path.relative_to(base).with_suffix("").as_posix() for base, path in found]
    count = Counter(stems)
    named: dict[str, Path] = {}
    for (base, path), stem in zip(found, stems, strict=True):
        name = stem if count[stem] == 1 else path.relative_to(base).as_posix()
        if named.setdefault(name, path) != path:
            raise DataError(
                f"{named[name]} and {path} would both be written as {name!r}: predict them apart "
                "(option: --data.predict)"
            )
    return named


def _expand(where: str) -> list[tuple[Path, Path]]:
    path = Path(where).expanduser()
    if path.is_dir():
        files = [(path, file) for file in list_images(path)]
    elif path.suffix == ".txt" and path.is_file():
        listed = [Path(line) for line in read_lines(path)]
        absolute = [file if file.is_absolute() else path.parent / file for file in listed]
        if missing := [str(file) for file in absolute if not file.is_file()]:
            raise DataError(f"{path} lists images that do not exist: {some(missing)}")
        files = [(file.parent, file) for file in absolute]
    elif path.is_file():
        files = [(path.parent, path)]
    else:
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
        fixed = Path(str(path).partition("*")[0].rpartition("/")[0] or ".")
        base = fixed if "**" in str(path) else None
        files = [(base or file.parent, file) for file in matches if is_image(file.name)]
    if not files:
        raise DataError(
            f"no images at {where!r}: expected a folder, a glob, an image or a .txt list of "
            "images, one path a line (option: --data.predict)"
        )
    return files


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read any image file as RGB, turned the way its EXIF orientation says.

    Args:
        path: A file of 8 bits a channel, or a grey one of 16 bits (0..65535) or of fractions
            (0..1), which are scaled to 8 bits.

    Returns:
        (H, W, 3) uint8.

    Raises:
        DataError: The file cannot be decoded to its end.
    """
    image = _open(path)
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow would clip instead of scale
        grey = np.asarray(image, dtype=np.float64)
        full = 1 if image.mode == "F" and grey.max() <= 1 else 65535
        if not (np.isfinite(grey).all() and grey.min() >= 0 and grey.max() <= full):
            raise DataError(
                f"image {path} (mode {image.mode}) must hold 0..65535, or fractions in 0..1; "
                f"it holds {grey.min()}..{grey.max()}"
            )
        image = Image.fromarray((grey / full * 255).round().astype(np.uint8))
    return np.array(image.convert("RGB"))


def read_mask(path: Path, as_color: bool = False) -> NDArray[np.integer]:
    """Read a mask's stored values: palette indices or grey values, or its colours.

    Args:
        path: The mask file.
        as_color: Look a palette's colours up instead of returning its indices.

    Returns:
        (H, W) uint8 or int32 values, or (H, W, 3) uint8 where the file holds colours or
        `as_color` asks for them. Grey stored as three equal channels is one channel.

    Raises:
        DataError: The file cannot be decoded to its end.
    """
    image = _open(path)
    if as_color or image.mode in ("RGB", "RGBA", "CMYK", "YCbCr"):
        color = np.array(image.convert("RGB"))
        if not as_color and (color == color[..., :1]).all():
            return color[..., 0]
        return color
    if image.mode in ("LA", "PA"):
        return np.array(image)[..., 0]
    if image.mode == "1":
        return np.array(image).astype(np.uint8)
    if image.mode == "F":
        values = np.array(image)
        if (values != values.round()).any():
            raise DataError(f"mask {path} holds fractional values; expected whole class ids")
        return values.astype(np.int32)
    return np.array(image)


def image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) as `read_image` will, from the header alone."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112, 1) >= 5  # EXIF orientation, by a quarter
            return (image.width, image.height) if turned else (image.height, image.width)
    except Exception as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from error


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not empty, without surrounding white space."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"list {path} is not UTF-8 text: {error}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
    except Exception as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from error


def by_stem(files: Iterable[Path], base: Path, suffix: str = "") -> dict[str, Path]:
    """Index files by their path below `base` without file suffix and without `suffix`.

    Args:
        files: Image files below `base`.
        base: The folder the names are relative to.
        suffix: What a stem must end in to count, e.g. `_mask`; it is cut off.

    Raises:
        DataError: Two files with one stem.
    """
    found: dict[str, Path] = {}
    for path in files:
        name = path.relative_to(base).with_suffix("").as_posix()
        if not name.endswith(suffix):
            continue
        stem = name.removesuffix(suffix)
        if found.setdefault(stem, path) != path:
            raise DataError(
                f"{found[stem]} and {path} have the same name but for their type: keep one"
            )
    return found
