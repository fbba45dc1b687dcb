"""Augmentation with albumentations, whose random state is set from each example's key."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from datamodules.labels import VOID

if TYPE_CHECKING:
    import albumentations as A

# ImageNet's mean colour: what a network sees as nothing in particular
PAD_COLOR = (124, 116, 104)


def train_pipeline(
    crop_size: tuple[int, int],
    scale: tuple[float, float] = (0.5, 2.0),
    horizontal_flip: bool = True,
    color_jitter: float = 0.0,
) -> A.Compose:
    """Random scale, crop and flip: the field's standard recipe.

    Args:
        crop_size: Height and width of the result, in pixels. Smaller images are padded, the
            mask with void.
        scale: Smallest and largest factor, drawn uniformly.
        horizontal_flip: Mirror every other example.
        color_jitter: Strength in [0, 1] of random brightness, contrast and saturation; a quarter
            of it for the hue. 0 switches it off.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks the network
    import albumentations as A  # takes seconds: not for `--help`

    height, width = crop_size
    steps: list[A.BasicTransform] = []
    if tuple(scale) != (1.0, 1.0):
        steps.append(A.RandomScale(scale_limit=(scale[0] - 1, scale[1] - 1), p=1))
    steps += [
        A.PadIfNeeded(height, width, fill=PAD_COLOR, fill_mask=VOID),
        A.RandomCrop(height, width),
    ]
    if horizontal_flip:
        steps.append(A.HorizontalFlip(p=0.5))
    if color_jitter > 0:
        span = (1 - color_jitter, 1 + color_jitter)
        hue = (-color_jitter / 4, color_jitter / 4)
        steps.append(A.ColorJitter(brightness=span, contrast=span, saturation=span, hue=hue, p=1))
    return A.Compose(steps)


def augment(
    pipeline: A.Compose, image: NDArray[np.uint8], mask: NDArray[np.uint8], seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Apply a pipeline with a random state of its own.

    Left to itself, albumentations 2.0.8 draws the same stream in every worker and every epoch.
    """
    pipeline.set_random_seed(seed)
    result = pipeline(image=image, mask=mask)
    return result["image"], result["mask"]
