"""Draw docs/demo.png: scenes, labels, and the predictions that `make demo` wrote to runs/demo.

python docs/make_pictures.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from datamodules import SyntheticScenesDataModule
from lightning_seg.pictures import color_table

HERE = Path(__file__).resolve().parent
PREDICTIONS = HERE.parent / "runs" / "demo" / "predictions" / "masks"


def sheet(columns: int = 5, border: int = 4) -> Image.Image:
    """Return the first test scenes, one per column: image, labels, prediction.

    Args:
        columns: Number of scenes.
        border: Width of the white gap after a column in pixels.
    """
    data = SyntheticScenesDataModule(num_workers=0)
    scenes = data.source("test")
    table = color_table(data.num_classes, data.palette)
    tiles = []  # one (3 H, W + border, 3) column per scene
    for index in range(columns):
        scene = scenes[index]
        predicted = np.array(Image.open(PREDICTIONS / f"{scene.id}.png"))
        column = np.concatenate([scene.image, table[scene.mask], table[predicted]])
        tiles.append(np.pad(column, ((0, 0), (0, border), (0, 0)), constant_values=255))
    return Image.fromarray(np.concatenate(tiles, axis=1))


if __name__ == "__main__":
    sheet().save(HERE / "demo.png", optimize=True)
