"""Mix-and-match tuning: embeddings of patches of one class attract each other, others repel.

This stage lies between a pre-training without labels and the fine-tuning of a segmentation network.
The data module cuts patches out of the labelled images, each with the class of its centre pixel
("mix"), and this module trains the encoder on triplets of them ("match"). With e_i the last feature
map of patch i, normalised to length 1, and a positive p and a negative n of each patch from a
class-wise connected graph over the N patches of a batch,

    L = 1/(2N) sum_i max(0, margin + |e_i - e_p|^2 - |e_i - e_n|^2)

X. Zhan, Z. Liu, P. Luo, X. Tang, C. C. Loy: Mix-and-Match Tuning for Self-Supervised Semantic
Segmentation (AAAI 2018, arXiv 1712.00661).

Differences from the authors' code: a patch without another one of its class, or without one of
another class, in its batch has no triplet; biases are trained and decayed like all weights; the
encoders are timm's, and the authors' are an AlexNet and a VGG-16. The docstrings of
`lightning_seg.losses.triplets` and `datamodules.PatchMixer` list the differences in the graph and
in the patches.
"""

from __future__ import annotations

import os
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_seg.errors import require_one_of, require_range
from lightning_seg.losses import (
    Triplets,
    class_graph_triplets,
    gather_embeddings,
    random_triplets,
    recall_at_1,
    triplet_loss,
    triplet_statistics,
    unit_vectors,
)
from lightning_seg.networks.encoder import TimmEncoder
from lightning_seg.numerics import at_least_float32
from lightning_seg.training.pretraining import PretrainingModule
from lightning_seg.views import ColorView, PointsView, Views

_SHOWN = 8  # patches of an image in a picture


