"""Draws the pictures of the methods' pages beside this file.

python docs/methods/make_pictures.py
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from datamodules import SyntheticScenesDataModule
from lightning_seg.losses import boundary_pixels, loss_max_pooling_weights
from lightning_seg.pictures import color_table

HERE = Path(__file__).resolve().parent


def pooling_weights() -> Figure:
    """Weights of 100 sorted losses, in multiples of the uniform weight."""
    losses = torch.linspace(0.01, 1, 100, dtype=torch.float64) ** 2 * 3
    figure = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for p in (1.0, 1.2, 1.7, 3.0, math.inf):
        weights = 100 * loss_max_pooling_weights(losses, p=p, ratio=1 / 3)
        left.plot(losses, weights, label=f"p = {p:g}")
    for ratio in (0.01, 0.1, 0.3, 0.6, 1.0):
        weights = 100 * loss_max_pooling_weights(losses, p=1.7, ratio=ratio)
        right.plot(losses, weights, label=f"ratio = {ratio:g}")
    left.set(title="ratio = 1/3", xlabel="loss of a pixel", ylabel="weight / uniform weight")
    right.set(title="p = 1.7", xlabel="loss of a pixel")
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def probability_gradients() -> Figure:
    """A scene, its boundaries, and the gradients of a blurred and of a sharp prediction."""
    data = SyntheticScenesDataModule(image_size=(160, 200), num_workers=0)
    scene = next(
        scene for scene in map(data.source("test").read, range(20)) if 255 not in scene.mask
    )
    target = torch.from_numpy(scene.mask.astype(np.int64))[None]
    truth = F.one_hot(target, data.num_classes).float()
    truth = truth.movedim(-1, 1)
    blurred = F.avg_pool2d(F.pad(truth, [4] * 4, mode="replicate"), 9, 1)
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 2
    pictures = {
        "image": scene.image,
        "labels": color_table(data.num_classes, data.palette)[scene.mask],
        "where the loss looks (size 3)": boundary_pixels(target)[0].numpy(),
        "gradient of the labels": _strength(truth, kernel),
        "of blurred probabilities": _strength(blurred, kernel),
        "squared difference": _strength(truth - blurred, kernel) ** 2,
    }
    figure = Figure(figsize=(10, 5.6), dpi=100, layout="constrained")
    for axes, (title, picture) in zip(figure.subplots(2, 3).flat, pictures.items(), strict=True):
        axes.imshow(picture, cmap="magma", interpolation="nearest")
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
    return figure


def _strength(maps: torch.Tensor, kernel: torch.Tensor) -> np.ndarray:
    """Length of the gradient over all classes and both directions."""
    classes = maps.shape[1]
    weight = torch.stack([kernel, kernel.T])[:, None].repeat(classes, 1, 1, 1)
    padded = F.pad(maps, [1] * 4, mode="replicate")
    return F.conv2d(padded, weight, groups=classes).square().sum(1).sqrt()[0].numpy()


if __name__ == "__main__":
    pooling_weights().savefig(HERE / "lmp.png")
    probability_gradients().savefig(HERE / "cpg.png")
