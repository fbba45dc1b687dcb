"""The encoder alone is written to a file, for another training to start from."""

from __future__ import annotations

import tempfile
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_seg.errors import SetupError
from lightning_seg.networks.encoder import TimmEncoder
from lightning_seg.networks.encoder_weights import WeightFile, save_encoder
from lightning_seg.run_folder import run_folder
from lightning_seg.training import MethodModule, PretrainingModule
from lightning_seg.training.sharding import whole_tensors


class SaveEncoder(Callback):
    """Writes the encoder's weights at the end of `fit`, from which another network can start.

    The file also holds the encoder's name, the mean and standard deviation of its input, and
    whether the input was in colour or grey. `TimmEncoder` refuses the file for another encoder, and
    the next module takes its input mode from it. The file holds no optimizer, schedule or step.

    Args:
        path: The file. None writes `encoder.pt` in the run's folder after a training of an encoder
            alone (colorization, jigsaw, mix-and-match), and nothing after other trainings.

    Attributes:
        written: The file, once it is there.

    Raises:
        SetupError: A `path` is given and cannot be written, or the network has no `TimmEncoder`.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path
        self.written: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raise before training where there is no encoder to write, or no place for it."""
        if stage == "fit" and self.path is not None and trainer.is_global_zero:
            _require_writable(Path(self.path))
        if stage == "fit" and self.path is not None and _encoder(pl_module) is None:
            raise SetupError(
                f"{type(pl_module).__name__} has no TimmEncoder that could be written",
                option="encoder_file.path null",
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file; every process waits until it is there."""
        wanted = self.path is not None or isinstance(pl_module, PretrainingModule)
        if not wanted or getattr(trainer, "fast_dev_run", False):
            return
        folder = run_folder(trainer)  # every process asks
        path = Path(self.path or folder / "encoder.pt")
        encoder = _encoder(pl_module)
        assert encoder is not None
        tensors = encoder.plain(whole_tensors(encoder.bare))  # every process gives its part
        if trainer.is_global_zero:
            assert isinstance(pl_module, MethodModule)
            content = WeightFile(
                tensors,
                encoder.name,
                pl_module.input_mode,
                pl_module.image_mean.flatten().tolist(),
                pl_module.image_std.flatten().tolist(),
            )
            save_encoder(path, content)
        self.written = path
        trainer.strategy.barrier("encoder")


def _require_writable(path: Path) -> None:
    """Raise `SetupError` where a file cannot be written, before a training has been spent on it."""
    try:
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise SetupError(
            f"the encoder's file {path} cannot be written: {error}", option="encoder_file.path"
        ) from error


def _encoder(module: LightningModule) -> TimmEncoder | None:
    """Return the first encoder in a module."""
    found = [part for part in module.modules() if isinstance(part, TimmEncoder)]
    return found[0] if found else None
