"""Adversarial structure matching: an analyzer learns to see structural mistakes, and they vanish.

A second network, the structure analyzer A, looks at label maps and never at images. It learns
features in which the prediction differs from the truth and from which the truth can be rebuilt; the
segmenter S learns to make them equal. At prediction A is not needed.

J.-J. Hwang, T.-W. Ke, J. Shi, S. Yu: Adversarial Structure Matching for Structured Prediction Tasks
(CVPR 2019, arXiv 1805.07457). With softmax p = S(x), labels y, f the features of A, R its decoder:

    S:    lambda_pixel L_pixel + lambda_asm sum_l mean d_l(y, p)
    A, R: lambda_adv 10^(-t/T) sum_l mean max(0, 0.8 - d_l(y, onehot(argmax p)))
          + lambda_rec CE(R(y), y)

`lightning_seg.losses.structure_matching` has the equation of d. This is what the authors' code
does. The printed objective (`mode: literal`) has neither normalisation nor margin,

    S minimises and A maximises  1/2 sum_l mean |f_l(y) - f_l(p)|^2

and A can raise it without end. Differences from the authors' code: void labels are masked, means
are over what is left (`reference_mean: true` counts all, as they do); A has one optimizer instead
of two with the same settings, which is the same for SGD; a batch is one update of each player.
They train by the matching loss alone (`lambda_pixel: 0`); adding the pixel loss is their option.
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
    CrossEntropy,
    cross_entropy,
    one_hot_map,
    structure_hinge_loss,
    structure_matching_loss,
)
from lightning_seg.networks import StructureAnalyzer
from lightning_seg.numerics import at_least_float32, masked_mean
from lightning_seg.training.gradients import frozen
from lightning_seg.training.segmentation import labeled_part
from lightning_seg.training.two_players import TwoPlayerModule


class ASMLModule(TwoPlayerModule):
    """Supervised training on a loss of pixels and the matching of structures.

    Logs, at the steps that are logged, each term: `loss_pixel`, `loss_match`, `loss_hinge` (of
    the analyzer; 0.8 per tap: it sees no difference, 0: all it is asked for), `loss_rec`.

    Args:
        network: See `SegmentationModule`.
        num_classes: Number of classes C.
        analyzer: Makes the opponent from the number of channels, or is it; None takes
            `StructureAnalyzer`, of which it has to be a kind.
        pixel_loss: The loss of pixels, logits and class ids -> scalar; None takes `CrossEntropy`.
        lambda_pixel: Weight of the pixel loss; 0 trains by matching alone.
        lambda_asm: Weight of the matching loss; 0 switches the analyzer off.
        lambda_adv: Weight at the start of what the analyzer gains by telling prediction and truth
            apart; a tenth of it at the end.
        lambda_rec: Weight of the analyzer's reconstruction of the truth.
        order: `analyzer_first` steps the analyzer, then the segmenter against the new one, as the
            authors do; `simultaneous` steps both against the old ones, which saves an analysis of
            the truth, a backward pass and, across processes, waiting.
        mode: `hinge` or `literal`, see the module.
        margin: Squared distance of features that satisfies the analyzer, in (0, 4].
        single_channel: For two classes: the analyzer sees the second class (foreground) alone.
        reference_mean: Divide by all places, void ones too.
        decay_steps: T in iterations; None takes the length of the training.
        opponent_optimizer: The analyzer's, as in the authors' code.
        options: Passed to `TwoPlayerModule`.

    Raises:
        SetupError: Settings out of range or that contradict each other.
    """

    analyzer: StructureAnalyzer

    def __init__(
        self,
        network: Callable[[int], nn.Module] | None = None,
        *,
        num_classes: int,
        analyzer: Callable[[int], StructureAnalyzer] | None = None,
        pixel_loss: nn.Module | None = None,
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
            raise SetupError(f"margin must be in (0, 4], not {margin} (option: --model.margin)")
        require_one_of("analyzer_first", "simultaneous", order=order)
        require_one_of("hinge", "literal", mode=mode)
        if decay_steps is not None:
            require_range(1, math.inf, decay_steps=decay_steps)
        if single_channel and num_classes != 2:
            raise SetupError(
                f"single_channel is for two classes, not {num_classes} "
                "(option: --model.single_channel false)"
            )
        channels = 1 if single_channel else num_classes
        self.analyzer, _ = self.adopt("analyzer", analyzer or StructureAnalyzer, channels)
        if not isinstance(self.analyzer, StructureAnalyzer):
            raise SetupError(
                f"{type(self.analyzer).__name__} is no StructureAnalyzer (option: --model.analyzer)"
            )
        self.loss = CrossEntropy(self.ignore_index) if pixel_loss is None else pixel_loss
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
        """The analyzer and its decoder."""
        return self.analyzer

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Update both players on one batch, on its labelled images where there are others too."""
        batch = labeled_part(batch)
        outputs, target = self.outputs(batch["image"]), batch["mask"]
        losses = self.supervised_losses(outputs, target)
        losses |= {
            "loss": self.lambda_pixel * losses["loss"],
            "loss_pixel": losses["loss"].detach(),
        }
        analysis, watched = None, None
        if self.lambda_asm > 0:
            logits = outputs["out"][0]
            truth = self.encode(one_hot_map(target, self.num_classes, self.ignore_index))
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
        """Return the analyzer's loss.

        Args:
            logits: (B, C, H, W), detached.
            target: (B, H, W) class ids.
            truth: The same as the analyzer sees it.
            valid: Of `StructureAnalyzer.valid`.

        Returns:
            The loss, its terms for the logs, and the features of the truth, detached; None, none
            and None where both weights are 0 and the analyzer has nothing to learn.
        """
        if self.lambda_adv == self.lambda_rec == 0:
            return None, {}, None
        features, rebuilt = self.analyzer(truth)
        terms = {"loss_rec": self._reconstruction_loss(rebuilt, target)}
        loss = self.lambda_rec * terms["loss_rec"]
        if self.lambda_adv > 0:
            if self.mode == "hinge":
                labels = logits.max(1).indices
                others = self.analyzer.features(
                    self.encode(one_hot_map(labels, self.num_classes, -1))
                )
                told = structure_hinge_loss(
                    features, others, valid, self.reference_mean, self.margin
                )
                terms["loss_hinge"] = told
            else:
                others = self.analyzer.features(self.encode(at_least_float32(logits).softmax(1)))
                told = -self._distance(features, others, valid)
            loss = loss + self.adversarial_weight() * told
        terms = {name: value.detach() for name, value in terms.items()}
        return loss, terms, [each.detach() for each in features]

    def matching_loss(
        self, logits: Tensor, truth: Tensor, valid: list[Tensor], features: list[Tensor] | None
    ) -> Tensor:
        """Return the distance of prediction and truth for the segmenter; no gradient to A.

        Args:
            logits: (B, C, H, W).
            truth: The labels as the analyzer sees them.
            valid: Of `StructureAnalyzer.valid`.
            features: Of the truth, without gradient; None computes them.
        """
        if features is None:
            with torch.no_grad():
                features = self.analyzer.features(truth)
        with frozen(self.analyzer):
            others = self.analyzer.features(self.encode(at_least_float32(logits).softmax(1)))
        return self._distance(features, others, valid)

    def encode(self, maps: Tensor) -> Tensor:
        """Return (B, C, H, W) class probabilities as the analyzer sees them."""
        maps = maps.to(self.image_mean.dtype)  # its weights', also where nothing is in float32
        return maps[:, 1:] if self.single_channel else maps

    def adversarial_weight(self) -> float:
        """Return lambda_adv 10^(-t/T) of this iteration."""
        length = self.decay_steps or self.trainer.estimated_stepping_batches
        if length == math.inf:
            raise SetupError(
                "the analyzer's weight falls over the length of training, but training has no end: "
                "set --trainer.max_steps, --trainer.max_epochs or --model.decay_steps"
            )
        return self.lambda_adv * 10 ** -min(1.0, self.trainer.global_step / length)

    def _distance(
        self, features: list[Tensor], others: list[Tensor], valid: list[Tensor]
    ) -> Tensor:
        literal = self.mode == "literal"
        distance = structure_matching_loss(
            features, others, valid, self.reference_mean, normalize=not literal
        )
        return distance / 2 if literal else distance

    def _reconstruction_loss(self, rebuilt: Tensor, target: Tensor) -> Tensor:
        if not self.single_channel:
            return cross_entropy(rebuilt, target, self.ignore_index)
        rebuilt = at_least_float32(rebuilt)[:, 0]
        losses = F.binary_cross_entropy_with_logits(
            rebuilt, (target == 1).to(rebuilt.dtype), reduction="none"
        )
        return masked_mean(losses, target != self.ignore_index)
