"""Checkpoint files that survive a full disk and a killed process, and are checked when read."""

from __future__ import annotations

import contextlib
import pickle
import time
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from lightning_seg.errors import SetupError
from lightning_seg.files import PART, write_whole

_STARTED = time.time()


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, and renames it when it is on the disk.

    Until then the earlier checkpoint stays. Lightning's own plugin writes to the folder for
    temporary files first; where that lies on another disk, it copies over the earlier checkpoint,
    and a full disk or a killed process leaves half a file.

    A file of torch holds a checksum of every tensor. Reading compares them, and raises for a file
    that is damaged, of another kind, or whose weights are not finite. Only tensors and plain values
    are read, so that no code of the file runs.

    The command uses this plugin in every run; in Python, `Trainer(plugins=[WholeCheckpointIO()])`.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write a checkpoint whole or not at all.

        Args:
            checkpoint: The content.
            path: The file. A file that is not local, such as `s3://...`, is left to Lightning.
            storage_options: Not supported, as in Lightning's own plugin.

        Raises:
            SetupError: The file cannot be written; an earlier one is unchanged.
        """
        if storage_options is not None or not is_local(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        _remove_leftovers(path.parent)
        try:
            with write_whole(path, durable=True) as part:
                torch.save(checkpoint, part)
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError
            kept = "; the earlier checkpoint of this name is unchanged" if path.exists() else ""
            raise SetupError(f"the checkpoint {path} cannot be written: {error}{kept}") from error

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Return the content of a checkpoint.

        Args:
            path: A local file, or one that fsspec opens. An address of the web is refused.
            map_location: The device of the tensors, as for `torch.load`.
            weights_only: None and True read tensors and plain values only. False also reads other
                Python objects, which can run code of the file.

        Raises:
            SetupError: The file is missing, damaged, of another kind, or holds weights that are
                not finite.
        """
        if str(path).startswith(("http://", "https://")):
            raise SetupError(
                f"{path} is an address of the web: download the checkpoint first",
                option="ckpt_path",
            )
        safe = weights_only is not False
        if not is_local(path):
            content = super().load_checkpoint(path, map_location, safe)
        else:
            require_whole(Path(path))
            content = _read(Path(path), map_location, safe)
        _require_training(path, content)
        _require_finite(path, content)
        return content


def is_whole(path: Path) -> bool:
    """Return whether a file is an undamaged file of `torch.save`."""
    try:
        require_whole(path)
    except SetupError:
        return False
    return True


def is_local(path: Any) -> bool:
    """Return whether a path is one of this machine's file system."""
    return "://" not in str(path)


def require_whole(path: Path) -> None:
    """Raise `SetupError` for a file that is no undamaged file of `torch.save`."""
    if path.is_dir():
        inside = sorted(each.name for each in path.glob("*.ckpt"))
        there = f"; in it are {', '.join(inside[:5])}" if inside else ""
        raise SetupError(
            f"{path} is a folder, expected a checkpoint file{there}", option="ckpt_path"
        )
    if not path.is_file():
        raise SetupError(f"the checkpoint {path} does not exist", option="ckpt_path")
    if path.stat().st_size == 0:
        raise SetupError(f"the checkpoint {path} is empty", option="ckpt_path")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, NotImplementedError, EOFError, ValueError) as error:
        raise SetupError(
            f"{path} is no checkpoint, or was cut off: {error}", option="ckpt_path"
        ) from error
    if damaged is not None:
        raise SetupError(
            f"the checkpoint {path} is damaged: the checksum of {damaged} differs",
            option="ckpt_path",
        )


def _read(path: Path, map_location: Any, safe: bool) -> Any:
    try:
        return torch.load(path, map_location=map_location, weights_only=safe)
    except pickle.UnpicklingError as error:
        raise SetupError(
            f"{path} holds Python objects beside tensors and plain values, and is not read because "
            "they could run code. A file that you trust is read with weights_only false",
            option="weights_only false",
        ) from error
    except (RuntimeError, EOFError, KeyError, AttributeError, ValueError) as error:
        first = str(error).partition("\n")[0]
        raise SetupError(
            f"{path} cannot be read as a checkpoint: {first}", option="ckpt_path"
        ) from error


def _require_training(path: Any, content: Any) -> None:
    if not isinstance(content, dict) or "pytorch-lightning_version" not in content:
        raise SetupError(
            f"{path} is no checkpoint of a training. A file of encoder weights goes to the option "
            "`weights` of a network or an encoder",
            option=("model.network.weights", "model.encoder.weights"),
        )


def _require_finite(path: Any, content: dict[str, Any]) -> None:
    weights = content.get("state_dict", {}).items()
    bad = [
        name
        for name, value in weights
        if isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and not bool(value.isfinite().all())
    ]
    if bad:
        raise SetupError(
            f"the checkpoint {path} holds NaN or infinite values in {len(bad)} of "
            f"{len(weights)} tensors, the first of them {bad[0]}: the training had diverged",
            option="ckpt_path",
        )


def _remove_leftovers(folder: Path) -> None:
    """Remove the parts that killed processes have left in a folder."""
    for part in folder.glob(f"{PART}*"):
        with contextlib.suppress(OSError):  # another process may be faster
            if part.stat().st_mtime < _STARTED:  # not one that is being written
                part.unlink()
