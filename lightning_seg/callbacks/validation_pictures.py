"""Pictures of what validation found, as files and in the dashboards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image

from lightning_seg.errors import SetupError


class ValidationPictures(Callback):
    """Shows the pictures of modules that make some: `pictures() -> {name: (H, W, 3) uint8}`.

    Each becomes `pictures/<name>_<step>.png` in the run's folder, and `val/<name>` in W&B and
    TensorBoard. Only the first process draws.

    Args:
        every_n_validations: 1 shows those of every validation, 0 none. The last validation of
            a training is always shown, unless none is.

    Raises:
        SetupError: A negative number.
    """

    def __init__(self, every_n_validations: int = 1) -> None:
        if every_n_validations < 0:
            raise SetupError(
                f"--pictures.every_n_validations must be at least 0, not {every_n_validations}"
            )
        self.every_n_validations = every_n_validations
        self._validations = 0
        self._shown_at: int | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the pictures where it is their turn; not of the check before training."""
        if trainer.sanity_checking:
            return
        self._validations += 1
        if self.every_n_validations and self._validations % self.every_n_validations == 0:
            self._show(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the last validation's."""
        if self.every_n_validations and self._validations:
            self._show(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return how many validations there were."""
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._validations = state_dict["validations"]

    def _show(self, trainer: Trainer, pl_module: LightningModule) -> None:
        make = getattr(pl_module, "pictures", None)
        step = trainer.global_step
        folder = trainer.log_dir or trainer.default_root_dir  # asked on every process
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
