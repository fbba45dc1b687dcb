"""Self-training on horses with few labels: what `autolabel` keeps, and what a student gains.

    python benchmarks/self_training.py [--seeds 0 1 2] [--out runs/self_training]

For every seed, 20 of 200 training images keep their labels. A teacher trains on them for 150 steps,
`autolabel` labels the other 180 images in several ways, and for each of them a student trains for
150 steps, from the same start as the teacher, and for one of them also for 300 steps. The control
is a teacher of 300 steps. Every network is tested on the test images. The true masks of the 180
images, which no training sees, say how many labels are right. The rows are added to
`benchmarks/results/self_training.csv`, and rows that are there are skipped.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from small_copies import small_copies

import cli

ROOT = Path(__file__).resolve().parents[1]
HORSES = ROOT.parent / "shared" / "data" / "weizmann_horses"
ROWS = ROOT / "benchmarks" / "results" / "self_training.csv"
SHARED = (
    *("-c", "configs/data/weizmann_horse.yaml", "-c", "benchmarks/evidence/lite0_lraspp.yaml"),
    *("-c", "configs/method/cross_entropy.yaml", "-c", "benchmarks/evidence/common.yaml"),
)
WAYS: dict[str, list[str]] = {
    "all predictions": ["--autolabel.keep=null"],
    "keep 0.8": [],
    "keep 0.5": ["--autolabel.keep=0.5"],
    "keep 0.2": ["--autolabel.keep=0.2"],
    "threshold 0.9": ["--autolabel.keep=null", "--autolabel.threshold=0.9"],
}
"""The options of `autolabel` by the name of the row."""


def fit(folder: Path, steps: int, seed: int, words: list[str]) -> Path:
    """Train for some steps; return the last checkpoint."""
    own = [f"--trainer.max_steps={steps}", f"--seed_everything={seed}", *places(folder)]
    cli.main(["fit", *SHARED, *words, *own])
    (checkpoint,) = folder.rglob("last.ckpt")
    return checkpoint


def places(folder: Path) -> list[str]:
    """Return the options that put the files of a run into a folder."""
    return [f"--trainer.default_root_dir={folder}", f"--trainer.logger.save_dir={folder}"]


def iou(folder: Path, checkpoint: Path, words: list[str]) -> dict[str, float]:
    """Return the scores of a network on the test images."""
    options = [*places(folder / "test"), f"--ckpt_path={checkpoint}"]
    scores = cli.main(["test", *SHARED, *words, *options]).trainer.callback_metrics
    return {"miou": float(scores["test/miou"]), "horse": float(scores["test/iou/horse"])}


def truth_of(labels: Path, data: Path, labelled: set[str]) -> dict[str, float]:
    """Return coverage and precision of new masks by the true masks of their images."""
    pixels = kept = right = 0
    for path in sorted((labels / "masks" / "train").glob("*.png")):
        if path.stem in labelled:
            continue
        found = np.asarray(Image.open(path))
        true = np.asarray(Image.open(data / "train" / "masks" / path.name)) > 0
        pixels, kept = pixels + found.size, kept + int((found != 255).sum())
        right += int((found == true).sum())
    return {"true_coverage": kept / pixels, "true_precision": right / kept}


def add(row: dict[str, Any]) -> None:
    """Add a row to the file of results."""
    names = ["seed", "row", "steps", "miou", "horse", "coverage", "precision", "accuracy"]
    names += ["true_coverage", "true_precision"]
    there = ROWS.exists()
    with ROWS.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        if not there:
            writer.writeheader()
        writer.writerow({name: _short(row.get(name, "")) for name in names})


def _short(value: Any) -> Any:
    return f"{value:.6f}" if isinstance(value, float) else value


def measure(seed: int, out: Path, data: Path) -> None:
    """Train teacher, control and students of one seed."""
    root = [f"--data.root={data}", "--data.crop_size=112"]
    few = ["--data.labeled=20", f"--data.split_seed={seed}", f"--data.splits_dir={out / 'splits'}"]
    runs, done = out / f"seed{seed}", rows_of(seed)
    for name, steps in (("teacher", 150), ("control", 300)):
        if (name, steps) not in done:
            checkpoint = fit(runs / name, steps, seed, [*root, *few])
            scores = iou(runs / name, checkpoint, root)
            add({"seed": seed, "row": name, "steps": steps, **scores})
    (teacher,) = (runs / "teacher").rglob("last.ckpt")
    (listed,) = (out / "splits").rglob(f"seed{seed}/labeled.txt")
    for name, steps in [*((name, 150) for name in WAYS), ("keep 0.8", 300)]:
        if (name, steps) in done:
            continue
        labels, student = runs / f"labels {name}", runs / f"{name} {steps}"
        given = [*root, *few, f"--ckpt_path={teacher}", f"--autolabel.output={labels}"]
        if not labels.exists():
            words = [*given, *WAYS[name], *places(runs / "autolabel")]
            cli.main(["autolabel", *SHARED, *words])
        found = json.loads((labels / "autolabel.json").read_text())["all"]
        numbers = {key: found[key] for key in ("coverage", "precision", "accuracy")}
        numbers |= truth_of(labels, data, set(listed.read_text().split()))
        checkpoint = fit(student, steps, seed, ["-c", str(labels / "data.yaml")])
        scores = iou(student, checkpoint, root)
        add({"seed": seed, "row": name, "steps": steps, **scores, **numbers})


def rows_of(seed: int) -> set[tuple[str, int]]:
    """Return the rows of a seed that have been measured."""
    if not ROWS.exists():
        return set()
    with ROWS.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["seed"] == str(seed)]
    return {(row["row"], int(row["steps"])) for row in rows}


def main() -> None:
    """Measure every seed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/self_training"))
    given = parser.parse_args()
    sys.argv = sys.argv[:1]
    warnings.filterwarnings("ignore")
    data = small_copies(HORSES, given.out / "data", 160)
    for seed in given.seeds:
        measure(seed, given.out, data)


if __name__ == "__main__":
    main()
