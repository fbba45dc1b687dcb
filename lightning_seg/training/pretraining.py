"""What the modules share that train an encoder alone, for another training to start from."""

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
        """Take note of a batch; `evaluation` tells the result."""

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


class ImagePretrainingModule(PretrainingModule, ABC):
    """Base of those that train on images without labels, and show what they make of some.

    Args:
        network: Passed to `MethodModule`, like the options.
        shown: Validation images that pictures show, spread over the batches.
    """

    headings: Sequence[str]
    """Of the picture's columns."""

    def __init__(self, network: nn.Module, *, shown: int = 4, **options: Any) -> None:
        super().__init__(network, **options)
        require_range(0, math.inf, shown=shown)
        self.shown = shown
        self.mean_loss = WeightedMean()
        self._images: list[Tensor] = []

    @abstractmethod
    def row(self, image: Tensor, number: int) -> list[Tensor]:
        """Return a picture's row, (3, H, W) each in [0, 1], of the number-th image that is shown.

        Args:
            image: (1, 3, H, W) RGB in [0, 1].
            number: From 0 on.
        """

    def evaluation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Keep what is to be shown of a batch."""
        batches = self.trainer.num_val_batches[0] if self.trainer.num_val_batches else 1
        if batch_idx == 0:
            self._images = []
        # so many in equal steps, or as many of each batch as it takes
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
        """Return one picture with a row for each image that is shown."""
        training, rows = self.training, []
        self.eval()
        for number, image in enumerate(self._images):
            image = image.float() / 255 if not image.is_floating_point() else image.float()
            rows.append(self.row(image[None], number))
        self.train(training)
        name = type(self).__name__.removesuffix("Module").lower()
        return {name: rows_of_pictures(rows, self.headings)} if rows else {}
