"""Losses: pure functions of tensors, and modules that hold the constants of some of them.

Nothing in this package imports Lightning, so every loss works in any training loop.
"""

from lightning_seg.losses.ab_grid import ABGrid
from lightning_seg.losses.adversarial import (
    adversarial_loss,
    confident_labels,
    discriminator_loss,
    pseudo_label_loss,
    pseudo_labels,
    score_map,
)
from lightning_seg.losses.class_weights import balanced_weights, effective_weights
from lightning_seg.losses.color_spaces import hue_chroma
from lightning_seg.losses.colorization import ColorTarget, HueChroma
from lightning_seg.losses.cross_entropy import CrossEntropy, cross_entropy
from lightning_seg.losses.gathered_embeddings import gather_embeddings
from lightning_seg.losses.loss_max_pooling import (
    LossMaxPooling,
    PooledLoss,
    loss_max_pooling,
)
from lightning_seg.losses.pixel_loss import ZeroWithoutLabels, fit_pixel_loss
from lightning_seg.losses.pooling_weights import loss_max_pooling_weights
from lightning_seg.losses.probability_gradient import (
    ProbabilityGradientLoss,
    boundary_pixels,
    probability_gradient_loss,
)
from lightning_seg.losses.structure_matching import (
    structure_distances,
    structure_hinge_loss,
    structure_matching_loss,
)
from lightning_seg.losses.structured_maps import (
    class_probabilities,
    log_depth,
    one_hot_map,
    unit_vectors,
)
from lightning_seg.losses.triplets import (
    Triplets,
    TripletStatistics,
    class_graph_triplets,
    random_triplets,
    recall_at_1,
    triplet_loss,
    triplet_statistics,
)
from lightning_seg.losses.weighted_sum import WeightedSum

__all__ = [
    "ABGrid",
    "ColorTarget",
    "CrossEntropy",
    "HueChroma",
    "LossMaxPooling",
    "PooledLoss",
    "ProbabilityGradientLoss",
    "TripletStatistics",
    "Triplets",
    "WeightedSum",
    "ZeroWithoutLabels",
    "adversarial_loss",
    "balanced_weights",
    "boundary_pixels",
    "class_graph_triplets",
    "class_probabilities",
    "confident_labels",
    "cross_entropy",
    "discriminator_loss",
    "effective_weights",
    "fit_pixel_loss",
    "gather_embeddings",
    "hue_chroma",
    "log_depth",
    "loss_max_pooling",
    "loss_max_pooling_weights",
    "one_hot_map",
    "probability_gradient_loss",
    "pseudo_label_loss",
    "pseudo_labels",
    "random_triplets",
    "recall_at_1",
    "score_map",
    "structure_distances",
    "structure_hinge_loss",
    "structure_matching_loss",
    "triplet_loss",
    "triplet_statistics",
    "unit_vectors",
]
