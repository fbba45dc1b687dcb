"""What the methods that train an encoder alone share; another training starts from the encoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any
from zlib import crc32

import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lightning_seg.errors import SetupError
from lightning_seg.metrics import WeightedMean
from lightning_seg.networks.encoder import TimmEncoder
from lightning_seg.training.method import MethodModule


class PretrainingModule(MethodModule, ABC):
    """Base of the methods that train an encoder; `SaveEncoder` writes it at the end of `fit`.

    These methods have no `val/miou`. A ModelCheckpoint or an EarlyStopping that follows it follows
    `val/loss` instead.
    """

    trains_encoder = True

    @property
    @abstractmethod
    def encoder(self) -> TimmEncoder:
        """The encoder that another training starts from."""

    def setup(self, stage: str) -> None:
        """Raise for `predict`; make callbacks follow val/loss where they follow val/miou."""
        super().setup(stage)
        if stage == "predict":
            raise SetupError(
                f"{type(self).__name__} trains an encoder, which predicts no labels: fine-tune a "
                "segmentation network that starts from it",
                option="model.network.weights FILE",
            )
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ModelCheckpoint) and callback.monitor == "val/miou":
                callback.monitor, callback.mode = "val/loss", "min"
                callback.kth_value = torch.tensor(torch.inf)
                rank_zero_info(
                    f"{type(self).__name__} has no val/miou: checkpoints follow val/loss"
                )
            elif isinstance(callback, EarlyStopping) and callback.monitor == "val/miou":
                callback.monitor, callback.mode = "val/loss", "min"
                callback.best_score, callback.min_delta = (
                    torch.tensor(torch.inf),
                    -abs(callback.min_delta),
                )
                rank_zero_info(
                    f"{type(self).__name__} has no val/miou: EarlyStopping follows val/loss"
                )

    @abstractmethod
    def evaluation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Add a batch to the scores that `evaluation` returns."""

    @abstractmethod
    def evaluation(self) -> dict[str, Tensor]:
        """Return the scores, `loss` among them, equal on all processes, and reset them."""

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Add a validation batch to the scores."""
        self.evaluation_step(batch, batch_idx)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Add a test batch to the scores."""
        self.evaluation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Log `val/loss` and the other scores."""
        self._log("val")

    def on_test_epoch_end(self) -> None:
        """Log `test/loss` and the other scores."""
        self._log("test")

    def _log(self, stage: str) -> None:
        scores = self.evaluation()
        self.log(f"{stage}/loss", scores.pop("loss"), prog_bar=True, sync_dist=True)
        # every process holds the same values
        self.log_dict({f"{stage}/{name}": value for name, value in scores.items()}, sync_dist=True)


class ImagePretrainingModule(PretrainingModule, ABC):
    """Base of the methods that train on images without labels.

    Args:
        network: An encoder with the layers that this method trains on top of it.
        options: Arguments of `MethodModule`.
    """

    def __init__(self, network: nn.Module, **options: Any) -> None:
        super().__init__(network, **options)
        self.mean_loss = WeightedMean()

    def evaluation(self) -> dict[str, Tensor]:
        """Return the mean loss."""
        loss = self.mean_loss.compute()
        self.mean_loss.reset()
        return {"loss": loss}


def generators(ids: Sequence[str]) -> list[torch.Generator]:
    """Return a generator for every image, which depends on its id alone.

    An evaluation then does not depend on the batches and the processes that share the images.
    """
    return [torch.Generator().manual_seed(crc32(name.encode())) for name in ids]


def counted_images(batch: dict[str, Any]) -> Tensor:
    """Return (B,) bool, False for the copies that give all processes equally many images."""
    image: Tensor = batch["image"]
    counted: Tensor | None = batch.get("counted")
    if counted is None:  # of a data module without copies
        return torch.ones(len(image), dtype=torch.bool, device=image.device)
    return counted