class MixMatchModule(PretrainingModule):
    """Training of an encoder on the labelled patches of a data module with the option `patches`.

    Besides `loss`, the steps that are logged and every validation have the mean squared distances
    `d_ap` of anchors and positives and `d_an` of anchors and negatives, the `accuracy`, which is
    the share of triplets with d_ap < d_an, the number of `classes` in a batch, and the share
    `singleton_share` of these classes that have one patch. Validation also has `recall_at_1`, the
    share of patches whose nearest neighbour has their class.

    Args:
        encoder: The encoder; its last feature map is the embedding of a patch.
        num_classes: Number of classes C, for the colours of pictures.
        class_names: One name per class, for pictures; None takes `class_0`, `class_1`, ...
        palette: One RGB colour in 0..255 per class, for pictures; None takes Pascal VOC's.
        margin: Squared distance by which a negative should be further away than the positive, at
            least 0. With 2.1 every triplet counts where embeddings have no negative components,
            such as after a ReLU, because their squared distance is at most 2.
        sampler: `graph` takes triplets from the class-wise connected graph, `random` draws them.
        graph_scope: `local` makes a graph of the patches of each process, `global` one of the
            patches of all processes, with the gradients of one process that has all patches.
        flatten: The embedding is the whole `map`, as in the authors' code, or the mean over its
            positions, `gap`, for encoders with a large last map (4x4x2048 for a ResNet-50 and
            patches of 128 pixels).
        val_patches: Largest number of validation patches per process for `recall_at_1` and the
            picture, at least 2; the first ones are kept.
        options: Arguments of `MethodModule`.

    Raises:
        SetupError: A setting is out of range.
    """

    needs = ("label", "it trains on labelled patches", "data.patches PatchMixer")

    def __init__(
        self,
        encoder: TimmEncoder,
        *,
        num_classes: int,
        class_names: list[str] | None = None,
        palette: list[list[int]] | None = None,
        margin: float = 2.1,
        sampler: Literal["graph", "random"] = "graph",
        graph_scope: Literal["local", "global"] = "local",
        flatten: Literal["map", "gap"] = "map",
        val_patches: int = 5000,
        **options: Any,
    ) -> None:
        super().__init__(encoder, **options)
        require_range(0, float("inf"), margin=margin)
        require_range(2, float("inf"), val_patches=val_patches)
        require_one_of("graph", "random", sampler=sampler)
        require_one_of("local", "global", graph_scope=graph_scope)
        require_one_of("map", "gap", flatten=flatten)
        self.num_classes = num_classes
        self.class_names = class_names or [f"class_{index}" for index in range(num_classes)]
        self.palette = palette
        self.margin = margin
        self.sampler = sampler
        self.graph_scope = graph_scope
        self.flatten = flatten
        self.val_patches = val_patches
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._embedded: tuple[Tensor, Tensor] | None = None

    @property
    def encoder(self) -> TimmEncoder:
        """The encoder, which is the whole network."""
        assert isinstance(self.network, TimmEncoder)
        return self.network

    def forward(self, image: Tensor) -> Tensor:
        """Return (N, D) embeddings of length 1 of (N, 3, H, W) RGB patches, uint8 or in [0, 1]."""
        deepest: Tensor = self.network(self.normalize(image))[-1]
        rows = deepest.flatten(1) if self.flatten == "map" else deepest.float().mean((2, 3))
        return unit_vectors(rows)

    def sample(self, labels: Tensor, step: tuple[int, ...]) -> Triplets:
        """Return random triplets, which depend on the labels, the seed and the step only.

        Args:
            labels: (N,) class ids.
            step: Numbers that tell this draw from others; the seed is that of `seed_everything`.
        """
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        entropy = np.random.SeedSequence((seed, *step)).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(entropy >> 1))
        draw = class_graph_triplets if self.sampler == "graph" else random_triplets
        return draw(labels, generator)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of a batch of patches."""
        embeddings, labels = self(batch["image"]), batch["label"]
        rank = self.global_rank
        if self.graph_scope == "global":
            embeddings, labels = gather_embeddings(embeddings, labels)
            rank = 0  # every process draws the same triplets
        triplets = self.sample(labels, (self.global_step, batch_idx, rank))
        # with one graph every process has the triplets of all of them
        apart = self.across_ranks and self.graph_scope == "local"
        loss = triplet_loss(embeddings, *triplets, margin=self.margin, across_ranks=apart)
        losses = {"loss": loss}
        if self.logs_now():
            losses |= _measure(embeddings, labels, triplets)
        self.log_training(losses, batch)
        return losses["loss"]

    # Validation

    def evaluation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Keep the embeddings of a batch, up to `val_patches`."""
        if batch_idx == 0:
            self._kept = []
        left = self.val_patches - sum(len(labels) for _, labels in self._kept)
        if left > 0:
            patches, labels = batch["image"][:left], batch["label"][:left]
            self._kept.append((self(patches), _numbers(patches) * self.num_classes + labels))

    def evaluation(self) -> dict[str, Tensor]:
        """Return the loss and the other scores of the patches of all processes."""
        embeddings, marks = (torch.cat(each) for each in zip(*self._kept, strict=True))
        embeddings, marks = gather_embeddings(embeddings, marks)
        order = marks.argsort(stable=True)  # the same for any number of processes
        embeddings, labels = embeddings[order], marks[order] % self.num_classes
        self._kept, self._embedded = [], (embeddings, labels)
        triplets = self.sample(labels, ())
        return {
            "loss": triplet_loss(embeddings, *triplets, margin=self.margin),
            **_measure(embeddings, labels, triplets),
            "recall_at_1": recall_at_1(embeddings, labels),
        }

    # Pictures

    def views(self, batch: dict[str, Any]) -> Views:
        """Return the first patches of an image, each with its class."""
        labels = batch["label"][:_SHOWN].tolist()
        return {
            f"patch {number}": ColorView(self.picture(patch), self.class_names[label])
            for number, (patch, label) in enumerate(zip(batch["image"], labels, strict=False), 1)
        }

    def overviews(self) -> dict[str, PointsView]:
        """Return the validation patches in the first two principal components of embeddings."""
        if self._embedded is None or len(self._embedded[1]) < 3:
            return {}
        embeddings, labels = self._embedded
        embeddings = at_least_float32(embeddings)
        centred = (embeddings - embeddings.mean(0)).cpu()
        with torch.random.fork_rng(devices=[]):  # pca_lowrank draws random numbers
            torch.manual_seed(0)
            _, _, axes = torch.pca_lowrank(centred, q=2, center=False)
        points = centred @ axes
        share = points.square().sum() / centred.square().sum().clamp(min=1e-12)
        title = (
            f"{len(labels)} validation patches: two principal components, {share:.0%} of the "
            f"variance; step {self.global_step}"
        )
        return {"embedding": PointsView(points, labels, title)}


def _numbers(patches: Tensor) -> Tensor:
    """Return (N,) int64 numbers below 2**40 of (N, 3, h, w) uint8 patches, by their pixels."""
    pixels = patches.flatten(1).long()
    places = torch.arange(1, pixels.shape[1] + 1, device=pixels.device)
    return (pixels * (places * 7919 % 65521)).sum(1) % 2**40


def _measure(embeddings: Tensor, labels: Tensor, triplets: Triplets) -> dict[str, Tensor]:
    found = triplet_statistics(embeddings, labels, *triplets)
    return {
        "d_ap": found.positive_distance,
        "d_an": found.negative_distance,
        "accuracy": found.accuracy,
        "classes": found.classes,
        "singleton_share": found.singleton_share,
    }
