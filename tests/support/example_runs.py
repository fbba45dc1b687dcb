"""Folders of runs with scores, as `fit` and `test` leave them, from drawn scenes and noise.

python tests/support/example_runs.py FOLDER writes two of them, FOLDER/baseline and FOLDER/lmp.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from datamodules.synthetic_scenes import PALETTE, draw_scene
from lightning_seg.pictures import color_table
from lightning_seg.scores import Scores, iou_of

REGIONS = ("iou", "boundary_iou", "trimap_iou_1", "trimap_iou_3")
VOID = 255


def write_run(
    folder: Path,
    images: int = 24,
    quality: float = 0.0,
    seed: int = 0,
    size: tuple[int, int] = (96, 144),
    pictures: int = 12,
    verb: str = "test",
    **summary: Any,
) -> Path:
    """Write the folder of a run, and return it.

    Args:
        folder: The folder of the run.
        images: Number of images; the scenes depend on their number alone.
        quality: How far the errors are from those of quality 0, in [-1, 1]; higher is better.
        seed: The seed of the training, which draws the errors.
        size: Height and width of the images.
        pictures: Number of images with pictures.
        verb: The verb that leaves the scores.
        summary: Changes to the summary of the scores.
    """
    classes, palette = list(PALETTE), list(PALETTE.values())
    rng = np.random.default_rng(1000 + seed)
    ids, counts, listed = [], [], []
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    for number in range(images):
        image, truth = draw_scene(np.random.default_rng(number), size)
        prediction = wrong_labels(truth, rng, len(classes), quality)
        ids.append(f"scenes/{number:03}")
        counts.append(slow_counts(prediction, truth, len(classes)))
        labeled = truth != VOID
        pairs = truth[labeled].astype(int) * len(classes) + prediction[labeled]
        confusion += np.bincount(pairs, minlength=confusion.size).reshape(confusion.shape)
        if number < pictures:
            listed.append(
                _write_pictures(folder / verb, ids[-1], image, truth, prediction, palette)
            )
    found = Scores(ids, list(REGIONS), np.array(counts))
    found.summary = _summary(found, classes, palette, confusion, seed, verb) | {"pictures": listed}
    found.summary.update(summary)
    found.write(folder / verb)
    _write_training(folder, seed, found.summary["scores"]["miou"])
    return folder


def wrong_labels(
    truth: NDArray[np.uint8], rng: np.random.Generator, classes: int, quality: float
) -> NDArray[np.uint8]:
    """Return a map with shifted boundaries and some patches of other classes."""
    height, width = truth.shape
    bend = 3.0 * 2.0**-quality
    shift = [
        cv2.resize(rng.normal(0, bend, (height // 8, width // 8)), (width, height)) for _ in "yx"
    ]
    rows, columns = np.mgrid[:height, :width]
    y = np.clip(rows + shift[0], 0, height - 1).astype(int)
    x = np.clip(columns + shift[1], 0, width - 1).astype(int)
    found = truth[y, x].copy()
    for _ in range(rng.poisson(2.0 * 2.0**-quality)):
        center = int(rng.integers(width)), int(rng.integers(height))
        axes = (int(rng.integers(3, width // 6)), int(rng.integers(2, height // 6)))
        cv2.ellipse(found, center, axes, 0, 0, 360, int(rng.integers(classes)), -1)
    found[found == VOID] = int(rng.integers(classes))
    return found


def slow_counts(
    prediction: NDArray[np.uint8], truth: NDArray[np.uint8], classes: int
) -> NDArray[np.int64]:
    """Return (R, C, 3) counts, class by class."""
    edges = np.zeros(truth.shape, np.uint8)
    edges[:, 1:] |= truth[:, 1:] != truth[:, :-1]
    edges[1:] |= truth[1:] != truth[:-1]
    distance = cv2.distanceTransform(1 - edges, cv2.DIST_L2, 5)
    labeled = truth != VOID
    counts = np.zeros((len(REGIONS), classes, 3), np.int64)
    for region, reach in enumerate((None, None, 1, 3)):
        inside = labeled if reach is None else labeled & (distance < reach)
        for index in range(classes):
            masks = [(each == index).astype(np.uint8) for each in (prediction, truth)]
            if region == 1:  # boundaries of each class alone
                masks = [mask - cv2.erode(mask, np.ones((5, 5), np.uint8)) for mask in masks]
            one, two = (mask.astype(bool) & inside for mask in masks)
            counts[region, index] = (one & two).sum(), one.sum(), two.sum()
    return counts


def _write_pictures(
    folder: Path,
    name: str,
    image: NDArray[np.uint8],
    truth: NDArray[np.uint8],
    prediction: NDArray[np.uint8],
    palette: list[list[int]],
) -> dict[str, str]:
    place = folder / "pictures" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(f"{place}.jpg", quality=85)
    for kind, labels in (("truth", truth), ("prediction", prediction)):
        mask = Image.fromarray(labels)
        mask.putpalette(color_table(len(palette), palette).tobytes())
        mask.save(f"{place}_{kind}.png")
    paths = {kind: f"pictures/{name}_{kind}.png" for kind in ("truth", "prediction")}
    return {"id": name, "image": f"pictures/{name}.jpg", **paths}


def _summary(
    found: Scores,
    classes: list[str],
    palette: list[list[int]],
    confusion: NDArray[np.int64],
    seed: int,
    verb: str,
) -> dict[str, Any]:
    means = {
        region: float(np.nanmean(iou_of(c)))
        for region, c in zip(REGIONS, found.counts.sum(0), strict=True)
    }
    hits = confusion.diagonal()
    low = np.arange(10) / 10
    bins = [
        {
            "low": float(each),
            "high": float(each + 0.1),
            "count": int(1000 * 4 ** (10 * each) / 4**9),
            "confidence": float(each + 0.06),
            "accuracy": float(np.clip(0.9 * each + 0.02, 0, 1)),
        }
        for each in low
    ]
    return {
        "verb": verb,
        "classes": classes,
        "palette": palette,
        "seed": seed,
        "method": "LMPModule",
        "network": "LRASPP",
        "data": "SyntheticScenesDataModule",
        "checkpoint": "runs/lmp/checkpoints/best.ckpt",
        "command": ["lightning-seg", verb, "-c", "runs/lmp/config.yaml", "--ckpt_path", "best"],
        "version": "0.1.0",
        "commit": "0123abc",
        "created": "2026-11-25T22:00:00+00:00",
        "images": len(found.ids),
        "scores": {
            "miou": means.pop("iou"),
            **means,
            "pixel_accuracy": float(hits.sum() / confusion.sum()),
            "mean_accuracy": float(np.nanmean(hits / np.maximum(confusion.sum(1), 1))),
            "ece": 0.041,
            "loss": 0.52,
        },
        "confusion": confusion.tolist(),
        "calibration": {"ece": 0.041, "bins": bins},
    }


def _write_training(folder: Path, seed: int, miou: float) -> None:
    config = {
        "seed_everything": seed,
        "trainer": {"max_epochs": 30},
        "model": {"class_path": "lightning_seg.LMPModule", "init_args": {"lr": 0.01, "p": 1.3}},
        "data": {"class_path": "datamodules.SyntheticScenesDataModule"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    rng = np.random.default_rng(seed)
    lines = ["epoch,step,lr-SGD,train/loss,val/loss,val/miou"]
    for epoch in range(30):
        for part in range(4):
            loss = 0.3 + 1.7 * np.exp(-(epoch + part / 4) / 6) + rng.normal(0, 0.05)
            step = epoch * 32 + part * 8 + 7
            lines.append(f"{epoch},{step},{0.01 * (1 - step / 960) ** 0.9:.6f},{loss:.4f},,")
        score = miou * (1 - 0.8 * np.exp(-epoch / 6)) + rng.normal(0, 0.004)
        lines.append(f"{epoch},{epoch * 32 + 31},,,{0.4 + np.exp(-epoch / 6):.4f},{score:.4f}")
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    root = Path(sys.argv[1])
    options = {"images": 60, "size": (240, 360), "pictures": 24}
    print(write_run(root / "baseline", seed=0, **options))
    print(write_run(root / "lmp", seed=1, quality=0.3, **options))
