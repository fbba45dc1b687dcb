"""Draw the pictures of docs/dashboards.md into docs/dashboards: a short training of each method.

    python docs/make_dashboard_pictures.py [lmp cpg asml semi_adv mix_match colorization jigsaw]

trains the methods that are named, and all of them without a name, on drawn scenes, for a minute or
two each on two CPU cores. The pictures are those that the callback `pictures` writes.
"""

from __future__ import annotations

import csv
import os
import sys
import tempfile
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

import cli

HERE = Path(__file__).resolve().parent
FOLDER = HERE / "dashboards"
METHODS = ("lmp", "cpg", "asml", "semi_adv", "mix_match", "colorization", "jigsaw")
FOR_ENCODERS = ("mix_match", "colorization", "jigsaw")
LARGEST = 150_000
"""Largest size of a committed picture in bytes."""

RUN = """
--trainer.accelerator=cpu --trainer.max_epochs=6 --trainer.log_every_n_steps=4
--trainer.enable_progress_bar=false --data.image_size=[144,208] --data.crop_size=128
--data.train_size=64 --data.val_size=12 --data.batch_size=8 --data.num_workers=0
--pictures.every_n_validations=6 --pictures.images=2 --model.lr_scheduler=PolyLR
"""
NETWORK = """
-c configs/network/lraspp.yaml --model.network.encoder=tf_efficientnet_lite0
--model.network.weights=package --model.backbone_lr_factor=0.3 --model.optimizer=torch.optim.AdamW
--model.lr=0.003
"""
ENCODER = """
--model.encoder.name=tf_efficientnet_lite0 --model.encoder.weights=package
--model.optimizer=torch.optim.AdamW --model.lr=0.0003
"""
OWN = {
    "asml": "--model.opponent_lr=0.02",
    "semi_adv": "--data.labeled=1/4 --data.unlabeled_batch_size=4 --model.opponent_lr=0.001",
    "mix_match": "--data.patches.out_size=64 --data.patches.patches_per_image=6"
    " --data.train_size=32",
    "jigsaw": "--model.permutations=4 --model.grid=2 --data.train_size=32",
    "colorization": "--data.train_size=32",
}
"""Options of a method; the puzzles are easy, so that some of them are solved."""


def train(method: str, folder: Path) -> Path:
    """Train a method; return the folder of its run."""
    network = ENCODER if method in FOR_ENCODERS else NETWORK
    words = ["-c", f"configs/method/{method}.yaml", *network.split(), *RUN.split()]
    logger = ["CSVLogger", f"--trainer.logger.save_dir={folder}", "--trainer.logger.name=run"]
    words += ["--trainer.logger", *logger, f"--trainer.default_root_dir={folder}"]
    cli.main(["fit", *words, *OWN.get(method, "").split()])
    return folder / "run" / "version_0"


def small(picture: Image.Image, path: Path) -> None:
    """Save a picture in the best quality that stays below the largest size."""
    for quality in (92, 85, 75, 60):  # a palette would change the colours of the legend
        picture.save(path, quality=quality, subsampling=0, optimize=True)
        if path.stat().st_size <= LARGEST:
            return
    raise ValueError(f"{path} has {path.stat().st_size} bytes")


def curves(metrics: Path) -> Figure:
    """Draw the groups of scalars that a dashboard shows of one run.

    Args:
        metrics: The `metrics.csv` of a run.
    """
    with metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    groups = {
        "train/": ["loss", "loss_d", "loss_adv"],
        "val/": ["miou", "pixel_accuracy", "loss"],
        "lr/": ["network/backbone", "network/head", "opponent"],
        "gradient/": ["network", "opponent"],
        "speed/": ["images_per_second"],
        "memory/": ["peak_gb"],
    }
    figure = Figure(figsize=(9, 4.6), dpi=100, layout="constrained")
    for axes, (group, names) in zip(figure.subplots(2, 3).flat, groups.items(), strict=True):
        for name in names:
            known = [row for row in rows if row.get(group + name)]
            points = [(int(row["step"]), float(row[group + name])) for row in known]
            if points:
                axes.plot(*zip(*points, strict=True), marker=".", label=name)
        axes.set_title(group, fontsize=10)
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=8)
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(names: list[str]) -> None:
    """Draw the pictures of the methods that are named."""
    FOLDER.mkdir(exist_ok=True)
    for method in names or METHODS:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)  # where splits are written
            run = train(method, Path(folder))
            for kind in ("examples", "embedding"):
                found = sorted((run / "pictures").glob(f"{kind}_*.png"))
                if found:
                    name = method if kind == "examples" else kind
                    small(Image.open(found[-1]).convert("RGB"), FOLDER / f"{name}.jpg")
            if method == "semi_adv":
                path = Path(folder, "scalars.png")
                curves(run / "metrics.csv").savefig(path)
                small(Image.open(path).convert("RGB"), FOLDER / "scalars.jpg")
            os.chdir(HERE)


if __name__ == "__main__":
    main(sys.argv[1:])
