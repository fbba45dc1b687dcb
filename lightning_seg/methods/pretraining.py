"""What the modules share that train an encoder alone, for another training to start from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torch import Tensor

from lightning_seg.errors import SetupError
from lightning_seg.methods.base import MethodModule
from lightning_seg.networks.encoder import TimmEncoder


class PretrainingModule(MethodModule, ABC):
    """Base of the modules that train an encoder; `SaveEncoder` writes it at the end of `fit`.

    Checkpoints that a trainer piece keeps by `val/miou`, which these do not have, are kept by
    `val/loss` instead.
    """

    @property
    @abstractmethod
    def encoder(self) -> TimmEncoder:
        """What is handed over; everything else of the network is only for this stage."""

    def setup(self, stage: str) -> None:
        """Refuse to predict; watch what there is."""
        if stage == "predict":
            raise SetupError(
                f"{type(self).__name__} trains an encoder, which predicts no labels: fine-tune a "
                "segmentation network that starts from it (option: --model.network.weights FILE)"
            )
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ModelCheckpoint) and callback.monitor == "val/miou":
                callback.monitor, callback.mode = "val/loss", "min"
                callback.kth_value = torch.tensor(torch.inf)
                rank_zero_info(
                    f"{type(self).__name__} has no val/miou: checkpoints follow val/loss"
                )

    def pictures(self) -> dict[str, NDArray[np.uint8]]:
        """Return (H, W, 3) pictures by name of what the last validation found."""
        return {}

    @abstractmethod
    def evaluation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Take note of a batch; `log_evaluation` tells the result."""

    @abstractmethod
    def evaluation(self) -> dict[str, Tensor]:
        """Return what the batches had, `loss` and others, equal on all processes; forget them."""

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Take note of a validation batch."""
        self.evaluation_step(batch, batch_idx)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Take note of a test batch."""
        self.evaluation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Log `val/loss` and what else there is."""
        self._log("val")

    def on_test_epoch_end(self) -> None:
        """Log `test/loss` and what else there is."""
        self._log("test")

    def _log(self, stage: str) -> None:
        scores = self.evaluation()
        self.log(f"{stage}/loss", scores.pop("loss"), prog_bar=True, sync_dist=True)
        # all processes hold the same: it averages nothing
        self.log_dict({f"{stage}/{name}": value for name, value in scores.items()}, sync_dist=True)
