"""Files of `torch.save`, read safely: what is damaged, foreign or could run code is an error."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_seg.errors import SetupError


def read_torch_file(path: Path, what: str, option: str, safe: bool = True) -> Any:
    """Return the content of a file of `torch.save`, on the CPU.

    Args:
        path: The file.
        what: The kind of file in messages, such as `the checkpoint`.
        option: The option that names the file.
        safe: Whether tensors and plain values alone are read; other Python objects can run code.

    Raises:
        SetupError: The file is missing, empty, cut off, damaged, of another kind, or holds Python
            objects.
    """
    require_file(path, what, option)
    archive = is_archive(path)
    if archive:  # files of torch before 1.6 are none, and hold no checksums
        require_checksums(path, what, option)
    try:
        return torch.load(path, map_location="cpu", weights_only=safe)
    except pickle.UnpicklingError as error:
        if not archive:
            raise _foreign(path, what, option) from error
        raise SetupError(
            f"{what} {path} holds Python objects beside tensors and plain values, and is not read "
            "because they could run code",
            option=option,
        ) from error
    except Exception as error:  # torch raises almost any kind for a file that is none of its own
        raise _foreign(path, what, option) from error


def is_archive(path: Path) -> bool:
    """Return whether a file begins like a zip archive, which files of torch are since 1.6."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def require_file(path: Path, what: str, option: str) -> None:
    """Raise `SetupError` for what is no file, or an empty one."""
    if path.is_dir():
        inside = sorted(each.name for each in path.iterdir() if each.suffix == path.suffix)
        inside = inside or sorted(each.name for each in path.glob("*.ckpt"))
        there = f"; in it are {', '.join(inside[:5])}" if inside else ""
        raise SetupError(f"{path} is a folder, expected a file{there}", option=option)
    if not path.is_file():
        raise SetupError(f"{what} {path} does not exist", option=option)
    if path.stat().st_size == 0:
        raise SetupError(f"{what} {path} is empty", option=option)


def require_checksums(path: Path, what: str, option: str) -> None:
    """Raise `SetupError` where the content of a file differs from the checksums in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # a damaged directory of the archive
        raise SetupError(
            f"{what} {path} was cut off, or is damaged: {error}", option=option
        ) from error
    if damaged is not None:
        raise SetupError(
            f"{what} {path} is damaged: the checksum of {damaged} differs", option=option
        )


def require_finite(tensors: Mapping[str, Any], path: Path | str, what: str, option: str) -> None:
    """Raise `SetupError` for tensors with NaN or infinite values.

    Args:
        tensors: Tensors by name; other values are passed over.
        path: The file that they come from.
        what: The kind of file in messages.
        option: The option that names the file.
    """
    floating = {
        name: value
        for name, value in tensors.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    bad = [name for name, value in floating.items() if not bool(value.isfinite().all())]
    if bad:
        raise SetupError(
            f"{what} {path} holds NaN or infinite values in {len(bad)} of {len(tensors)} tensors, "
            f"the first of them {bad[0]}: the training had diverged",
            option=option,
        )


def _foreign(path: Path, what: str, option: str) -> SetupError:
    return SetupError(f"{what} {path} is no file of torch, or was cut off", option=option)
