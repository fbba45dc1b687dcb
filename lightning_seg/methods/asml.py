"""Adversarial structure matching: an analyzer learns to see structural mistakes, S to remove them.

A second network, the structure analyzer A, takes label maps and never images. A learns features f_l
in which the prediction differs from the labels, and from which its decoder R rebuilds the labels.
The segmenter S learns to make the features of its prediction equal to those of the labels. A is not
used for predictions.

J.-J. Hwang, T.-W. Ke, J. Shi, S. Yu: Adversarial Structure Matching for Structured Prediction Tasks
(CVPR 2019, arXiv 1805.07457). With the softmax p = S(x), one-hot labels y, and iteration t of T,
the players minimise

    S:    lambda_pixel L_pixel + lambda_asm sum_l mean d_l(y, p)
    A, R: lambda_adv 10^(-t/T) sum_l mean max(0, margin - d_l(y, onehot(argmax p)))
          + lambda_rec CE(R(y), y)
    d_l(a, b) = |n(f_l(a)) - n(f_l(b))|^2,   n(v) = v / |v|

These are the objectives of the authors' code. The objective printed in the paper (`mode: literal`)
has neither normalisation nor margin, and A can raise it without end:

    S minimises and A maximises  1/2 sum_l mean |f_l(y) - f_l(p)|^2

Differences from the authors' code: void labels are masked, and means are over the other places
(`reference_mean: true` divides by all places, as the authors do); A and R share one optimizer
instead of two with equal settings, which makes no difference for SGD; every batch updates each
player once; the decoder resizes with half-pixel centres, where TensorFlow 1 aligned the top left
corners, which changes the reconstruction and no feature. The authors train with the matching loss
alone (`lambda_pixel: 0`) and have the pixel loss as an option.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from lightning_seg.errors import SetupError, require_one_of, require_range
from lightning_seg.losses import (
    class_probabilities,
    cross_entropy,
    one_hot_map,
    structure_distances,
    structure_hinge_loss,
    structure_matching_loss,
)
from lightning_seg.losses.upsampled_labels import most_probable
from lightning_seg.networks import StructureAnalyzer
from lightning_seg.numerics import at_least_float32, masked_mean
from lightning_seg.training.gradients import frozen
from lightning_seg.training.segmentation import labeled_part
from lightning_seg.training.two_players import TwoPlayerModule
from lightning_seg.views import ScaleView, Views


class ASMLModule(TwoPlayerModule):
    """Supervised training with a loss of pixels and the structure matching loss.

    The steps that are logged have each term: `loss_pixel`, `loss_match`, the reconstruction
    `loss_rec`, and the analyzer's `loss_hinge`. A `loss_hinge` of `margin` per tap means that the
    analyzer sees no difference; 0 means that every difference exceeds the margin.

    Args:
        network: The network, or a function from the number of classes to it; None takes `LRASPP`.
        num_classes: Number of classes C, without void.
        analyzer: A `StructureAnalyzer`, or a function from the number of channels of a label map to
            one; None takes the class itself.
        lambda_pixel: Weight of the pixel loss, at least 0; 0 trains with the matching loss alone.
        lambda_asm: Weight of the matching loss, at least 0; 0 switches the analyzer off.
        lambda_adv: Weight of the analyzer's hinge at the start of the training, at least 0. The
            weight falls to a tenth at iteration T.
        lambda_rec: Weight of the reconstruction of the labels by the analyzer, at least 0.
        order: `analyzer_first` steps the analyzer, and then the segmenter against the new analyzer,
            as the authors do. With `accumulate_grad_batches` above 1 the analyzer steps at the last
            batch of an iteration, so that the batches before it are matched against the analyzer
            as it was. `simultaneous` steps each player against the other one as it was,
            which saves one analysis of the labels and one backward pass.
        mode: `hinge` is the objective of the authors' code, `literal` the one printed in the paper.
        margin: Squared distance of two normalised features from which the hinge is 0, in (0, 4].
        single_channel: Whether the analyzer sees only the second class (foreground) of two.
        reference_mean: Whether means divide by all places, void ones included.
        decay_steps: T in iterations, at least 1; None takes the length of the training.
        opponent_optimizer: Function from parameter groups to the analyzer's optimizer; the default
            is the SGD of the authors' code.
        options: Arguments of `TwoPlayerModule`.

    Raises:
        SetupError: A setting is out of range, or two settings contradict each other.
    """

    analyzer: StructureAnalyzer
    own_terms = ("pixel", "match", "rec", "hinge")

    def __init__(
        self,
        network: Callable[[int], nn.Module] | None = None,
        *,
        num_classes: int,
        analyzer: Callable[[int], StructureAnalyzer] | None = None,
        lambda_pixel: float = 1.0,
        lambda_asm: float = 1.0,
        lambda_adv: float = 0.012,
        lambda_rec: float = 1.0,
        order: Literal["analyzer_first", "simultaneous"] = "analyzer_first",
        mode: Literal["hinge", "literal"] = "hinge",
        margin: float = 0.8,
        single_channel: bool = False,
        reference_mean: bool = False,
        decay_steps: int | None = None,
        opponent_optimizer: OptimizerCallable = lambda groups: torch.optim.SGD(
            groups, lr=0.01, momentum=0.9, weight_decay=0.0005
        ),
        **options: Any,
    ) -> None:
        super().__init__(
            network, num_classes=num_classes, opponent_optimizer=opponent_optimizer, **options
        )
        require_range(
            0,
            math.inf,
            lambda_pixel=lambda_pixel,
            lambda_asm=lambda_asm,
            lambda_adv=lambda_adv,
            lambda_rec=lambda_rec,
        )
        if not 0 < margin <= 4:
            raise SetupError(f"margin must be in (0, 4], not {margin}", option="margin")
        require_one_of("analyzer_first", "simultaneous", order=order)
        require_one_of("hinge", "literal", mode=mode)
        if decay_steps is not None:
            require_range(1, math.inf, decay_steps=decay_steps)
        if single_channel and num_classes != 2:
            raise SetupError(
                f"single_channel is for two classes, not {num_classes}",
                option="single_channel false",
            )
        channels = 1 if single_channel else num_classes
        self.analyzer, _ = self.adopt("analyzer", analyzer or StructureAnalyzer, channels)
        if not isinstance(self.analyzer, StructureAnalyzer):
            raise SetupError(
                f"{type(self.analyzer).__name__} is no StructureAnalyzer", option="analyzer"
            )
        self.lambda_pixel = lambda_pixel
        self.lambda_asm = lambda_asm
        self.lambda_adv = lambda_adv
        self.lambda_rec = lambda_rec
        self.order = order
        self.mode = mode
        self.margin = margin
        self.single_channel = single_channel
        self.reference_mean = reference_mean
        self.decay_steps = decay_steps

    @property
    def opponent(self) -> nn.Module:
        """The analyzer with its decoder."""
        return self.analyzer

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Update both players on a batch; of a batch of groups, on its group `labeled`."""
        batch = labeled_part(batch)
        outputs, target = self.outputs_for_loss(batch["image"]), batch["mask"]
        losses = self.supervised_losses(outputs, target)
        losses |= {
            "loss": self.lambda_pixel * losses["loss"],
            "loss_pixel": losses["loss"].detach(),
        }
        analysis, watched = None, None
        if self.lambda_asm > 0:
            logits = outputs["out"][0]
            truth = self._label_map(target, target != self.ignore_index)
            valid = self.analyzer.valid(target != self.ignore_index)
            analysis, terms, features = self.analyzer_loss(logits.detach(), target, truth, valid)
            watched = analysis
            if self.order == "analyzer_first":
                if analysis is not None:
                    self.update(batch_idx, opponent=analysis)
                analysis, features = None, None
            match = self.matching_loss(logits, truth, valid, features)
            losses |= {"loss": losses["loss"] + self.lambda_asm * match, **terms}
            losses["loss_match"] = match.detach()
        shown = losses if self.logs_now() else {"loss": losses["loss"]}
        self.log_training(shown, batch, watched)
        self.update(batch_idx, segmenter=losses["loss"], opponent=analysis)

    def analyzer_loss(
        self, logits: Tensor, target: Tensor, truth: Tensor, valid: list[Tensor]
    ) -> tuple[Tensor | None, dict[str, Tensor], list[Tensor] | None]:
        """Return the loss of the analyzer.

        Args:
            logits: (B, C, h, w) logits of the segmenter, detached, no larger than the labels.
            target: (B, H, W) class ids.
            truth: The labels as the analyzer takes them: class ids with C for void, or the one-hot
                vectors that `encode` returns.
            valid: The valid places of every tap, as `StructureAnalyzer.valid` returns them.

        Returns:
            The scalar loss, its terms for the logs, and the features of the labels, detached. Where
            both weights are 0, the loss and the features are None and there are no terms.
        """
        if self.lambda_adv == self.lambda_rec == 0:
            return None, {}, None
        size = (target.shape[-2], target.shape[-1])
        # the loss of classes upsamples the reconstruction block by block
        smaller = {"full_size": False} if self._takes_ids else {}
        features, rebuilt = self.analyzer(truth, **smaller)
        terms = {"loss_rec": self._reconstruction_loss(rebuilt, target)}
        loss = self.lambda_rec * terms["loss_rec"]
        if self.lambda_adv > 0:
            if self.mode == "hinge":
                labels = most_probable(logits, size).labels
                others = self.analyzer.features(self._label_map(labels))
                gain = structure_hinge_loss(
                    features, others, valid, self.reference_mean, self.margin, self.across_ranks
                )
                terms["loss_hinge"] = gain
            else:
                others = self.analyzer.features(self.encode(class_probabilities(logits, size)))
                gain = -self._distance(features, others, valid)
            loss = loss + self.adversarial_weight() * gain
        terms = {name: value.detach() for name, value in terms.items()}
        return loss, terms, [each.detach() for each in features]

    def matching_loss(
        self, logits: Tensor, truth: Tensor, valid: list[Tensor], features: list[Tensor] | None
    ) -> Tensor:
        """Return the matching loss of the segmenter, without a gradient to the analyzer.

        Args:
            logits: (B, C, h, w) logits of the segmenter, no larger than the labels.
            truth: The labels as the analyzer takes them: class ids with C for void, or the one-hot
                vectors that `encode` returns.
            valid: The valid places of every tap, as `StructureAnalyzer.valid` returns them.
            features: The features of the labels, without gradient; None computes them.

        Returns:
            A scalar.
        """
        size = (truth.shape[-2], truth.shape[-1])
        if features is None:
            with torch.no_grad():
                features = self.analyzer.features(truth)
        with frozen(self.analyzer):
            others = self.analyzer.features(self.encode(class_probabilities(logits, size)))
        return self._distance(features, others, valid)

    @property
    def _takes_ids(self) -> bool:
        """Whether the analyzer is ours and takes one channel per class: it then takes class ids."""
        return type(self.analyzer) is StructureAnalyzer and not self.single_channel

    def _label_map(self, labels: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return class ids as the analyzer takes them: ids, or one-hot vectors where it must."""
        ids = labels if valid is None else labels.where(valid, self.num_classes)
        if self._takes_ids:
            return ids
        return self.encode(one_hot_map(ids, self.num_classes, self.num_classes))

    def encode(self, maps: Tensor) -> Tensor:
        """Return the channels of (B, C, H, W) class probabilities that the analyzer takes."""
        maps = maps.to(self.image_mean.dtype)  # the dtype of the weights, also in a float16 module
        return maps[:, 1:] if self.single_channel else maps

    def adversarial_weight(self) -> float:
        """Return lambda_adv 10^(-t/T) of this iteration."""
        length = self.decay_steps or self.trainer.estimated_stepping_batches
        if length == math.inf:
            raise SetupError(
                "the weight lambda_adv falls over the length of training, but training has no end",
                option=("trainer.max_steps", "trainer.max_epochs", "decay_steps"),
            )
        return self.lambda_adv * 10 ** -min(1.0, self.trainer.global_step / length)

    def own_views(self, logits: Tensor, mask: Tensor | None) -> Views:
        """Return the distance of truth and prediction at every tap of the analyzer."""
        if mask is None:
            return {}
        truth = self.encode(one_hot_map(mask, self.num_classes, self.ignore_index))
        predicted = self.encode(class_probabilities(logits))
        features, others = self.analyzer.features(truth), self.analyzer.features(predicted)
        distances = structure_distances(features, others, normalize=self.mode == "hinge")
        valid = self.analyzer.valid(mask != self.ignore_index)
        taps = zip(self.analyzer.taps, distances, valid, strict=True)
        return {f"tap {tap}": self._distance_view(each[0], ok[0]) for tap, each, ok in taps}

    def _distance_view(self, distance: Tensor, valid: Tensor) -> ScaleView:
        values = distance.where(valid, math.nan)
        if self.mode == "hinge":
            meaning = f"distance; A's hinge is 0 from {self.margin:g}"
            return ScaleView(values, 0, 2 * self.margin, meaning)
        return ScaleView(values, 0, values.nan_to_num().max().item(), "squared distance")

    def _distance(
        self, features: list[Tensor], others: list[Tensor], valid: list[Tensor]
    ) -> Tensor:
        literal = self.mode == "literal"
        distance = structure_matching_loss(
            features,
            others,
            valid,
            self.reference_mean,
            normalize=not literal,
            across_ranks=self.across_ranks,
        )
        return distance / 2 if literal else distance

    def _reconstruction_loss(self, rebuilt: Tensor, target: Tensor) -> Tensor:
        if not self.single_channel:
            return cross_entropy(rebuilt, target, self.ignore_index, across_ranks=self.across_ranks)
        rebuilt = at_least_float32(rebuilt)[:, 0]
        losses = F.binary_cross_entropy_with_logits(
            rebuilt, (target == 1).to(rebuilt.dtype), reduction="none"
        )
        return masked_mean(losses, target != self.ignore_index, self.across_ranks)
