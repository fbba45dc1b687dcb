"""Finding image files and decoding them; every error names the file."""

from __future__ import annotations

import glob
import io
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from datamodules.errors import DataError, OptionError, UnpairedError, some

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")
)

_ORIENTATION = 0x0112  # the EXIF tag
_REDUCED = {
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


def list_images(folder: Path) -> list[Path]:
    """Return the image files below a folder, sorted, without hidden files and folders.

    Links to folders are followed.
    """
    images: list[Path] = []
    for place, folders, names in os.walk(folder, followlinks=True):  # rglob follows no links
        folders[:] = [name for name in folders if not name.startswith(".")]
        images += [Path(place, name) for name in names if is_image(name)]
    return sorted(images)


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
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
        fixed = Path(str(path).partition("*")[0].rpartition("/")[0] or ".")
        base = fixed if "**" in str(path) else None
        files = [(base or file.parent, file) for file in matches if is_image(file.name)]
    if not files:
        raise DataError(
            f"no images at {where!r}: expected a folder, a glob, an image or a .txt list of "
            "images, one path a line",
            option=option,
        )
    return files


def read_image(path: Path, reduce: int = 1) -> NDArray[np.uint8]:
    """Read an image file as RGB, turned as its EXIF orientation says.

    Args:
        path: A file with 8 bits per channel, or a grey file with 16 bits (0..65535) or fractions
            (0..1), which are scaled to 8 bits.
        reduce: 1, 2, 4 or 8. A JPEG is decoded at 1/`reduce` of its size, which is faster and
            averages the pixels; other files are decoded at their full size.

    Returns:
        (H, W, 3) uint8, or (ceil(H / reduce), ceil(W / reduce), 3) uint8 for a reduced JPEG.

    Raises:
        DataError: The file cannot be decoded to its end.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return decode_image(data, path, reduce)


def decode_image(data: bytes, path: Path | str, reduce: int = 1) -> NDArray[np.uint8]:
    """Decode the bytes of an image file as RGB, turned as its EXIF orientation says.

    Args:
        data: The bytes of the file.
        path: Name of the file, for errors.
        reduce: 1, 2, 4 or 8. A JPEG is decoded at 1/`reduce` of its size.

    Returns:
        (H, W, 3) uint8, or (ceil(H / reduce), ceil(W / reduce), 3) uint8 for a reduced JPEG.

    Raises:
        DataError: The bytes cannot be decoded to their end.
    """
    if (fast := _decode_fast(data, reduce)) is not None:
        return fast
    image = _open(io.BytesIO(data), path)
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow would clip values above 255 instead of scaling them
        grey = np.asarray(image, dtype=np.float64)
        full = 1 if image.mode == "F" and grey.max() <= 1 else 65535
        if not (np.isfinite(grey).all() and grey.min() >= 0 and grey.max() <= full):
            raise DataError(
                f"image {path} (mode {image.mode}) must hold 0..65535, or fractions in 0..1; "
                f"it holds {grey.min()}..{grey.max()}"
            )
        image = Image.fromarray((grey / full * 255).round().astype(np.uint8))
    return np.array(image.convert("RGB"))


def _decode_fast(data: bytes, reduce: int) -> NDArray[np.uint8] | None:
    """Decode a JPEG or PNG file with OpenCV, which takes half of Pillow's time.

    Returns:
        The image, or None for a file that Pillow must decode or report.
    """
    try:
        with Image.open(io.BytesIO(data)) as header:
            form, mode, turned = header.format, header.mode, _orientation(header, data)
    except Exception:  # Pillow raises it again, where it becomes a DataError
        return None
    if 2 <= turned <= 8 or mode not in ("RGB", "L") or form not in ("JPEG", "PNG"):
        return None
    # OpenCV fills the missing part of a JPEG up; Pillow reports a JPEG without its end
    if form == "JPEG" and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        return None
    encoded = np.frombuffer(data, np.uint8)
    if form == "JPEG" and reduce > 1:
        small = cv2.imdecode(encoded, _REDUCED[reduce] | cv2.IMREAD_IGNORE_ORIENTATION)
        return None if small is None else cv2.cvtColor(small, cv2.COLOR_BGR2RGB).astype(np.uint8)
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    image: NDArray[np.uint8] | None = cv2.imdecode(encoded, flags)  # type: ignore[assignment]
    return image


def read_mask(path: Path, as_color: bool = False) -> NDArray[np.integer]:
    """Read the stored values of a mask: palette indices, grey values or colours.

    Args:
        path: The mask file. A `.mat` file is read as SBD's `GTcls.Segmentation`.
        as_color: True returns the colours of a palette instead of its indices.

    Returns:
        (H, W) uint8 or int32 values, or (H, W, 3) uint8 where the file holds colours or
        `as_color` is True. Three equal channels are returned as one.

    Raises:
        DataError: The file cannot be decoded to its end, or holds fractional values.
    """
    if path.suffix == ".mat":
        return _read_mat(path)
    image = _open(path, path)
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


def _read_mat(path: Path) -> NDArray[np.integer]:
    """Read a mask of SBD, the Semantic Boundaries Dataset."""
    try:
        from scipy.io import loadmat  # no other file needs scipy
    except ImportError as error:
        raise OptionError(
            f"{path} is a .mat file, which needs the package scipy: "
            "pip install 'lightning-seg[sbd]'"
        ) from error
    try:
        labels = loadmat(path, squeeze_me=True, struct_as_record=False)["GTcls"].Segmentation
    except Exception as error:
        raise DataError(f"{path} cannot be read as SBD's GTcls.Segmentation: {error}") from error
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{path} holds {labels.dtype} of shape {labels.shape}, expected class ids")
    return np.asarray(labels)


def image_size(path: Path) -> tuple[int, int]:
    """Return height and width of the image that `read_image` returns, without decoding pixels.

    Raises:
        DataError: The file is no image.
    """
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            turned = 5 <= _orientation(image, data) <= 8  # by a quarter
            return (image.width, image.height) if turned else (image.height, image.width)
    except Exception as error:
        raise _undecodable(path, error) from error


def is_turned(path: Path) -> bool:
    """Return whether the EXIF orientation of a readable file turns or mirrors the image."""
    if path.suffix == ".mat":
        return False
    data = path.read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        return 2 <= _orientation(image, data) <= 8


def _orientation(image: Image.Image, data: bytes) -> int:
    """Return an opened image's EXIF orientation, 1 to 8."""
    # Pillow would decode a whole PNG to look for EXIF after its pixels
    if image.format == "PNG" and b"eXIf" not in data and b"Raw profile" not in data:
        return 1
    return int(image.getexif().get(_ORIENTATION, 1))


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


def _open(file: Path | io.BytesIO, path: Path | str) -> Image.Image:
    """Decode an image with Pillow, turned as its EXIF orientation says; errors name `path`."""
    try:
        with Image.open(file) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
    except Exception as error:
        raise _undecodable(path, error) from error


def _undecodable(path: Path | str, error: Exception) -> DataError:
    reason = "no known format" if isinstance(error, UnidentifiedImageError) else error
    return DataError(f"{path} cannot be read as an image: {reason}")


def by_stem(
    files: Iterable[Path], base: Path, suffix: str = "", skip: bool = False
) -> dict[str, Path]:
    """Return files by their path below a folder, without the file type and without a suffix.

    Args:
        files: Image files below `base`.
        base: Folder that the names are relative to.
        suffix: End of the names to return, such as `_mask`, which is cut off; files with other
            names are left out.
        skip: True takes the first of files with the same name; False raises an error.

    Raises:
        UnpairedError: Two files have the same name.
    """
    by_name: dict[str, Path] = {}
    clashes: list[str] = []
    for path in files:
        name = path.relative_to(base).with_suffix("").as_posix()
        if not name.endswith(suffix):
            continue
        stem = name.removesuffix(suffix)
        if by_name.setdefault(stem, path) != path:
            clashes.append(
                f"{by_name[stem]} and {path} have the same name but for their type: keep one"
            )
    if clashes and not skip:
        raise UnpairedError(some(clashes, 3), clashes)
    return by_name
