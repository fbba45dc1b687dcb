"""The encoder alone as a file: what one training hands over to the next."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_seg.errors import SetupError
from lightning_seg.networks.encoder import TimmEncoder
from lightning_seg.networks.encoder_weights import WeightFile, save_encoder
from lightning_seg.training import MethodModule, PretrainingModule


class SaveEncoder(Callback):
    """Writes the encoder's weights at the end of `fit`, for `--model.network.weights`.

    Beside the weights the file holds the encoder's name, how its input is normalised, and whether
    that was in colour or grey: `TimmEncoder` refuses it for another encoder, and the next module
    takes up its input mode. Optimizer, schedule and step are not handed over.

    Args:
        path: The file; None writes `encoder.pt` in the run's folder after a training that is
            for the encoder alone, and nothing after others.

    Raises:
        SetupError: A `path`, and a network without a `TimmEncoder`.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop before training where there is nothing to write."""
        if stage == "fit" and self.path is not None and _encoder(pl_module) is None:
            raise SetupError(
                f"{type(pl_module).__name__} has no TimmEncoder that could be written "
                "(option: --encoder_file.path null)"
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file; no process goes on before it is there."""
        wanted = self.path is not None or isinstance(pl_module, PretrainingModule)
        if not wanted or getattr(trainer, "fast_dev_run", False):
            return
        folder = trainer.log_dir or trainer.default_root_dir  # asked on every process
        path = Path(self.path or Path(folder) / "encoder.pt")
        encoder = _encoder(pl_module)
        if trainer.is_global_zero:
            assert encoder is not None
            assert isinstance(pl_module, MethodModule)
            content = WeightFile(
                encoder.bare.state_dict(),
                encoder.name,
                pl_module.input_mode,
                encoder.mean,
                encoder.std,
            )
            save_encoder(path, content)
        rank_zero_info(f"encoder: {path}")
        trainer.strategy.barrier("encoder")


def _encoder(module: LightningModule) -> TimmEncoder | None:
    """Return the one encoder of a segmentation network or of what trains an encoder alone."""
    found = [part for part in module.modules() if isinstance(part, TimmEncoder)]
    return found[0] if found else None
