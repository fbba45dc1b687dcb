"""Small things for tests that configuration files can name (`tests/support` is on the path)."""

from __future__ import annotations

import json
import os
import signal
from hashlib import sha256
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


class ChannelNet(nn.Module):
    """The logits of three classes are four times red, green and blue in [0, 1]."""

    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.factor = nn.Parameter(torch.tensor(4.0))

    def forward(self, image: Tensor) -> Tensor:
        return self.factor * image[:, : self.num_classes]


class DumpWeights(L.Callback):
    """Writes every process's own weights, to be compared."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        path = Path(self.folder) / f"rank{trainer.global_rank}.pt"
        torch.save(pl_module.network.state_dict(), path)


class WatchEncoder(L.Callback):
    """Keeps the first weights, and of each pass of the encoder its graph and its modes."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        network = pl_module.network
        self.start = {name: value.clone() for name, value in network.state_dict().items()}
        self.passes: list[tuple[bool, set[bool], bool]] = []
        network.encoder.register_forward_hook(
            lambda encoder, _, found: self.passes.append(
                (
                    found.requires_grad,
                    {part.training for part in encoder.modules()},
                    network.training,
                )
            )
        )


class NoWaiting(L.Callback):
    """Makes waiting for a CUDA device within a training step an error, once things are warm."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step >= 2:
            torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        torch.cuda.set_sync_debug_mode("default")


class RecordBatches(L.Callback):
    """Writes a line per batch: every group's ids and a digest of its tensors; may kill the run.

    Args:
        folder: Gets `rank<r>.jsonl`, to which lines are added.
        kill_at: Number of the batch behind which the process is killed; 0 lets it live.
    """

    def __init__(self, folder: str, kill_at: int = 0) -> None:
        self.folder = Path(folder)
        self.kill_at = kill_at
        self.count = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        line = {"epoch_batch": batch_idx}
        for name, group in batch.items():
            digest = sha256()
            for key in sorted(group):
                if isinstance(group[key], torch.Tensor):
                    digest.update(group[key].contiguous().numpy().tobytes())
            line[name] = [group["id"], digest.hexdigest()]
        with (self.folder / f"rank{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.count += 1
        if self.count == self.kill_at:
            # checkpoint callbacks run behind the others
            trainer.save_checkpoint(self.folder / "killed.ckpt")
            os.kill(os.getpid(), signal.SIGKILL)


class KillAt(L.Callback):
    """Kills the process behind the step that the environment's KILL_AT names."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == int(os.environ.get("KILL_AT", "0")):
            os.kill(os.getpid(), signal.SIGKILL)


class SignalAt(L.Callback):
    """Sends a signal to its own process after a batch of a verb.

    Args:
        number: The signal.
        batch: Number of the batch, counted from 1.
        rank: The process that gets the signal.
        hook: Whose batches count: `train`, `validation`, `test` or `predict`.
    """

    def __init__(self, number: int, batch: int, rank: int = 0, hook: str = "train") -> None:
        self.number, self.batch, self.rank, self.count = number, batch, rank, 0
        setattr(self, f"on_{hook}_batch_start", self._send)

    def _send(self, trainer, *args) -> None:
        self.count += not trainer.sanity_checking
        if self.count == self.batch and trainer.global_rank == self.rank:
            os.kill(os.getpid(), self.number)
