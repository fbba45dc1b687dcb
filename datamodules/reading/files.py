"""Finding image files; every error names the place."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from datamodules.errors import DataError, UnpairedError, some

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm", ".pnm")
)


def list_images(folder: Path) -> list[Path]:
    """Return the image files below a folder, sorted, without hidden files and folders.

    Links to folders are followed, except a link to a folder that the link is in.
    """
    return sorted(_walk(folder, (folder.resolve(),)))


def _walk(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """Yield the image files below a folder.

    Args:
        folder: The folder.
        above: Folders that links have led to, without links: a link to one of them, or to a
            folder that holds one of them, would lead here again.
    """
    with os.scandir(folder) as entries:
        children = sorted(entries, key=lambda entry: entry.name)
    for child in children:
        path = folder / child.name
        if not _is_folder(child):
            if is_image(child.name):
                yield path
        elif child.name.startswith("."):
            continue
        elif child.is_symlink():
            place = path.resolve()
            if not any(each.is_relative_to(place) for each in (*above, folder.resolve())):
                yield from _walk(path, (*above, folder.resolve(), place))
        else:
            yield from _walk(path, above)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, which is reported where it is read
        return False


def is_image(name: str) -> bool:
    """Return whether a file name has the suffix of an image and is not hidden."""
    path = Path(name)
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def find_images(
    where: str | list[str], option: str = "predict", by_path: bool = False
) -> dict[str, Path]:
    """Return image files by id.

    An id is the path below the folder, or the file name of an image that was named itself, without
    the suffix. Files that differ in their suffix alone keep it in their ids.

    Args:
        where: A folder, an image, a glob, a `.txt` list with one path a line, or several of these.
        option: Name of the option that gave `where`, for errors.
        by_path: True takes the whole path as the id.

    Raises:
        DataError: There are no images, or two files would get the same id.
    """
    places: list[tuple[Path, Path]] = []  # the folder that the id is relative to, and the file
    for each in [where] if isinstance(where, str) else where:
        places += _expand(each, option)
    if by_path:
        return {path.as_posix(): path for _, path in places}
    stems = [path.relative_to(base).with_suffix("").as_posix() for base, path in places]
    count = Counter(stems)
    images: dict[str, Path] = {}
    for (base, path), stem in zip(places, stems, strict=True):
        name = stem if count[stem] == 1 else path.relative_to(base).as_posix()
        if images.setdefault(name, path) != path:
            raise DataError(
                f"{images[name]} and {path} would both be called {name!r}: rename one of them",
                option=option,
            )
    return images


def _expand(where: str, option: str) -> list[tuple[Path, Path]]:
    """Return the images at one place, each after the folder that its id is relative to."""
    path = Path(where).expanduser()
    if path.is_dir():
        files = [(path, file) for file in list_images(path)]
    elif path.suffix == ".txt" and path.is_file():
        listed = [Path(line) for line in read_lines(path)]
        absolute = [file if file.is_absolute() else path.parent / file for file in listed]
        if missing := [str(file) for file in absolute if not file.is_file()]:
            raise DataError(
                f"{path} lists images that do not exist: {some(missing)}", option=option
            )
        files = [(file.parent, file) for file in absolute]
    elif path.is_file():
        files = [(path.parent, path)]
    else:
        base, matches = find_glob(path)
        inside = base if "**" in path.as_posix() else None
        images = [file for file in matches if is_image(file.name) and not file.is_dir()]
        files = [(inside or file.parent, file) for file in images]
    if not files:
        raise DataError(
            f"no images at {where!r}: expected a folder, a glob, an image or a .txt list of "
            "images, one path a line",
            option=option,
        )
    return files


def find_glob(pattern: Path) -> tuple[Path, list[Path]]:
    """Return the files that a glob means, sorted, and the last folder before its first wildcard.

    Brackets in the names of folders and files that exist are no wildcards.
    """
    base = Path(pattern.anchor)
    parts = list(pattern.parts[len(base.parts) :])
    while parts and (base / parts[0]).is_dir():
        base /= parts.pop(0)
    rest = "/".join(parts)
    for each in (rest, re.sub(r"[\[]", "[[]", rest)):
        found = glob.glob(f"{glob.escape(str(base))}/{each}", recursive=True)  # noqa: PTH207
        if found:
            return base, sorted(map(Path, found))
    return base, []


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not empty, without surrounding white space.

    Raises:
        DataError: The file is not UTF-8 text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"list {path} is not UTF-8 text: {error}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def by_stem(
    files: Iterable[Path], base: Path, suffix: str = "", skip: bool = False, other: str = ""
) -> dict[str, Path]:
    """Return files by their path below a folder, without the file type and without a suffix.

    Args:
        files: Image files below `base`.
        base: Folder that the names are relative to.
        suffix: End of the names to return, such as `_mask`, `_mask.png` or `.png`, which is cut
            off; files with other names are left out.
        skip: True takes the first of files with the same name; False raises an error.
        other: End of the names of other files in the same folder, which are left out where it is
            the longer one.

    Raises:
        UnpairedError: Two files have the same name.
    """
    by_name: dict[str, Path] = {}
    clashes: list[str] = []
    for path in files:
        stem = _without(path.relative_to(base), suffix)
        if stem is None:
            continue
        if len(other) > len(suffix) and _without(path.relative_to(base), other) is not None:
            continue
        if by_name.setdefault(stem, path) != path:
            clashes.append(
                f"{by_name[stem]} and {path} have the same name but for their type: keep one"
            )
    if clashes and not skip:
        raise UnpairedError(some(clashes, 3), clashes)
    return by_name


def _without(path: Path, suffix: str) -> str | None:
    """Return a path without type and suffix; None for a path that does not end in the suffix."""
    typed = bool(suffix) and Path(f"x{suffix}").suffix.lower() in SUFFIXES
    name = path.as_posix() if typed else path.with_suffix("").as_posix()
    return name.removesuffix(suffix) if name.endswith(suffix) else None
