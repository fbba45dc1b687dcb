"""One of two gloo processes: trains every method of `configs/method` a little, keeps the weights.

RANK=0 WORLD_SIZE=2 ... python every_method.py FOLDER
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import torch
from methods import PIECES, tiny_words

import cli


def main(folder: Path, rank: int) -> None:
    """Write `rank<r>.pt`: the learnt weights of every method, by its name."""
    found = {}
    os.chdir(folder)  # where splits are written
    for name in PIECES:
        words = [*tiny_words(name), "--trainer.devices=2", "--trainer.strategy=ddp"]
        words += ["--trainer.max_steps=3", f"--trainer.default_root_dir={folder / name}"]
        words += ["--trainer.limit_val_batches=1", "--trainer.enable_checkpointing=false"]
        module = cli.main(["fit", *words]).model
        assert module.trainer.world_size == 2
        found[name] = {key: value.detach().clone() for key, value in module.named_parameters()}
    torch.save(found, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(os.environ["RANK"]))
