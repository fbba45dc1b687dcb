"""One of two gloo processes: trains both two-player methods in many settings, keeps the weights.

RANK=0 WORLD_SIZE=2 ... python adversaries.py FOLDER
"""

from __future__ import annotations

import sys
import warnings
from functools import partial
from pathlib import Path

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy
from small_runs import scenes, tiny
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_seg import ASMLModule, SemiAdvModule
from lightning_seg.networks import FCDiscriminator, StructureAnalyzer

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "limit_val_batches": 0,
}
STRATEGIES = {
    "ddp": {},
    "ddp_find_unused_parameters_true": {"find_unused_parameters": True},
    "ddp_static_graph": {"static_graph": True},
}
SMALL_ANALYZER = {"analyzer": partial(StructureAnalyzer, widths=(4, 8, 8))}
SMALL_DISCRIMINATOR = {"discriminator": partial(FCDiscriminator, width=4)}
METHODS = {
    "analyzer first": (ASMLModule, SMALL_ANALYZER),
    "simultaneous": (ASMLModule, SMALL_ANALYZER | {"order": "simultaneous"}),
    "semi_adv": (SemiAdvModule, SMALL_DISCRIMINATOR | {"semi_start": 4, "semi_start_adv": 2}),
    "accumulating": (
        SemiAdvModule,
        SMALL_DISCRIMINATOR | {"semi_start": 2, "accumulate_grad_batches": 2},
    ),
}
SETTINGS = [(method, name, "32-true") for method in METHODS for name in STRATEGIES]
SETTINGS += [(method, "ddp", each) for method in METHODS for each in ("bf16-mixed", "16-mixed")]
STEPS = 20


class Exchanges(L.Callback):
    """Counts what is summed over processes within steps, other than by DDP itself.

    The sum and the number of values of a mean, two numbers, are not counted.
    """

    def __init__(self) -> None:
        self.count, self.within = 0, False
        self.all_reduce = dist.all_reduce

    def __call__(self, values, *args, **kwargs):
        self.count += self.within and values.numel() > 2
        return self.all_reduce(values, *args, **kwargs)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.within, dist.all_reduce = True, self

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.within, dist.all_reduce = False, self.all_reduce


def batches(count: int) -> list[dict]:
    """Small semi-supervised batches of noise; every second one is of the second process."""
    torch.manual_seed(3)
    found = []
    for number in range(count):
        groups = {}
        for name in ("labeled", "unlabeled", "labeled_real"):
            mask = torch.randint(0, 8, (2, 5, 5)).repeat_interleave(8, 1).repeat_interleave(8, 2)
            image = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
            valid = torch.ones(2, 40, 40, dtype=torch.bool)
            groups[name] = {"image": image, "id": [str(number)] * 2, "valid": valid, "mask": mask}
        found.append(groups)
    return found


def module(method: str, **options):
    """Return a method on the tiny network, whose batch norms stay as they are."""
    kind, settings = METHODS[method]
    fast = {"opponent_optimizer": torch.optim.SGD, "opponent_lr": 0.1, "freeze_batch_norm": "all"}
    return tiny(kind, aux=True, **{**fast, **settings, **options})


def train(ours, data, steps: int, **options) -> L.Trainer:
    """Train on a list of batches, or on a data module."""
    trainer = L.Trainer(**QUIET, max_steps=steps, **options)
    if isinstance(data, list):
        data = DataLoader(data, batch_size=None)
    trainer.fit(ours, data)
    return trainer


def weights(ours) -> dict[str, Tensor]:
    """Return all learnt weights."""
    return {name: weight.detach().clone() for name, weight in ours.named_parameters()}


def main(folder: Path, rank: int) -> None:
    """Train in every setting; write `rank<r>.pt`."""
    found = {}
    for method, name, precision in SETTINGS:
        ours = module(method)
        if rank == 1:  # both are to start from the first one's weights
            with torch.no_grad():
                for weight in ours.parameters():
                    weight.add_(1)
        half = MixedPrecision(
            "16-mixed", "cpu", torch.amp.GradScaler("cpu", 64.0, growth_interval=3)
        )
        cast = {"plugins": [half]} if precision == "16-mixed" else {"precision": precision}
        strategy = DDPStrategy(process_group_backend="gloo", **STRATEGIES[name])
        exchanges = Exchanges()
        trainer = train(
            ours,
            batches(8)[rank::2],
            STEPS,
            devices=2,
            strategy=strategy,
            use_distributed_sampler=False,
            callbacks=[exchanges],
            **cast,
        )
        counts = {"steps": trainer.global_step, "exchanges": exchanges.count}
        found[method, name, precision] = weights(ours), counts
    # through a data module, where processes have different images, and one has no labels at all
    data = scenes(
        crop_size=40,
        train_size=16,
        labeled="1/2",
        splits_dir=str(folder / "splits"),
        unlabeled_batch_size=1,
        iterations_per_epoch=3,
    )
    ours = module("semi_adv", t_semi=1.0 if rank else 0.0, semi_start=0)
    no_labels = L.Callback()
    no_labels.on_train_batch_start = lambda trainer, module, batch, index: (
        batch["labeled"]["mask"].fill_(255) if rank else None
    )
    train(ours, data, 4, devices=2, strategy="ddp", callbacks=[no_labels], default_root_dir=folder)
    found["data module"] = weights(ours), {}
    torch.save(found, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    import os

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(os.environ["RANK"]))
