"""Draw the pictures of the pages on methods into the folder of this file.

    python docs/methods/make_pictures.py [lmp cpg asml semi_adv mix_match]

draws the pictures that are named, and all of them without a name.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from datamodules import PatchMixer, SyntheticScenesDataModule
from lightning_seg.losses import boundary_pixels, class_graph_triplets, loss_max_pooling_weights
from lightning_seg.pictures import color_table

HERE = Path(__file__).resolve().parent
PLAYERS = {"segmenter": ("tab:blue", "-"), "opponent": ("tab:red", "--"), "none": ("0.6", "-")}
FILLS = {"segmenter": "#dbe9f6", "opponent": "#fbdedc", "map": "#f3f3f3", "loss": "white"}


def pooling_weights() -> Figure:
    """Draw the weights of 100 sorted losses, in multiples of the uniform weight."""
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
    """Draw a scene, the entries of the loss, and gradients of labels and probabilities."""
    data = SyntheticScenesDataModule(image_size=(160, 200), num_workers=0)
    scene = next(
        scene for scene in map(data.source("test").read, range(20)) if 255 not in scene.mask
    )
    target = torch.from_numpy(scene.mask.astype(np.int64))[None]
    # (1, H, W) -> (1, C, H, W)
    truth = F.one_hot(target, data.num_classes).float().movedim(-1, 1)
    blurred = F.avg_pool2d(F.pad(truth, [4] * 4, mode="replicate"), 9, 1)
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 2
    pictures = {
        "image": scene.image,
        "labels": color_table(data.num_classes, data.palette)[scene.mask],
        "pixels with an entry (size 3)": boundary_pixels(target)[0].numpy(),
        "gradient of the labels": _strength(truth, kernel),
        "gradient of blurred probabilities": _strength(blurred, kernel),
        "squared difference": _strength(truth - blurred, kernel) ** 2,
    }
    figure = Figure(figsize=(10, 5.6), dpi=100, layout="constrained")
    for axes, (title, picture) in zip(figure.subplots(2, 3).flat, pictures.items(), strict=True):
        axes.imshow(picture, cmap="magma", interpolation="nearest")
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
    return figure


def _strength(maps: torch.Tensor, kernel: torch.Tensor) -> np.ndarray:
    """Return the length of the gradient over all classes and both directions.

    Args:
        maps: (1, C, H, W) probabilities or labels.
        kernel: The edge kernel of one direction, (3, 3).

    Returns:
        (H, W) lengths.
    """
    classes = maps.shape[1]
    weight = torch.stack([kernel, kernel.T])[:, None].repeat(classes, 1, 1, 1)
    padded = F.pad(maps, [1] * 4, mode="replicate")
    return F.conv2d(padded, weight, groups=classes).square().sum(1).sqrt()[0].numpy()


class Diagram:
    """Boxes and arrows on a canvas of 100 by 56 units.

    An arrow follows the data, and its colour shows the weights that get the gradient. Places are
    the centres of boxes, panels and texts, in units from the lower left corner.

    Args:
        opponent: The name of the second network in the legend.
    """

    def __init__(self, opponent: str) -> None:
        self.figure = Figure(figsize=(10, 5.6), dpi=100)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, 100), ylim=(0, 56))
        self.axes.set_axis_off()
        legend = {
            "segmenter": "gradient to the segmenter S",
            "opponent": f"gradient to {opponent}",
            "none": "no gradient",
        }
        for (player, text), x in zip(legend.items(), (5, 39, 75), strict=True):
            color, style = PLAYERS[player]
            self.axes.plot((x, x + 6), (2, 2), color=color, linestyle=style, linewidth=2)
            self.text(x + 7, 2, text, ha="left")

    def text(self, x: float, y: float, text: str, size: float = 10, **options: Any) -> None:
        """Write a text, centred at a place."""
        options = {"ha": "center", "va": "center", **options}
        self.axes.text(x, y, text, fontsize=size, linespacing=1.35, **options)

    def panel(self, x: float, y: float, width: float, height: float, text: str) -> None:
        """Fill a rectangle under the boxes that share weights, with a text at its top."""
        corner = (x - width / 2, y - height / 2)
        self.axes.add_patch(Rectangle(corner, width, height, color="#fdf3f2", linewidth=0))
        self.text(x, y + height / 2 - 0.8, text, va="top")

    def box(
        self, x: float, y: float, width: float, height: float, text: str, kind: str = "map"
    ) -> None:
        """Draw a box with a text; boxes of losses have round corners."""
        style = "round,pad=0,rounding_size=1.4" if kind == "loss" else "square,pad=0"
        edge = PLAYERS.get(kind, PLAYERS["none"])[0]
        corner = (x - width / 2, y - height / 2)
        self.axes.add_patch(
            FancyBboxPatch(
                corner, width, height, boxstyle=style, facecolor=FILLS[kind], edgecolor=edge
            )
        )
        self.text(x, y, text)

    def arrow(self, player: str, *points: tuple[float, float]) -> None:
        """Draw a line through points, with an arrow head at the last one."""
        color, style = PLAYERS[player]
        *_, before, last = points
        x, y = zip(*points, strict=True)
        self.axes.plot(x, y, color=color, linestyle=style, linewidth=1.8)
        length = math.dist(before, last)
        tail = [end + 0.2 * (start - end) / length for start, end in zip(before, last, strict=True)]
        head = {"arrowstyle": "-|>", "color": color, "shrinkA": 0, "shrinkB": 0, "lw": 1.8}
        self.axes.annotate("", last, tail, arrowprops={**head, "mutation_scale": 16})


def structure_matching() -> Figure:
    """Draw the inputs and gradients of adversarial structure matching."""
    drawn = Diagram("analyzer A and decoder R")
    drawn.panel(63.5, 24.5, 33, 38, "structure analyzer, one set of weights")
    drawn.box(7, 50, 11, 6, "image")
    drawn.box(22, 50, 13, 6, "segmenter S", "segmenter")
    drawn.box(38, 50, 12, 6, "logits z")
    drawn.box(38, 35, 12, 7, "softmax\np")
    drawn.box(17, 22, 12, 6, "labels y")
    drawn.box(38, 22, 12, 7, "one-hot\nof y")
    drawn.box(38, 10, 12, 7, "one-hot of\nargmax z")
    drawn.box(56, 35, 15, 7, "A, frozen\nfeatures f(p)")
    drawn.box(56, 22, 15, 7, "A (encoder)\nfeatures f(y)", "opponent")
    drawn.box(56, 10, 15, 7, "A (encoder)\nf(argmax z)", "opponent")
    drawn.box(73.5, 22, 9, 7, "decoder\nR", "opponent")
    drawn.box(91, 50, 16, 8, "L_pixel\nz against y", "loss")
    drawn.box(91, 35, 16, 8, "L_match\nd(f(y), f(p))", "loss")
    drawn.box(91, 22, 16, 8, "L_rec\nR(y) against y", "loss")
    drawn.box(91, 10, 16, 8, "L_hinge\nmax(0, margin - d)", "loss")
    drawn.arrow("none", (12.5, 50), (15.5, 50))
    drawn.arrow("segmenter", (28.5, 50), (32, 50))
    drawn.arrow("segmenter", (44, 50), (83, 50))
    drawn.arrow("segmenter", (38, 47), (38, 38.5))
    drawn.arrow("segmenter", (44, 35), (48.5, 35))
    drawn.arrow("segmenter", (63.5, 35), (83, 35))
    drawn.arrow("none", (33.5, 47), (33.5, 43), (28, 43), (28, 10), (32, 10))
    drawn.axes.plot((27, 29), (22, 22), color="white", linewidth=7)  # a gap where two lines cross
    drawn.arrow("none", (23, 22), (32, 22))
    drawn.arrow("none", (44, 22), (48.5, 22))
    drawn.arrow("none", (44, 10), (48.5, 10))
    drawn.arrow("none", (60, 25.5), (60, 29), (81.5, 29), (81.5, 33), (83, 33))
    drawn.arrow("opponent", (63.5, 22), (69, 22))
    drawn.arrow("opponent", (78, 22), (83, 22))
    drawn.arrow("opponent", (60, 18.5), (60, 15.5), (81.5, 15.5), (81.5, 12), (83, 12))
    drawn.arrow("opponent", (63.5, 10), (83, 10))
    return drawn.figure


def adversarial_semi_supervision() -> Figure:
    """Draw the inputs and gradients of adversarial semi-supervised segmentation."""
    drawn = Diagram("discriminator D")
    drawn.panel(62, 24.5, 19, 41, "discriminator,\none set of weights")
    drawn.box(8, 43, 13, 7, "labelled\nimages")
    drawn.box(8, 33, 13, 7, "unlabelled\nimages")
    drawn.box(8, 8.5, 13, 7, "labels of\nother images")
    drawn.box(24.5, 38, 12, 19, "segmenter\nS", "segmenter")
    drawn.box(42, 38, 14, 19, "logits z,\nsoftmax P")
    drawn.box(42, 17.5, 14, 6, "the same P")
    drawn.box(42, 8.5, 14, 6, "one-hot")
    drawn.box(62, 34, 13, 8, "D, frozen\nlogits d")
    drawn.box(62, 13, 13, 16, "D\nlogits d", "opponent")
    drawn.box(90, 51, 18, 7, "L_ce\nlabelled", "loss")
    drawn.box(90, 37, 18, 9, "L_adv\nD takes P for labels,\nall images", "loss")
    drawn.box(90, 24, 18, 9, "L_semi\npseudo-labels, where\nsigmoid(d) >= t_semi", "loss")
    drawn.box(90, 10, 18, 9, "L_D\npredictions are 0,\nlabels are 1", "loss")
    drawn.arrow("none", (14.5, 43), (18.5, 43))
    drawn.arrow("none", (14.5, 33), (18.5, 33))
    drawn.arrow("segmenter", (30.5, 38), (35, 38))
    drawn.arrow("segmenter", (42, 47.5), (42, 51), (81, 51))
    drawn.arrow("segmenter", (49, 34), (55.5, 34))
    drawn.arrow("segmenter", (68.5, 36), (81, 36))
    drawn.arrow("segmenter", (46, 28.5), (46, 24), (81, 24))
    drawn.arrow("none", (68.5, 32), (76, 32), (76, 26.5), (81, 26.5))
    drawn.arrow("none", (38, 28.5), (38, 20.5))
    drawn.arrow("none", (49, 17.5), (55.5, 17.5))
    drawn.arrow("none", (14.5, 8.5), (35, 8.5))
    drawn.arrow("none", (49, 8.5), (55.5, 8.5))
    drawn.arrow("opponent", (68.5, 10), (81, 10))
    drawn.text(45, 52.3, "z", ha="left")
    drawn.text(52, 35.3, "P")
    drawn.text(62, 25.3, "z of unlabelled images")
    return drawn.figure


def mix_and_match() -> Figure:
    """Draw the patches of a scene, and the class-wise connected graph of the patches of two."""
    data = SyntheticScenesDataModule(image_size=(160, 200), num_workers=0)
    mixer = PatchMixer(10, (24, 64), 48, background_index=None)
    colors = color_table(data.num_classes, data.palette) / 255
    scenes = [data.source("test")[number] for number in (3, 5)]
    rngs = [np.random.default_rng(number) for number in (0, 1)]
    squares = mixer.draw(scenes[0].mask, np.random.default_rng(0))
    cut = [mixer(scene.image, scene.mask, rng) for scene, rng in zip(scenes, rngs, strict=True)]
    images = np.concatenate([each.images for each in cut])
    labels = np.concatenate([each.labels for each in cut])
    figure = Figure(figsize=(10, 4.8), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.imshow(scenes[0].image)
    for row, column, side in squares:
        color = colors[scenes[0].mask[row, column]]
        corner = (column - side / 2, row - side / 2)
        left.add_patch(Rectangle(corner, side, side, fill=False, edgecolor="w", linewidth=3.5))
        left.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=color, linewidth=2))
        left.plot(column, row, "o", ms=4, mfc=color, mec="w")
    left.set(
        title="mix: a patch has the class of its centre", xlim=(-0.5, 199.5), ylim=(159.5, -0.5)
    )
    left.set_xticks([])
    left.set_yticks([])

    triplets = class_graph_triplets(torch.from_numpy(labels), torch.Generator().manual_seed(4))
    order = np.argsort(labels, kind="stable")
    angles = np.linspace(0, 2 * np.pi, len(labels), endpoint=False)
    places = np.empty((len(labels), 2))
    places[order] = np.stack([1.5 * np.cos(angles), np.sin(angles)], 1)
    chosen = int(order[2])
    for (anchor, positive, negative), valid in zip(*triplets, strict=True):
        if valid:
            ends = places[[anchor, positive]].T
            right.plot(*ends, color=colors[labels[anchor]], linewidth=3, zorder=1)
        if valid and anchor == chosen:
            right.plot(*places[[anchor, negative]].T, "k:", linewidth=1.5, zorder=1)
    for place, label, image in zip(places, labels, images, strict=True):
        x, y = place
        right.imshow(image, extent=(x - 0.11, x + 0.11, y - 0.11, y + 0.11), zorder=2)
        frame = (x - 0.11, y - 0.11)
        right.add_patch(
            Rectangle(frame, 0.22, 0.22, fill=False, edgecolor=colors[label], lw=2.5, zorder=3)
        )
    right.set(
        title="match: positives connect a class; dotted: one negative",
        xlim=(-1.75, 1.75),
        ylim=(-1.2, 1.2),
        aspect="equal",
    )
    right.axis("off")
    return figure


PICTURES = {
    "lmp": pooling_weights,
    "cpg": probability_gradients,
    "asml": structure_matching,
    "semi_adv": adversarial_semi_supervision,
    "mix_match": mix_and_match,
}

if __name__ == "__main__":
    for name in sys.argv[1:] or PICTURES:
        PICTURES[name]().savefig(HERE / f"{name}.png")
