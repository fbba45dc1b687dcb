"""Compare a plain PyTorch loop and a module of this project on the same training.

    python benchmarks/plain_loop.py --epochs 12      # CamVid beside the repository, two cores
    python benchmarks/plain_loop.py --steps 50       # compares the weights after 50 steps

Loop and module get the same images in the same order with the same augmentation, and start from the
same weights, so that they differ in the framework only. Epochs alternate, and the table shows the
median of the ratios of their times, so that other load on the machine slows down both. The time of
an epoch includes training and validation, with a progress bar, without logger and checkpoint.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.table import Table
from torch import nn

from datamodules import CamVidDataModule
from lightning_seg import CrossEntropyModule, PolyLR
from lightning_seg.networks import LRASPP

ROOT = Path(__file__).resolve().parents[1] / ".." / "shared"
LR, FACTOR, POWER, SEED = 3e-3, 0.1, 0.9, 0


def network() -> nn.Module:
    """Return LR-ASPP on pretrained MobileNetV2 with the same random head in every call."""
    torch.manual_seed(SEED)
    return LRASPP(
        11,
        "mobilenetv2_100",
        weights=str(ROOT / "weights" / "mobilenetv2_100.tfhub_ptq_in1k.safetensors"),
        options={"pad_type": "same"},
    )


def data(workers: int) -> CamVidDataModule:
    """Return CamVid: training batches of 8 crops of 257x257, validation batches of 4 images."""
    return CamVidDataModule(
        root=str(ROOT / "data" / "camvid"),
        batch_size=8,
        val_batch_size=4,
        crop_size=257,
        scale=(0.6, 1.5),
        num_workers=workers,
        seed=SEED,
    )


class PlainLoop:
    """The training without a framework: forward, backward, step, and a confusion matrix."""

    def __init__(self, epochs: int, workers: int) -> None:
        self.net = network()
        self.mean = torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1)
        self.std = torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1)
        module = data(workers)
        module.setup("fit")
        self.train_loader, self.val_loader = module.train_dataloader(), module.val_dataloader()
        self.total = epochs * len(self.train_loader)
        self.step = 0
        encoder = list(self.net.encoder.parameters())
        head = list(self.net.head.parameters())
        self.optimizer = torch.optim.AdamW(
            [{"params": encoder, "lr": LR * FACTOR}, {"params": head, "lr": LR}]
        )
        self.base = [LR * FACTOR, LR]

    def logits(self, image: torch.Tensor) -> torch.Tensor:
        return self.net((image.float() / 255 - self.mean) / self.std)["out"]

    def epoch(self, at_most: int | None = None) -> None:
        self.net.train()
        for layer in self.net.encoder.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval()
        for count, batch in enumerate(self.train_loader):
            if count == at_most:
                return
            for group, base in zip(self.optimizer.param_groups, self.base, strict=True):
                group["lr"] = base * (1 - self.step / self.total) ** POWER
            loss = F.cross_entropy(self.logits(batch["image"]), batch["mask"], ignore_index=255)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.step += 1

    @torch.no_grad()
    def validate(self) -> float:
        self.net.eval()
        matrix = torch.zeros(11, 11, dtype=torch.int64)
        total = 0.0
        for batch in self.val_loader:
            logits, target = self.logits(batch["image"]), batch["mask"]
            total += F.cross_entropy(logits, target, ignore_index=255).item()
            valid = target != 255
            pairs = target[valid] * 11 + logits.argmax(1)[valid]
            matrix += pairs.bincount(minlength=121).view(11, 11)
        hits = matrix.diag().double()
        return (hits / (matrix.sum(0) + matrix.sum(1) - hits)).nanmean().item()


class Turns(Callback):
    """A callback that times every epoch of the trainer, and then the same epoch of the loop."""

    def __init__(self, loop: PlainLoop) -> None:
        self.loop = loop
        # seconds of the loop and of the module, mIoU of the loop and of the module
        self.rows: list[tuple[float, float, float, float]] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.start = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.module_seconds = time.perf_counter() - self.start

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        start = time.perf_counter()
        self.loop.epoch()
        loop_miou = self.loop.validate()
        seconds = time.perf_counter() - start
        miou = trainer.callback_metrics["val/miou"].item()
        self.rows.append((seconds, self.module_seconds, loop_miou, miou))
        print(
            f"epoch {trainer.current_epoch}: loop {seconds:.1f} s, "
            f"module {self.module_seconds:.1f} s, ratio {self.module_seconds / seconds:.3f}; "
            f"mIoU {loop_miou:.4f} and {miou:.4f}",
            flush=True,
        )


def module() -> CrossEntropyModule:
    """Return the same training as a module of this project."""
    return CrossEntropyModule(
        network(),
        num_classes=11,
        optimizer=torch.optim.AdamW,
        lr=LR,
        backbone_lr_factor=FACTOR,
        freeze_batch_norm="encoder",
        lr_scheduler=lambda optimizer: PolyLR(optimizer, POWER),
    )


def trainer(**options: Any) -> L.Trainer:
    """Return a trainer on the CPU that writes no files."""
    return L.Trainer(
        accelerator="cpu",
        logger=options.pop("logger", False),
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )


def compare_epochs(epochs: int, workers: int) -> None:
    """Print time and mIoU of loop and module for every epoch, and the median ratio of the times."""
    turns = Turns(PlainLoop(epochs, workers))
    trainer(max_epochs=epochs, callbacks=[turns]).fit(module(), data(workers))
    table = Table(title="CamVid, LR-ASPP on MobileNetV2, crops of 257, batch 8")
    for name in ("epoch", "loop s", "module s", "ratio", "loop mIoU", "module mIoU"):
        table.add_column(name, justify="right")
    for number, (loop_seconds, seconds, loop_miou, miou) in enumerate(turns.rows):
        table.add_row(
            str(number),
            f"{loop_seconds:.1f}",
            f"{seconds:.1f}",
            f"{seconds / loop_seconds:.3f}",
            f"{loop_miou:.4f}",
            f"{miou:.4f}",
        )
    Console().print(table)
    ratios = [seconds / loop_seconds for loop_seconds, seconds, _, _ in turns.rows]
    total = sum(row[1] for row in turns.rows) / sum(row[0] for row in turns.rows)
    print(f"module / loop: median of the epochs {statistics.median(ratios):.3f}, total {total:.3f}")


def compare_steps(steps: int, workers: int) -> None:
    """Print the largest difference between the weights of loop and module after some steps."""
    trained = module()
    run = trainer(max_steps=steps, max_epochs=-1, limit_val_batches=0, enable_progress_bar=False)
    run.fit(trained, data(workers))
    loop = PlainLoop(1, workers)
    loop.total = steps
    while loop.step < steps:
        loop.epoch(at_most=steps - loop.step)
    expected = loop.net.state_dict()
    worst = max(
        (value.double() - expected[name].double()).abs().max().item()
        for name, value in trained.network.state_dict().items()
    )
    print(f"largest difference of any weight after {steps} steps: {worst:.2e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument(
        "--steps",
        type=int,
        help="compare weights after this number of steps",
    )
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    if options.steps:
        compare_steps(options.steps, options.workers)
    else:
        compare_epochs(options.epochs, options.workers)
