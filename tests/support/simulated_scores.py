"""Counts of pixels of runs that never were, with a known difference between two methods."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

KINDS = ("even", "rare", "failing")


def simulated_sides(
    rng: np.random.Generator,
    images: int,
    kind: str = "even",
    classes: int = 8,
    runs: int = 1,
    seed_scatter: float = 0.0,
    planted: float = 0.0,
    image_scatter: float = 0.5,
) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """Return the (N, 1, C, 3) counts of the runs of two sides on the same images.

    Every image is difficult to some degree for all runs. Each run is right at a share of the
    pixels of a class, whose log odds are 2 plus normal noise of the image, of the run on the
    image, and of the run. Wrong pixels are predicted as the image's other classes.

    Args:
        rng: The source of all randomness.
        images: Number of images.
        kind: `even`, `rare` (half of the classes are in 4 % of the images) or `failing` (each run
            is wrong nearly everywhere in 3 % of the images, and noise has heavy tails).
        classes: Number of classes.
        runs: Number of runs, that is seeds, of each side.
        seed_scatter: Standard deviation of the log odds of a class between trainings.
        planted: What is added to the log odds of the second side.
        image_scatter: Standard deviation of the log odds of a run on an image.
    """
    presence = np.full(classes, 0.8)
    if kind == "rare":
        presence[classes // 2 :] = 0.04
    present = rng.random((images, classes)) < presence
    present[:, 0] = True
    sizes = rng.lognormal(0, 1, (images, classes)) * present
    truth = np.floor(20_000 * sizes / sizes.sum(1, keepdims=True)).astype(np.int64)
    difficulty = rng.normal(0, 1, (images, 1)) + rng.normal(0, 0.5, (images, classes))
    sides: Sequence[list[NDArray[np.int64]]] = ([], [])
    for shift, side in zip((0.0, planted), sides, strict=True):
        for _ in range(runs):
            noise = rng.normal(0, image_scatter, (images, classes))
            if kind == "failing":
                noise = 0.7 * image_scatter * rng.standard_t(2, (images, classes))
                noise -= 8 * (rng.random((images, 1)) < 0.03)
            noise += rng.normal(0, seed_scatter, classes)
            odds = np.clip(2 + difficulty + noise + shift, -50, 50)
            side.append(_counts(truth, 1 / (1 + np.exp(-odds)), present))
    return sides


def _counts(
    truth: NDArray[np.int64], right: NDArray[np.float64], present: NDArray[np.bool_]
) -> NDArray[np.int64]:
    hits = np.floor(truth * right).astype(np.int64)
    wrong = (truth - hits).sum(1, keepdims=True)
    predicted = hits + np.floor(wrong * present / present.sum(1, keepdims=True)).astype(np.int64)
    return np.stack([hits, predicted, truth], -1)[:, None]
