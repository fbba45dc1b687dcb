"""One of two gloo processes: trains methods with sharded weights and with DDP.

RANK=0 WORLD_SIZE=2 ... python sharded.py FOLDER
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import lightning as L
import torch
from adversaries import QUIET
from lightning import Trainer
from lightning.pytorch.strategies import DDPStrategy
from parity import batches, module
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from lightning_seg import CrossEntropyModule, SetupError, ShardedStrategy
from lightning_seg.callbacks import SaveEncoder
from lightning_seg.networks import TimmEncoder, UNet
from lightning_seg.training.sharding import shard

CASES = ["cross-entropy", "lmp", "cpg", "colorization", "mix_match"]
STEPS = 3
BLOCK = 100


def strategy(name: str):
    if name == "ddp":
        return DDPStrategy(process_group_backend="gloo")
    return ShardedStrategy(block_weights=BLOCK)


def trainer(name: str, steps: int = STEPS, **options) -> Trainer:
    quiet = {**QUIET, "enable_checkpointing": False, "precision": "32-true", **options}
    common = {"devices": 2, "use_distributed_sampler": False, "max_epochs": 1, "max_steps": steps}
    return Trainer(**{**quiet, **common}, strategy=strategy(name))


def unequal(ours: nn.Module, rank: int) -> nn.Module:
    """Let the second process start from other weights, which must not matter."""
    if rank == 1:
        with torch.no_grad():
            for weight in ours.parameters():
                weight.add_(1)
    return ours


def unet() -> CrossEntropyModule:
    torch.manual_seed(0)
    network = UNet(8, encoder="test_efficientnet", decoder_channels=[8] * 5)
    return CrossEntropyModule(network, num_classes=8, lr=0.01)


def one(case: str, name: str, rank: int, folder: Path) -> dict[str, Tensor]:
    """Train a case; return the tensors of its checkpoint, which the first process writes."""
    adam = {"optimizer": torch.optim.AdamW, "lr": 0.01} if case == "cpg" else {}
    ours = unequal(module(case, **adam), rank)
    data = DataLoader(batches(case, rank), batch_size=None)
    run = trainer(name, callbacks=[SaveEncoder(str(folder / f"{name}.pt"))] * (case in CASES[3:]))
    run.fit(ours, data)
    path = folder / f"{case} {name}.ckpt"
    run.save_checkpoint(path)
    found = torch.load(path, weights_only=False)["state_dict"]
    if name == "sharded":
        assert isinstance(ours.network, FSDPModule)
        assert any(isinstance(part, FSDPModule) for part in list(ours.network.modules())[1:])
        assert all(isinstance(weight, DTensor) for weight in ours.network.parameters())
        kept = sum(weight.to_local().numel() for weight in ours.network.parameters())
        assert kept < 0.7 * sum(weight.numel() for weight in ours.network.parameters())
    if case in CASES[3:]:
        found |= {
            f"file {k}": v for k, v in torch.load(folder / f"{name}.pt")["state_dict"].items()
        }
    return found


def resumed(name: str, rank: int, folder: Path) -> dict[str, Tensor]:
    """Go on for one step from the checkpoint of the other strategy."""
    other = {"ddp": "sharded", "sharded": "ddp"}[name]
    ours = module("cpg", optimizer=torch.optim.AdamW, lr=0.01)
    data = DataLoader(batches("cpg", rank)[:1] * 4, batch_size=None)
    trainer(name, STEPS + 1).fit(ours, data, ckpt_path=folder / f"cpg {other}.ckpt")
    run = ours.trainer
    run.save_checkpoint(folder / f"resumed {name}.ckpt")
    return torch.load(folder / f"resumed {name}.ckpt", weights_only=False)["state_dict"]


def validated(name: str, rank: int) -> dict[str, float]:
    """Train with batch norms, whose statistics differ between the processes, and validate."""
    ours = unequal(unet(), rank)
    data = DataLoader([part["labeled"] for part in batches("cpg", rank)], batch_size=None)
    run = trainer(name, limit_val_batches=2, gradient_clip_val=0.1, precision="bf16-mixed")
    run.fit(ours, data, data)
    return {key: float(value) for key, value in run.callback_metrics.items()}


class Maps(L.LightningModule):
    """Adds up the maps of a vision transformer, which timm takes from it by another method."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = TimmEncoder("test_vit", out_indices=[0, 2], options={"img_size": 32})

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, ShardedStrategy):
            shard(self.network, self.trainer.strategy, self.device_mesh)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return sum(each.square().mean() for each in self.network(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def transformer(name: str, rank: int, folder: Path) -> list[Tensor]:
    """Return the weights of a vision transformer after two steps."""
    ours, data = Maps(), torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(rank))
    run = trainer(name, 2)
    run.fit(ours, DataLoader(list(data), batch_size=None))
    run.save_checkpoint(folder / f"vit {name}.ckpt")
    return list(torch.load(folder / f"vit {name}.ckpt", weights_only=False)["state_dict"].values())


def refused() -> dict[str, str]:
    """Return the messages of settings that do not work."""
    found = {}
    try:
        trainer("sharded").fit(module("asml"), DataLoader(batches("asml", 0), batch_size=None))
    except SetupError as error:
        found["two players"] = str(error)
    return found


def main(folder: Path, rank: int) -> None:
    found = {}
    for name in ("ddp", "sharded"):
        for case in CASES:
            found[case, name] = one(case, name, rank, folder)
    for name in ("ddp", "sharded"):
        found["resumed", name] = resumed(name, rank, folder)
        found["validated", name] = validated(name, rank)
        found["vit", name] = transformer(name, rank, folder)
    found["refused"] = refused()
    torch.save(found, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(os.environ["RANK"]))
