"""Small things for tests that configuration files can name (`tests/support` is on the path)."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import torch
from torch import Tensor, nn


class TinyNet(nn.Module):
    """A network with everything that makes training depend on state: batch norm and dropout."""

    def __init__(self, num_classes: int, aux: bool = False, dropout: float = 0.2) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Conv2d(8, num_classes, 1))
        self.aux = nn.Conv2d(8, num_classes, 1) if aux else None

    def forward(self, image: Tensor) -> Tensor | dict[str, Tensor]:
        features = self.encoder(image)
        if self.aux is None:
            return self.head(features)
        return {"out": self.head(features), "aux": self.aux(features)}


class DumpWeights(L.Callback):
    """Writes every process's own weights, to be compared."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        path = Path(self.folder) / f"rank{trainer.global_rank}.pt"
        torch.save(pl_module.network.state_dict(), path)
