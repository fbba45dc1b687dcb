"""Trains a method for many steps on tiny data, and notes what the process holds on the way.

python long_runs.py FOLDER METHOD STEPS WORKERS [WORDS OF THE COMMAND ...]

A run is measured after its first fifth, the warm-up: allocators, caches and the loader processes
have then got what they need. Its growth is that from the second fifth to the last one.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
from pathlib import Path

import lightning as L

FIFTHS = 5
SAMPLES = 100  # of a run
WORDS = [
    "--model.network=tiny.TinyNet",
    "--model.lr=0.01",
    "--data.image_size=[32,40]",
    "--data.crop_size=32",
    "--data.train_size=32",
    "--data.val_size=2",
    "--data.batch_size=2",
    "--data.labeled=1/2",
    "--data.seed=0",
    "--data.iterations_per_epoch=50",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.max_epochs=-1",
    "--trainer.check_val_every_n_epoch=2",
    "--trainer.callbacks+=long_runs.Holdings",
]
OWN = {
    "asml": ["--model.analyzer=small_players.analyzer"],
    "semi_adv": [
        "--model.discriminator=small_players.discriminator",
        "--data.unlabeled_batch_size=2",
        "--data.labeled_real_batch_size=2",
    ],
}
"""Words of the methods with a second player."""


def holdings(pid: int | str = "self") -> dict[str, int]:
    """Return resident bytes, open files and threads of a process."""
    place = Path(f"/proc/{pid}")
    pages = int((place / "statm").read_text().split()[1])
    return {
        "memory": pages * os.sysconf("SC_PAGE_SIZE"),
        "files": len(list((place / "fd").iterdir())),
        "threads": len(list((place / "task").iterdir())),
    }


def children() -> list[str]:
    """Return the ids of the processes that the main thread has started."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


class Holdings(L.Callback):
    """Notes after every hundredth of a training what this process and its loaders hold.

    Python's objects are counted, too: they show a list that grows by a scalar a step, which is too
    little to be seen in the memory of a process.
    """

    def __init__(self) -> None:
        self.found: list[dict[str, int]] = []
        self.objects = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step * SAMPLES % trainer.max_steps >= SAMPLES:
            return
        row = {"step": trainer.global_step, **holdings()}
        below = [holdings(child) for child in children()]
        if len(self.found) % 10 == 0:  # costly
            gc.collect()
            self.objects = len(gc.get_objects())
        row["objects"] = self.objects
        row |= {f"loaders' {key}": sum(each[key] for each in below) for key in holdings()}
        self.found.append(row | {"loaders": len(below)})


def growth(found: list[dict[str, int]]) -> dict[str, tuple[float, float]]:
    """Return the medians of the second and of the last fifth of a run."""
    fifth = len(found) // FIFTHS
    parts = found[fifth : 2 * fifth], found[-fifth:]
    return {
        key: tuple(statistics.median(row[key] for row in part) for part in parts)
        for key in found[0]
        if key != "step"
    }


def main(folder: Path, method: str, steps: int, workers: int, words: list[str]) -> None:
    """Train, and write `holdings.json`."""
    import cli

    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)  # where splits are written
    words = [*WORDS, *OWN.get(method, []), f"--data.num_workers={workers}", *words]
    words += [f"--trainer.max_steps={steps}", f"--trainer.default_root_dir={folder}"]
    piece = f"configs/method/{method}.yaml"
    found = cli.main(["fit", "-c", piece, "-c", "configs/logger/csv.yaml", *words]).trainer
    (kept,) = (each for each in found.callbacks if type(each).__name__ == "Holdings")
    assert found.global_step == steps
    (folder / "holdings.json").write_text(json.dumps(kept.found))
    for name, (early, late) in growth(kept.found).items():
        print(f"{method} {workers} workers: {name} {early:.0f} -> {late:.0f}")


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
