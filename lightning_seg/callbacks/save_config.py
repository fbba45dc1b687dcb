"""The configuration in force is saved beside the run and sent to the loggers."""

from __future__ import annotations

from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_warn

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
        """Save the configuration when the data and the checkpoint are known to fit."""
        folder = run_folder(trainer)  # every process asks
        if not trainer.is_global_zero:
            return
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
