"""Adversarial semi-supervised segmentation: a discriminator tells which predictions to trust.

A fully convolutional discriminator D tells labels from predictions at every place. The segmenter S
learns to be taken for labels, on labelled and unlabelled images, and on unlabelled images learns
its own most probable classes wherever D is confident enough. At prediction D is not needed.

W.-C. Hung, Y.-H. Tsai, Y.-T. Liou, Y.-Y. Lin, M.-H. Yang: Adversarial Learning for Semi-Supervised
Semantic Segmentation (BMVC 2018, arXiv 1802.07934). With softmax P of the segmenter's logits:

    S: L_ce(labelled) + lambda_adv L_adv(P_labelled) + lambda_semi L_semi(unlabelled)
       + lambda_semi_adv L_adv(P_unlabelled)
    D: L_D(predictions P_labelled and P_unlabelled, other labels)

`lightning_seg.losses.adversarial` has the equations. Both players see each other as they were
before the step, as in the authors' code.

Differences from the authors' code: padding of unlabelled crops is masked (`reference_padding: true`
does not, as they do); nothing selected is a loss of 0, not a step left out; lambda_semi_adv may be
0 and semi_start_adv above 0. Weights are those of their published command, not of their code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from lightning_seg.errors import SetupError, require_range
from lightning_seg.losses import (
    CrossEntropy,
    adversarial_loss,
    discriminator_loss,
    one_hot_map,
    pseudo_label_loss,
    pseudo_labels,
    score_map,
)
from lightning_seg.networks import FCDiscriminator
from lightning_seg.numerics import at_least_float32, masked_mean
from lightning_seg.training.discriminator_watch import DiscriminatorWatch
from lightning_seg.training.gradients import frozen
from lightning_seg.training.segmentation import labeled_part
from lightning_seg.training.two_players import TwoPlayerModule


class Judged(NamedTuple):
    """Predictions and what the discriminator makes of them."""

    logits: Tensor
    """(B, C, H, W) of the segmenter."""
    maps: Tensor
    """(B, C, H, W) probabilities."""
    scores: Tensor
    """(B, H, W) logits of the discriminator, with a gradient to the segmenter."""
    valid: Tensor
    """(B, H, W) bool, False where a pixel does not count."""


class SemiAdvModule(TwoPlayerModule):
    """Semi-supervised training with a discriminator.

    Batches are dicts of batches: `labeled`, `unlabeled` (needed unless its weights are 0) and
    `labeled_real`, whose labels D is shown as real; without it those of `labeled` are.

    Logs, at the steps that are logged, each term (`loss_adv`, `loss_semi_adv`, `loss_semi`,
    `loss_d`: 0.2 to 0.5 is healthy, log 2 = 0.69 is guessing), `d_accuracy_fake` and
    `d_accuracy_real`, `selected`, the share of the unlabelled pixels that D lets through, and where
    unlabelled images have masks `selected_accuracy`. Warns when D has won or given up.

    Args:
        network: See `SegmentationModule`.
        num_classes: Number of classes C.
        discriminator: Makes the opponent from the number of classes, or is it: (B, C, H, W) ->
            (B, 1, h, w) logits; None takes `FCDiscriminator`.
        pixel_loss: The loss of labelled pixels, logits and class ids -> scalar; None takes
            `CrossEntropy`.
        lambda_adv: Weight of L_adv on labelled images.
        lambda_semi: Weight of L_semi.
        lambda_semi_adv: Weight of L_adv on unlabelled images.
        t_semi: Confidence in [0, 1] from which a pixel is kept for L_semi; below 0.5 on purpose.
        semi_start: Iteration from which L_semi counts.
        semi_start_adv: Iteration from which L_adv on unlabelled images counts.
        train_discriminator_on_unlabeled: Show D the predictions for unlabelled images too.
        reference_padding: Count the padding of unlabelled crops like an image.
        joint_forward: Send labelled and unlabelled images through the network together, so that
            batch norms see one batch of both. Else, as the authors, the unlabelled ones first, and
            running statistics take both in.
        opponent_optimizer: The discriminator's.
        options: Passed to `TwoPlayerModule`.

    Raises:
        SetupError: Settings out of range, or a batch without unlabelled images.
    """

    def __init__(
        self,
        network: Callable[[int], nn.Module] | None = None,
        *,
        num_classes: int,
        discriminator: Callable[[int], nn.Module] | None = None,
        pixel_loss: nn.Module | None = None,
        lambda_adv: float = 0.01,
        lambda_semi: float = 0.1,
        lambda_semi_adv: float = 0.001,
        t_semi: float = 0.2,
        semi_start: int = 5000,
        semi_start_adv: int = 0,
        train_discriminator_on_unlabeled: bool = True,
        reference_padding: bool = False,
        joint_forward: bool = False,
        opponent_optimizer: OptimizerCallable = lambda groups: torch.optim.Adam(groups, lr=0.0001),
        **options: Any,
    ) -> None:
        super().__init__(
            network, num_classes=num_classes, opponent_optimizer=opponent_optimizer, **options
        )
        require_range(
            0,
            math.inf,
            lambda_adv=lambda_adv,
            lambda_semi=lambda_semi,
            lambda_semi_adv=lambda_semi_adv,
        )
        require_range(0, math.inf, semi_start=semi_start, semi_start_adv=semi_start_adv)
        require_range(0, 1, t_semi=t_semi)
        self.discriminator, scores = self.adopt(
            "discriminator", discriminator or FCDiscriminator, num_classes
        )
        if not isinstance(scores, Tensor) or scores.ndim != 4 or scores.shape[1] != 1:
            raise SetupError(
                f"{type(self.discriminator).__name__} does not return one logit per place, "
                "(B, 1, h, w) (option: --model.discriminator)"
            )
        self.loss = CrossEntropy(self.ignore_index) if pixel_loss is None else pixel_loss
        self.lambda_adv = lambda_adv
        self.lambda_semi = lambda_semi
        self.lambda_semi_adv = lambda_semi_adv
        self.t_semi = t_semi
        self.semi_start = semi_start
        self.semi_start_adv = semi_start_adv
        self.train_discriminator_on_unlabeled = train_discriminator_on_unlabeled
        self.reference_padding = reference_padding
        self.joint_forward = joint_forward
        self._watch = DiscriminatorWatch()

    @property
    def opponent(self) -> nn.Module:
        """The discriminator."""
        return self.discriminator

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Update both players on one batch of labelled and unlabelled images."""
        labeled, unlabeled = labeled_part(batch), self._unlabeled(batch)
        target, outputs, theirs, terms = labeled["mask"], None, None, {}
        if unlabeled is not None:
            theirs, outputs = self._judge_unlabeled(unlabeled, labeled["image"])
            terms = self.unlabeled_terms(theirs)
        extra = self._weighted(terms)
        if outputs is None:  # the labelled images have a forward pass of their own, still to come
            extra = self.backward_early(extra)
            outputs = self.outputs(labeled["image"])
        losses = self.supervised_losses(outputs, target)
        loss_d = None
        if self.plays:
            ours = self.judge(outputs["out"][0], target != self.ignore_index)
            more = self.labeled_terms(ours)
            extra, terms = extra + self._weighted(more), terms | more
            losses |= {f"loss_{name}": term.detach() for name, term in terms.items()}
            real = batch.get("labeled_real", labeled)["mask"]
            loss_d, accuracies = self.discriminator_term(ours, theirs, real)
            losses["loss_d"] = loss_d.detach()
            self._watch.watch(losses["loss_d"], losses.get("loss_semi"))
            if self.logs_now():
                losses |= accuracies
                losses |= self.selection(theirs, batch.get("unlabeled", {}).get("mask"))
        losses["loss"] = losses["loss"] + extra
        shown = losses if self.logs_now() else {"loss": losses["loss"]}
        self.log_training(shown, labeled, loss_d)
        self.update(batch_idx, segmenter=losses["loss"], opponent=loss_d)

    @property
    def plays(self) -> bool:
        """Whether anything depends on the discriminator; if not, it is not trained either."""
        return max(self.lambda_adv, self.lambda_semi, self.lambda_semi_adv) > 0

    def judge(self, logits: Tensor, valid: Tensor) -> Judged:
        """Show predictions to the discriminator, whose weights get no gradient from it.

        Args:
            logits: (B, C, H, W) of the segmenter.
            valid: (B, H, W) bool, False where a pixel does not count.
        """
        maps = at_least_float32(logits).softmax(1)
        with frozen(self.discriminator):
            return Judged(logits, maps, self._scores(maps), valid)

    def labeled_terms(self, ours: Judged) -> dict[str, Tensor]:
        """Return the losses on labelled images whose weights are `lambda_<name>`."""
        if self.lambda_adv == 0:
            return {}
        return {"adv": adversarial_loss(ours.scores, ours.valid)}

    def unlabeled_terms(self, theirs: Judged) -> dict[str, Tensor]:
        """Return this iteration's losses on unlabelled images, likewise."""
        terms, iteration = {}, self.trainer.global_step
        if self.lambda_semi_adv > 0 and iteration >= self.semi_start_adv:
            terms["semi_adv"] = adversarial_loss(theirs.scores, theirs.valid)
        if self.lambda_semi > 0 and iteration >= self.semi_start:
            terms["semi"] = pseudo_label_loss(
                theirs.logits, theirs.scores, self.t_semi, theirs.valid, self.ignore_index
            )
        return terms

    def pseudo_labels(self, judged: Judged) -> Tensor:
        """Return (B, H, W) class ids, void where the discriminator is not confident enough."""
        return pseudo_labels(
            judged.logits, judged.scores, self.t_semi, judged.valid, self.ignore_index
        )

    def discriminator_term(
        self, ours: Judged, theirs: Judged | None, real: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the discriminator's loss, and how often it is right.

        Args:
            ours: Predictions for labelled images.
            theirs: For unlabelled images.
            real: (B, H, W) labels.
        """
        shown = [ours]
        if theirs is not None and self.train_discriminator_on_unlabeled:
            shown.append(theirs)
        fake = torch.cat([self._scores(each.maps.detach()) for each in shown])
        fake_valid = torch.cat([each.valid for each in shown])
        truth = self._scores(one_hot_map(real, self.num_classes, self.ignore_index))
        real_valid = real != self.ignore_index
        accuracies = {}
        if self.logs_now():
            accuracies = {
                "d_accuracy_fake": masked_mean((fake < 0).float(), fake_valid),
                "d_accuracy_real": masked_mean((truth > 0).float(), real_valid),
            }
        return discriminator_loss(fake, truth, fake_valid, real_valid), accuracies

    @torch.no_grad()
    def selection(self, judged: Judged | None, mask: Tensor | None) -> dict[str, Tensor]:
        """Return `selected`, and where there are masks `selected_accuracy`, of unlabelled images.

        Args:
            judged: Their predictions.
            mask: (B, H, W) class ids that training does not see.
        """
        if judged is None:
            return {}
        labels = self.pseudo_labels(judged)
        kept = labels != self.ignore_index
        found = {"selected": masked_mean(kept.float(), judged.valid)}
        if mask is not None:
            known = kept & (mask != self.ignore_index)
            found["selected_accuracy"] = masked_mean((labels == mask).float(), known)
        return found

    @torch.no_grad()
    def confidence_map(self, image: Tensor) -> Tensor:
        """Return where the discriminator takes predictions for labels, for a picture.

        Args:
            image: (B, 3, H, W) RGB, uint8 or in [0, 1].

        Returns:
            (B, H, W) confidences in [0, 1].
        """
        return self._scores(at_least_float32(self(image)).softmax(1)).sigmoid()

    def _scores(self, maps: Tensor) -> Tensor:
        """Return the discriminator's logits at every pixel, (B, C, H, W) -> (B, H, W)."""
        maps = maps.to(self.image_mean.dtype)  # its weights', also where nothing is in float32
        return score_map(self.discriminator(maps), (maps.shape[-2], maps.shape[-1]))

    def _unlabeled(self, batch: dict[str, Any]) -> dict[str, Any] | None:
        """Return the unlabelled images if this iteration has a use for them."""
        wanted = self.lambda_semi > 0 or self.lambda_semi_adv > 0
        if wanted and "unlabeled" not in batch:
            raise SetupError(
                "SemiAdvModule learns from unlabelled images, but the batches have none (options: "
                "--data.unlabeled_batch_size 8 with --data.labeled 1/8 or --data.unlabeled FOLDER; "
                "or, without them, --model.lambda_semi 0 --model.lambda_semi_adv 0)"
            )
        if wanted or (self.plays and self.train_discriminator_on_unlabeled):
            return batch.get("unlabeled")
        return None

    def _judge_unlabeled(
        self, unlabeled: dict[str, Any], image: Tensor
    ) -> tuple[Judged, dict[str, list[Tensor]] | None]:
        """Return unlabelled images judged and, with a joint forward pass, outputs of the others."""
        valid = unlabeled["valid"]
        if self.reference_padding:
            valid = torch.ones_like(valid)
        if not self.joint_forward:
            return self.judge(self.outputs(unlabeled["image"])["out"][0], valid), None
        together = self.outputs(torch.cat([image, unlabeled["image"]]))
        count = len(image)
        outputs = {name: [each[:count] for each in found] for name, found in together.items()}
        return self.judge(together["out"][0][count:], valid), outputs

    def _weighted(self, terms: dict[str, Tensor]) -> Tensor:
        weighted = [getattr(self, f"lambda_{name}") * term for name, term in terms.items()]
        return torch.stack(weighted).sum() if weighted else self.image_mean.new_zeros(())
