"""Adversarial semi-supervised segmentation: a discriminator selects the predictions to trust.

A fully convolutional discriminator D tells label maps from predictions at every pixel. The
predictions of the segmenter S learn to pass for labels, on labelled and on unlabelled images. On
unlabelled images S also learns its own most probable classes at the pixels where D is confident. D
is not used for predictions.

W.-C. Hung, Y.-H. Tsai, Y.-T. Liou, Y.-Y. Lin, M.-H. Yang: Adversarial Learning for Semi-Supervised
Semantic Segmentation (BMVC 2018, arXiv 1802.07934). With the softmax P of the segmenter's logits,
the logits d of D and one-hot labels Y, the players minimise

    S: L_ce(labelled) + lambda_adv L_adv(P_labelled) + lambda_semi L_semi(P_unlabelled)
       + lambda_semi_adv L_adv(P_unlabelled)
    D: 1/2 mean log(1 + exp(d(P))) + 1/2 mean log(1 + exp(-d(Y)))
    L_adv(P)  = mean log(1 + exp(-d(P)))
    L_semi(P) = mean over the pixels with sigmoid(d(P)) >= t_semi of -log max_c P_c

Each player sees the other one as it was before the step, as in the authors' code.

The paper's text describes D trained on labelled images only, and no term of unlabelled images until
the warm-up is over. The authors' code also trains D on the predictions for unlabelled images, and
has L_adv on unlabelled images from the start. Default chosen here: the authors' code.

Differences from the authors' code: the padding of unlabelled crops is masked (`reference_padding:
true` counts it, as the authors do); where no pixel is selected the loss is 0 and the step is taken;
lambda_semi_adv may be 0 and semi_start_adv above 0. The weights are those of the authors' published
command, not of the defaults in their code.
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
from lightning_seg.training.starts import first_iteration, require_start, warn_of_late_starts
from lightning_seg.training.two_players import TwoPlayerModule


class Judged(NamedTuple):
    """Predictions and the discriminator's logits for them."""

    logits: Tensor
    """(B, C, H, W) logits of the segmenter."""
    maps: Tensor
    """(B, C, H, W) class probabilities."""
    scores: Tensor
    """(B, H, W) logits of the discriminator, large for labels, with a gradient to the segmenter."""
    valid: Tensor
    """(B, H, W) bool, False where a pixel does not count."""


