"""Weights of the classes from their frequencies."""

from __future__ import annotations

import torch
from torch import Tensor


def balanced_weights(pixels: Tensor) -> Tensor:
    """Return weights in inverse proportion to the pixels of each class.

    With n_c pixels of class c and C' classes that have pixels,

        w_c = sum_k n_k / (C' n_c)

    so that all classes have the same weight together, and the mean weight of a pixel is 1. It is
    `class_weight="balanced"` of scikit-learn.

    Args:
        pixels: (C,) numbers of pixels, at least 0.

    Returns:
        (C,) float32; 0 for a class without pixels.

    Examples:
        >>> balanced_weights(torch.tensor([6, 2, 0]))
        tensor([0.6667, 2.0000, 0.0000])
    """
    return _normalized(1 / pixels.double(), pixels)


def effective_weights(images: Tensor, pixels: Tensor, beta: float = 0.999) -> Tensor:
    """Return weights in inverse proportion to the effective number of images of each class.

    With n_c images that show class c, the effective number is

        E_c = (1 - beta^n_c) / (1 - beta),   w_c proportional to 1 / E_c

    Y. Cui, M. Jia, T.-Y. Lin, Y. Song, S. Belongie: Class-Balanced Loss Based on Effective Number
    of Samples (CVPR 2019, arXiv 1901.05555). The paper counts images, which have one class each. A
    number of pixels would make all weights equal, because E_c is at most 1 / (1 - beta). The
    weights are scaled to a mean weight of a pixel of 1.

    Args:
        images: (C,) numbers of images that show each class, at least 0.
        pixels: (C,) numbers of pixels, at least 0.
        beta: In [0, 1): 0 weighs all classes equally, and towards 1 the weights approach the
            inverse numbers of images. 0.999 is one of the paper's values.

    Returns:
        (C,) float32; 0 for a class without pixels.

    Examples:
        With beta = 1/2, one image counts 1 and two images count 1.5.

        >>> effective_weights(torch.tensor([1, 2, 0]), torch.tensor([1, 1, 0]), beta=0.5)
        tensor([1.2000, 0.8000, 0.0000])
    """
    effective = (1 - beta ** images.double()) / (1 - beta)
    return _normalized(1 / effective, pixels)


def _normalized(weights: Tensor, pixels: Tensor) -> Tensor:
    """Return weights with a mean over pixels of 1, and 0 for classes without pixels."""
    weights = torch.where(pixels > 0, weights, 0.0)
    total = (weights * pixels).sum().clamp(min=torch.finfo(weights.dtype).tiny)
    return (weights * (pixels.sum() / total)).float()
