"""The configuration in force is saved beside the run and sent to the loggers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_warn

from lightning_seg.errors import SetupError
from lightning_seg.files import write_whole
from lightning_seg.run_folder import CONFIG, run_folder


class LoggedConfig(SaveConfigCallback):
    """Saves the whole configuration of a training as `config.yaml`, and sends it to every logger.

    W&B shows and compares configurations. A later `test` or `predict` does not replace the file.
    """

    def __init__(self, *args: Any, overwrite: bool = True, **options: Any) -> None:
        super().__init__(*args, overwrite=overwrite, **options)  # type: ignore[misc]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save nothing yet: a start that fails leaves the configuration of an earlier run."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the configuration when the data and the checkpoint are known to fit.

        Raises:
            SetupError: Checkpoints cannot be written, which would end the run after an epoch.
        """
        folder = run_folder(trainer)  # every process asks
        if not trainer.is_global_zero:
            return
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath:
                _require_writable(Path(callback.dirpath))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.parser.save(
                self.config,
                folder / CONFIG,
                skip_none=False,
                overwrite=self.overwrite,
                multifile=self.multifile,
            )
        except OSError as error:
            rank_zero_warn(f"{CONFIG} is not written to {folder}: {error.strerror}")
        self.save_config(trainer, pl_module, "fit")

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Send the configuration to every logger; only the first process comes here."""
        text = self.parser.dump(self.config, skip_none=False)
        for logger in trainer.loggers:
            logger.log_hyperparams({"config": yaml.safe_load(text)})


def _require_writable(folder: Path) -> None:
    """Raise an error for a folder of checkpoints that cannot be written."""
    try:
        with write_whole(folder / "probe") as part:
            part.touch()
        (folder / "probe").unlink()
    except OSError as error:
        raise SetupError(
            f"checkpoints cannot be written to {folder}: {error.strerror}",
            option="trainer.default_root_dir",
        ) from error
