"""Mix-and-match tuning: patches of one class move together, those of others apart.

Between a pre-training without labels and the fine-tuning of a segmentation network. The data
module mixes: it cuts patches out of the labelled images, each with the class of its centre pixel.
This module matches them. With e_i the unit vector of patch i's last feature map, and for each
patch a positive p and a negative n read off a class-wise connected graph of the batch,

    L = 1/(2N) sum_i max(0, margin + |e_i - e_p|^2 - |e_i - e_n|^2)

X. Zhan, Z. Liu, P. Luo, X. Tang, C. C. Loy: Mix-and-Match Tuning for Self-Supervised Semantic
Segmentation (AAAI 2018, arXiv 1712.00661).

Differences from the authors' code: a patch that is alone in its class, or has no other class in
its batch, has no triplet; biases learn and decay like all weights; encoders are timm's, where
theirs are an AlexNet and a VGG-16. `lightning_seg.losses.triplets` has those of the graph,
`datamodules.PatchMixer` those of the patches.
"""

from __future__ import annotations

import os
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
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
from lightning_seg.pictures import color_table, scatter_plot
from lightning_seg.training.pretraining import PretrainingModule


class MixMatchModule(PretrainingModule):
    """Tunes an encoder on labelled patches: batches of a data module with `patches`.

    Logs the loss and, at the steps that are logged and at every validation, the mean squared
    distances `d_ap` of anchors and positives and `d_an` of anchors and negatives, `accuracy`, the
    share of triplets with d_ap < d_an, `classes`, how many a graph has, and `singleton_share`, how
    many of these have one patch; at validation also `recall_at_1`, the share of patches whose
    nearest neighbour has their class, of which 1 / C is chance only if all are equally frequent.

    Args:
        encoder: Its last feature map embeds a patch.
        num_classes: Number of classes, for the colours of pictures.
        class_names: One name per class, for pictures.
        palette: One RGB colour in 0..255 per class, for pictures.
        margin: By how much a negative is to be further away than the positive, in squared
            distance. 2.1 lies above the largest distance, 2, of embeddings without negative
            components, such as those behind a ReLU: every triplet counts.
        sampler: Read triplets off the class-wise connected `graph`, or draw them at `random`.
        graph_scope: One graph for the patches of each process, `local`, or one `global` graph for
            those of all: its gradients are those of one process with all the patches.
        flatten: Embed by the whole `map`, as the authors do, or by its mean over positions, `gap`,
            for encoders whose last map is large: 4x4x2048 for a ResNet-50 and 128-pixel patches.
        val_patches: Validation patches that a process keeps at most for `recall_at_1` and the
            picture; the first ones.
        options: Passed to `MethodModule`.

    Raises:
        SetupError: Settings out of range.
    """

    needs = ("label", "it trains on labelled patches (option: --data.patches PatchMixer)")

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
        """All of the network."""
        assert isinstance(self.network, TimmEncoder)
        return self.network

    def forward(self, image: Tensor) -> Tensor:
        """Return (N, D) embeddings of (N, 3, H, W) RGB patches, uint8 or in [0, 1]."""
        deepest: Tensor = self.network(self.normalize(image))[-1]
        rows = deepest.flatten(1) if self.flatten == "map" else deepest.float().mean((2, 3))
        return unit_vectors(rows)

    def sample(self, labels: Tensor, step: tuple[int, ...]) -> Triplets:
        """Return triplets of (N,) labels, the same for the same step on all processes and devices.

        Args:
            labels: Class ids.
            step: Numbers of this draw, beside the seed of `seed_everything`.
        """
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        entropy = np.random.SeedSequence((seed, *step)).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(entropy >> 1))
        draw = class_graph_triplets if self.sampler == "graph" else random_triplets
        return draw(labels, generator)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of one batch of patches."""
        embeddings, labels = self(batch["image"]), batch["label"]
        rank = self.global_rank
        if self.graph_scope == "global":
            embeddings, labels = gather_embeddings(embeddings, labels)
            rank = 0  # the triplets must be the same everywhere
        triplets = self.sample(labels, (self.global_step, batch_idx, rank))
        losses = {"loss": triplet_loss(embeddings, *triplets, margin=self.margin)}
        if self.logs_now():
            losses |= _measure(embeddings, labels, triplets)
        self.log_training(losses, batch)
        return losses["loss"]

    # Validation

    def evaluation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Keep the embeddings of a batch."""
        if batch_idx == 0:
            self._kept = []
        left = self.val_patches - sum(len(labels) for _, labels in self._kept)
        if left > 0:
            self._kept.append((self(batch["image"][:left]), batch["label"][:left]))

    def evaluation(self) -> dict[str, Tensor]:
        """Return the loss and the class's other scores, of the patches of all processes."""
        embeddings, labels = (torch.cat(each) for each in zip(*self._kept, strict=True))
        embeddings, labels = gather_embeddings(embeddings, labels)
        self._kept, self._embedded = [], (embeddings, labels)
        triplets = self.sample(labels, ())
        return {
            "loss": triplet_loss(embeddings, *triplets, margin=self.margin),
            **_measure(embeddings, labels, triplets),
            "recall_at_1": recall_at_1(embeddings, labels),
        }

    def pictures(self) -> dict[str, NDArray[np.uint8]]:
        """Return the validation patches in the plane of their first two principal components."""
        if self._embedded is None or len(self._embedded[1]) < 3:
            return {}
        embeddings, labels = self._embedded
        centred = (embeddings - embeddings.mean(0)).cpu()
        with torch.random.fork_rng(devices=[]):  # the approximation draws
            torch.manual_seed(0)
            _, _, axes = torch.pca_lowrank(centred, q=2, center=False)
        points = centred @ axes
        share = points.square().sum() / centred.square().sum().clamp(min=1e-12)
        picture = scatter_plot(
            points.numpy(),
            labels.cpu().numpy(),
            self.class_names,
            color_table(self.num_classes, self.palette),
            f"{len(labels)} validation patches: two principal components, {share:.0%} of the "
            f"variance; step {self.global_step}",
        )
        return {"embedding": picture}


def _measure(embeddings: Tensor, labels: Tensor, triplets: Triplets) -> dict[str, Tensor]:
    found = triplet_statistics(embeddings, labels, *triplets)
    return {
        "d_ap": found.positive_distance,
        "d_an": found.negative_distance,
        "accuracy": found.accuracy,
        "classes": found.classes,
        "singleton_share": found.singleton_share,
    }
