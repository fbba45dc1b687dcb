"""The resolved configuration beside the run, and in the logger's dashboard."""

from __future__ import annotations

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback


class LoggedConfig(SaveConfigCallback):
    """Also hands the whole configuration to the logger, so that W&B shows and compares it."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Send the configuration to every logger; called on the first process only."""
        text = self.parser.dump(self.config, skip_none=False)
        for logger in trainer.loggers:
            logger.log_hyperparams({"config": yaml.safe_load(text)})
