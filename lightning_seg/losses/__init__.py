"""Losses as pure functions, each with an `nn.Module` that carries its constants."""

from lightning_seg.losses.cross_entropy import CrossEntropy, cross_entropy
from lightning_seg.losses.loss_max_pooling import (
    LossMaxPooling,
    PooledLoss,
    loss_max_pooling,
    loss_max_pooling_weights,
)
from lightning_seg.losses.probability_gradient import (
    ProbabilityGradientLoss,
    boundary_pixels,
    probability_gradient_loss,
)

__all__ = [
    "CrossEntropy",
    "LossMaxPooling",
    "PooledLoss",
    "ProbabilityGradientLoss",
    "boundary_pixels",
    "cross_entropy",
    "loss_max_pooling",
    "loss_max_pooling_weights",
    "probability_gradient_loss",
]
