"""Checkpoint files that survive a full disk and a killed process, and are checked when read."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from lightning_seg.errors import SetupError
from lightning_seg.files import PART, write_whole
from lightning_seg.tensor_files import (
    is_archive,
    read_torch_file,
    require_checksums,
    require_finite,
)

_STARTED = time.time()
WHAT, OPTION = "the checkpoint", "ckpt_path"


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
            map_location: The device of the tensors of a file that is not local; those of a local
                one are on the CPU, from where Lightning moves them.
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
        if is_local(path):
            content = read_torch_file(Path(path), WHAT, OPTION, safe)
        else:
            content = super().load_checkpoint(path, map_location, safe)
        if not isinstance(content, dict) or "pytorch-lightning_version" not in content:
            raise SetupError(
                f"{path} is no checkpoint of a training. A file of encoder weights goes to the "
                "option `weights` of a network or an encoder",
                option=("model.network.weights", "model.encoder.weights"),
            )
        require_finite(content.get("state_dict", {}), path, WHAT, OPTION)
        return content


def newest_whole(paths: Iterable[Path]) -> Path | None:
    """Return the newest undamaged checkpoint of some files; None without one."""
    newest_first = sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True)
    return next(filter(_is_whole, newest_first), None)


def _is_whole(path: Path) -> bool:
    """Return whether a file is an undamaged checkpoint, as far as its checksums say."""
    try:
        if not is_archive(path):
            return False
        require_checksums(path, WHAT, OPTION)
    except SetupError:
        return False
    return True


def is_local(path: Any) -> bool:
    """Return whether a path is one of this machine's file system."""
    return "://" not in str(path)


def _remove_leftovers(folder: Path) -> None:
    """Remove the parts that killed processes have left in a folder."""
    for part in folder.glob(f"{PART}*"):
        with contextlib.suppress(OSError):  # another process may be faster
            if part.stat().st_mtime < _STARTED:  # not one that is being written
                part.unlink()
