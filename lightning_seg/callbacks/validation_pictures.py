"""Pictures of a validation are saved as files and logged to the dashboards."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image

from lightning_seg.errors import require_range


class ValidationPictures(Callback):
    """Saves and logs the pictures of modules that have a method `pictures`.

    `pictures()` returns (H, W, 3) uint8 pictures by name. Each is written to
    `pictures/<name>_<step>.png` in the run's folder and logged as `val/<name>` to W&B and
    TensorBoard. Only the first process draws.

    Args:
        every_n_validations: Number of validations from one set of pictures to the next: 1 draws at
            every validation, 0 never. Any value above 0 draws after the last validation too.

    Raises:
        SetupError: `every_n_validations` is negative.
    """

    def __init__(self, every_n_validations: int = 1) -> None:
        require_range(0, math.inf, every_n_validations=every_n_validations)
        self.every_n_validations = every_n_validations
        self._validations = 0
        self._shown_at: int | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw after every n-th validation, but not after the check before training."""
        if trainer.sanity_checking:
            return
        self._validations += 1
        if self.every_n_validations and self._validations % self.every_n_validations == 0:
            self._show(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw after the last validation."""
        if self.every_n_validations and self._validations:
            self._show(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of validations so far."""
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the number of validations."""
        self._validations = state_dict["validations"]

    def _show(self, trainer: Trainer, pl_module: LightningModule) -> None:
        make = getattr(pl_module, "pictures", None)
        step = trainer.global_step
        folder = trainer.log_dir or trainer.default_root_dir  # a collective: every process asks
        if make is None or not trainer.is_global_zero or self._shown_at == step:
            return
        self._shown_at = step
        for name, picture in make().items():
            path = Path(folder, "pictures", f"{name}_{step:07d}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.log_image(f"val/{name}", [str(path)], step=step)
                elif isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_image(f"val/{name}", picture, step, dataformats="HWC")
