"""What the methods that train an encoder alone share; another training starts from the encoder."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_seg.errors import SetupError, require_range
from lightning_seg.metrics import WeightedMean
from lightning_seg.networks.encoder import TimmEncoder
from lightning_seg.pictures import rows_of_pictures
from lightning_seg.training.method import MethodModule


class PretrainingModule(MethodModule, ABC):
    """Base of the methods that train an encoder; `SaveEncoder` writes it at the end of `fit`.

    These methods have no `val/miou`. A ModelCheckpoint that follows it follows `val/loss` instead.
    """

    @property
    @abstractmethod
    def encoder(self) -> TimmEncoder:
        """The encoder that another training starts from."""

    def setup(self, stage: str) -> None:
        """Raise for `predict`; make ModelCheckpoint follow val/loss where it follows val/miou."""
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

    def pictures(self) -> dict[str, NDArray[np.uint8]]:
        """Return (H, W, 3) uint8 pictures of the last validation by name."""
        return {}

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
    """Base of the methods that train on images without labels and draw some of them.

    Args:
        network: An encoder with the layers that this method trains on top of it.
        shown: Number of validation images in a picture, at least 0; they are spread over the
            batches.
        options: Arguments of `MethodModule`.

    Attributes:
        headings: The heading of each column of the picture.
    """

    headings: Sequence[str]

    def __init__(self, network: nn.Module, *, shown: int = 4, **options: Any) -> None:
        super().__init__(network, **options)
        require_range(0, math.inf, shown=shown)
        self.shown = shown
        self.mean_loss = WeightedMean()
        self._images: list[Tensor] = []

    @abstractmethod
    def row(self, image: Tensor, number: int) -> list[Tensor]:
        """Return the pictures in one row, each (3, H, W) in [0, 1].

        Args:
            image: (1, 3, H, W) RGB in [0, 1].
            number: The row, from 0 on.
        """

    def evaluation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Keep the images of a batch that the picture shows."""
        batches = self.trainer.num_val_batches[0] if self.trainer.num_val_batches else 1
        if batch_idx == 0:
            self._images = []
        # the number of images that are due after this batch, if they are spread evenly
        due = math.ceil(self.shown * (batch_idx + 1) / max(1, batches))
        left = max(0, min(due, self.shown) - len(self._images))
        self._images += list(batch["image"][:left])

    def evaluation(self) -> dict[str, Tensor]:
        """Return the mean loss."""
        loss = self.mean_loss.compute()
        self.mean_loss.reset()
        return {"loss": loss}

    @torch.no_grad()
    def pictures(self) -> dict[str, NDArray[np.uint8]]:
        """Return one picture, with a row for each image that is shown."""
        training, rows = self.training, []
        self.eval()
        for number, image in enumerate(self._images):
            image = image.float() / 255 if not image.is_floating_point() else image.float()
            rows.append(self.row(image[None], number))
        self.train(training)
        name = type(self).__name__.removesuffix("Module").lower()
        return {name: rows_of_pictures(rows, self.headings)} if rows else {}