class SemiAdvModule(TwoPlayerModule):
    """Semi-supervised training with a discriminator D.

    A batch is a dict of batches: `labeled`; `unlabeled`, which may be missing where both weights of
    unlabelled images are 0; and optionally `labeled_real`, whose labels D sees as real. Without
    `labeled_real` D sees those of `labeled`.

    The steps that are logged have each term: `loss_adv`, `loss_semi_adv`, `loss_semi` and `loss_d`,
    of which 0.2 to 0.5 is healthy and log 2 = 0.69 is guessing. They also have D's accuracies
    `d_accuracy_fake` and `d_accuracy_real`, the share `selected` of unlabelled pixels with a
    pseudo-label, and, where unlabelled images have masks, `selected_accuracy`, the share of
    pseudo-labels that are right. A warning reports a D that has won or only guesses.

    Args:
        network: The network, or a function from the number of classes to it; None takes `LRASPP`.
        num_classes: Number of classes C, without void.
        discriminator: A module (B, C, H, W) -> (B, 1, h, w) logits, or a function from the number
            of classes to it; None takes `FCDiscriminator`.
        pixel_loss: The loss of labelled pixels, a module (logits, class ids) -> scalar; None takes
            `CrossEntropy`.
        lambda_adv: Weight of L_adv on labelled images, at least 0.
        lambda_semi: Weight of L_semi, at least 0.
        lambda_semi_adv: Weight of L_adv on unlabelled images, at least 0.
        t_semi: Confidence of D in [0, 1] from which a pixel gets a pseudo-label. The paper's 0.2
            lies below 0.5 on purpose.
        semi_start: Start of L_semi: an iteration, an integer of at least 0, or a share of the
            training, a float in [0, 1). The default is the paper's 5,000 of 20,000 iterations.
        semi_start_adv: Start of L_adv on unlabelled images: an iteration, or a share of the
            training.
        train_discriminator_on_unlabeled: Whether D also sees predictions for unlabelled images, as
            in the authors' code; False is the paper's text.
        reference_padding: Whether the padding of unlabelled crops counts like an image.
        joint_forward: Whether labelled and unlabelled images go through the network in one batch,
            so that batch norms see both. False sends the unlabelled images first, as the authors
            do, and running statistics are of both.
        opponent_optimizer: Function from parameter groups to the discriminator's optimizer.
        options: Arguments of `TwoPlayerModule`.

    Raises:
        SetupError: A setting is out of range, or a batch has no unlabelled images.
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
        semi_start: int | float = 0.25,
        semi_start_adv: int | float = 0,
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
        require_start(semi_start=semi_start, semi_start_adv=semi_start_adv)
        require_range(0, 1, t_semi=t_semi)
        self.discriminator, scores = self.adopt(
            "discriminator", discriminator or FCDiscriminator, num_classes
        )
        if not isinstance(scores, Tensor) or scores.ndim != 4 or scores.shape[1] != 1:
            raise SetupError(
                f"{type(self.discriminator).__name__} does not return one logit per place, "
                "(B, 1, h, w)",
                option="discriminator",
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

    def on_train_start(self) -> None:
        """Warn where the training ends before a term of unlabelled images starts."""
        super().on_train_start()
        starts = {"semi_start": self.lambda_semi, "semi_start_adv": self.lambda_semi_adv}
        used = {name: getattr(self, name) for name, weight in starts.items() if weight > 0}
        warn_of_late_starts(self.trainer, **used)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Update both players on one batch of labelled and unlabelled images."""
        labeled, unlabeled = labeled_part(batch), self._unlabeled(batch)
        target, outputs, on_unlabeled, terms = labeled["mask"], None, None, {}
        if unlabeled is not None:
            on_unlabeled, outputs = self._judge_unlabeled(unlabeled, labeled["image"])
            terms = self.unlabeled_terms(on_unlabeled)
        extra = self._weighted(terms)
        if outputs is None:  # the labelled images have a forward pass of their own
            extra = self.backward_early(extra)
            outputs = self.outputs(labeled["image"])
        losses = self.supervised_losses(outputs, target)
        loss_d = None
        if self.plays:
            on_labeled = self.judge(outputs["out"][0], target != self.ignore_index)
            more = self.labeled_terms(on_labeled)
            extra, terms = extra + self._weighted(more), terms | more
            losses |= {f"loss_{name}": term.detach() for name, term in terms.items()}
            real = batch.get("labeled_real", labeled)["mask"]
            loss_d, accuracies = self.discriminator_term(on_labeled, on_unlabeled, real)
            losses["loss_d"] = loss_d.detach()
            self._watch.watch(losses["loss_d"], losses.get("loss_semi"))
            if self.logs_now():
                losses |= accuracies
                losses |= self.selection(on_unlabeled, batch.get("unlabeled", {}).get("mask"))
        losses["loss"] = losses["loss"] + extra
        shown = losses if self.logs_now() else {"loss": losses["loss"]}
        self.log_training(shown, labeled, loss_d)
        self.update(batch_idx, segmenter=losses["loss"], opponent=loss_d)

    def outputs(self, image: Tensor) -> dict[str, list[Tensor]]:
        """Return the logits of raw images; a single image may be too few for batch norms.

        Raises:
            SetupError: The network cannot train on the image alone.
        """
        try:
            return super().outputs(image)
        except SetupError as error:
            if len(image) > 1 or self.joint_forward:
                raise
            raise SetupError(
                f"{error.args[0]}. Labelled and unlabelled images go through it separately",
                option=("data.batch_size", "data.unlabeled_batch_size", "joint_forward true"),
            ) from error

    @property
    def plays(self) -> bool:
        """Whether a loss depends on the discriminator; otherwise it is not trained."""
        return max(self.lambda_adv, self.lambda_semi, self.lambda_semi_adv) > 0

    def judge(self, logits: Tensor, valid: Tensor) -> Judged:
        """Return the discriminator's logits for predictions, without a gradient to its weights.

        Args:
            logits: (B, C, H, W) logits of the segmenter.
            valid: (B, H, W) bool, False where a pixel does not count.
        """
        maps = at_least_float32(logits).softmax(1)
        with frozen(self.discriminator):
            return Judged(logits, maps, self._scores(maps), valid)

    def labeled_terms(self, judged: Judged) -> dict[str, Tensor]:
        """Return the adversarial losses on labelled images; their weights are `lambda_<name>`."""
        if self.lambda_adv == 0:
            return {}
        return {"adv": adversarial_loss(judged.scores, judged.valid, self.across_ranks)}

    def unlabeled_terms(self, judged: Judged) -> dict[str, Tensor]:
        """Return this iteration's losses on unlabelled images, weighted by `lambda_<name>`."""
        terms, due = {}, self._due()
        if "semi_adv" in due:
            terms["semi_adv"] = adversarial_loss(judged.scores, judged.valid, self.across_ranks)
        if "semi" in due:
            terms["semi"] = pseudo_label_loss(
                judged.logits,
                judged.scores,
                self.t_semi,
                judged.valid,
                self.ignore_index,
                self.across_ranks,
            )
        return terms

    def _due(self) -> set[str]:
        """Return the names of the terms of unlabelled images that have started."""
        starts = {
            "semi_adv": (self.lambda_semi_adv, self.semi_start_adv, "semi_start_adv"),
            "semi": (self.lambda_semi, self.semi_start, "semi_start"),
        }
        return {
            name
            for name, (weight, start, option) in starts.items()
            if weight > 0
            and self.trainer.global_step >= first_iteration(self.trainer, start, option)
        }

    def pseudo_labels(self, judged: Judged) -> Tensor:
        """Return (B, H, W) class ids, void where the confidence is below `t_semi`."""
        return pseudo_labels(
            judged.logits, judged.scores, self.t_semi, judged.valid, self.ignore_index
        )

    def discriminator_term(
        self, labeled: Judged, unlabeled: Judged | None, real: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of the discriminator, and its accuracies at the steps that are logged.

        Args:
            labeled: Predictions for labelled images.
            unlabeled: Predictions for unlabelled images, where there are some.
            real: (B, H, W) class ids that are shown as real.
        """
        shown = [labeled]
        if unlabeled is not None and self.train_discriminator_on_unlabeled:
            shown.append(unlabeled)
        # (B, C, H, W) probabilities and one-hot labels -> (B, H, W) logits of the discriminator
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
        loss = discriminator_loss(fake, truth, fake_valid, real_valid, self.across_ranks)
        return loss, accuracies

    @torch.no_grad()
    def selection(self, judged: Judged | None, mask: Tensor | None) -> dict[str, Tensor]:
        """Return the scalars `selected` and, where there are masks, `selected_accuracy`.

        Args:
            judged: Predictions for unlabelled images; None returns no scalars.
            mask: (B, H, W) class ids of these images, which training does not use.
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
        """Return the discriminator's confidence that the prediction for an image is a label map.

        Args:
            image: (B, 3, H, W) RGB, uint8 in 0..255 or floating point in [0, 1].

        Returns:
            (B, H, W) confidences in [0, 1].
        """
        return self._scores(at_least_float32(self(image)).softmax(1)).sigmoid()

    def _scores(self, maps: Tensor) -> Tensor:
        """Return the logits of the discriminator at every pixel, (B, C, H, W) -> (B, H, W)."""
        maps = maps.to(self.image_mean.dtype)  # the dtype of the weights, also in a float16 module
        return score_map(self.discriminator(maps), (maps.shape[-2], maps.shape[-1]))

    def _unlabeled(self, batch: dict[str, Any]) -> dict[str, Any] | None:
        """Return the unlabelled images if a loss of this iteration uses them, else None.

        Images that no loss uses do not go through the network: they would cost time and change the
        running statistics of batch norms.
        """
        wanted = self.lambda_semi > 0 or self.lambda_semi_adv > 0
        if wanted and "unlabeled" not in batch:
            raise SetupError(
                "SemiAdvModule learns from unlabelled images, but the batches have none: set "
                "unlabeled_batch_size, and labeled or unlabeled to get such images; or set both "
                "weights of unlabelled images to 0",
                option=(
                    "data.unlabeled_batch_size 8",
                    "data.labeled 1/8",
                    "lambda_semi 0",
                    "lambda_semi_adv 0",
                ),
            )
        if (self.plays and self.train_discriminator_on_unlabeled) or self._due():
            return batch.get("unlabeled")
        return None

    def _judge_unlabeled(
        self, unlabeled: dict[str, Any], image: Tensor
    ) -> tuple[Judged, dict[str, list[Tensor]] | None]:
        """Return judged unlabelled images; with `joint_forward` also the labelled ones' outputs."""
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
