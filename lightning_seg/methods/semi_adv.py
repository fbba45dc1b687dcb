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

Beyond the paper, `strong_view` lets the pseudo-labels of an unlabelled image teach the network on a
second view of it with other colours: where the network is right already, its own image has nothing
to teach. `softmax_threshold` selects pseudo-labels by the probability of their class instead of by
D, and `ema_decay` takes them from a running mean of the network.

Differences from the authors' code: the padding of unlabelled crops is masked (`reference_padding:
true` counts it, as the authors do); where no pixel is selected the loss is 0 and the step is taken;
lambda_semi_adv may be 0 and semi_start_adv above 0. The weights are those of the authors' published
command, not of the defaults in their code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from lightning_seg.errors import SetupError, require_range
from lightning_seg.losses import (
    adversarial_loss,
    confident_labels,
    cross_entropy,
    pseudo_labels,
)
from lightning_seg.numerics import masked_mean
from lightning_seg.training.discriminator import DiscriminatorModule, Judged
from lightning_seg.training.discriminator_watch import DiscriminatorWatch
from lightning_seg.training.running_mean import RunningMean
from lightning_seg.training.segmentation import labeled_part
from lightning_seg.training.starts import first_iteration, require_start, warn_of_late_starts
from lightning_seg.views import ScaleView, Views, selected


class SemiAdvModule(DiscriminatorModule):
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
        lambda_adv: Weight of L_adv on labelled images, at least 0.
        lambda_semi: Weight of L_semi, at least 0.
        lambda_semi_adv: Weight of L_adv on unlabelled images, at least 0.
        strong_view: Whether pseudo-labels teach the network on `image_strong`, the second view of
            their image, instead of on the image itself. L_semi is then a mean over all pixels, in
            which those without a pseudo-label are 0. The option is not the paper's.
        softmax_threshold: Probability of a class in [0, 1] from which a pixel gets a pseudo-label,
            whatever D says; None lets D select the pixels, as in the paper.
        ema_decay: Decay in [0, 1) of a running mean of the network's weights, whose predictions
            become the pseudo-labels; 0 takes the network itself, as in the paper.
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
        options: Arguments of `DiscriminatorModule`.

    Raises:
        SetupError: A setting is out of range, or a batch has no unlabelled images.
    """

    own_terms = ("adv", "semi", "semi_adv", "d")

    def __init__(
        self,
        network: Callable[[int], nn.Module] | None = None,
        *,
        num_classes: int,
        discriminator: Callable[[int], nn.Module] | None = None,
        lambda_adv: float = 0.01,
        lambda_semi: float = 0.1,
        lambda_semi_adv: float = 0.001,
        strong_view: bool = False,
        softmax_threshold: float | None = None,
        ema_decay: float = 0.0,
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
            network,
            num_classes=num_classes,
            discriminator=discriminator,
            opponent_optimizer=opponent_optimizer,
            **options,
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
        if softmax_threshold is not None:
            require_range(0, 1, softmax_threshold=softmax_threshold)
        require_range(0, 0.999999, ema_decay=ema_decay)
        self.lambda_adv = lambda_adv
        self.lambda_semi = lambda_semi
        self.lambda_semi_adv = lambda_semi_adv
        self.strong_view = strong_view
        self.softmax_threshold = softmax_threshold
        self.teacher = RunningMean(self.network, ema_decay) if ema_decay > 0 else None
        self.t_semi = t_semi
        self.semi_start = semi_start
        self.semi_start_adv = semi_start_adv
        self.train_discriminator_on_unlabeled = train_discriminator_on_unlabeled
        self.reference_padding = reference_padding
        self.joint_forward = joint_forward
        self._watch = DiscriminatorWatch()

    def on_fit_start(self) -> None:
        """Set up the losses; the running mean of the network is in evaluation mode on purpose."""
        super().on_fit_start()
        if self.teacher is not None:
            self.expect_evaluation_mode()

    def on_train_start(self) -> None:
        """Warn where the training ends before a term of unlabelled images starts."""
        super().on_train_start()
        self._averaged_at = self.trainer.global_step
        starts = {"semi_start": self.lambda_semi, "semi_start_adv": self.lambda_semi_adv}
        used = {name: getattr(self, name) for name, weight in starts.items() if weight > 0}
        warn_of_late_starts(self.trainer, **used)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Update both players on one batch of labelled and unlabelled images."""
        labeled, unlabeled = labeled_part(batch), self._unlabeled(batch)
        target, outputs, on_unlabeled, pseudo, terms = labeled["mask"], None, None, None, {}
        if unlabeled is not None:
            on_unlabeled, outputs = self._judge_unlabeled(unlabeled, labeled["image"])
            pseudo = self._pseudo_labels_now(on_unlabeled, unlabeled)
            terms = self.unlabeled_terms(on_unlabeled, pseudo, self._strong(unlabeled))
        extra = self._weighted(terms)
        if outputs is None:  # the labelled images have a forward pass of their own
            extra = self.backward_early(extra)
            outputs = self.outputs_for_loss(labeled["image"])
        losses = self.supervised_losses(outputs, target)
        loss_d = None
        if self.plays:
            on_labeled = self.judge(outputs["out"][0], target != self.ignore_index)
            more = self.labeled_terms(on_labeled)
            extra, terms = extra + self._weighted(more), terms | more
            fake = [on_labeled]
            if on_unlabeled is not None and self.train_discriminator_on_unlabeled:
                fake.append(on_unlabeled)
            real = batch.get("labeled_real", labeled)["mask"]
            loss_d, accuracies = self.discriminator_term(fake, real)
            losses |= {"loss_d": loss_d.detach(), **accuracies}
            self._watch.watch(losses["loss_d"], terms["semi"].detach() if "semi" in terms else None)
        losses |= {f"loss_{name}": term.detach() for name, term in terms.items()}
        if on_unlabeled is not None and pseudo is not None and self.logs_now():
            mask = batch["unlabeled"].get("mask")
            losses |= self.selection(pseudo, on_unlabeled.valid, mask)
        losses["loss"] = losses["loss"] + extra
        shown = losses if self.logs_now() else {"loss": losses["loss"]}
        self.log_training(shown, labeled, loss_d)
        self.update(batch_idx, segmenter=losses["loss"], opponent=loss_d)

    def on_train_batch_end(self, outputs: Any, batch: dict[str, Any], batch_idx: int) -> None:
        """Move the running mean of the network after each of its steps."""
        super().on_train_batch_end(outputs, batch, batch_idx)
        if self.teacher is not None and self.trainer.global_step != self._averaged_at:
            self.teacher.update(self.network)
            self._averaged_at = self.trainer.global_step

    def outputs(
        self, image: Tensor, network: nn.Module | None = None, full_size: bool = True
    ) -> dict[str, list[Tensor]]:
        """Return the logits of raw images; a single image may be too few for batch norms.

        Raises:
            SetupError: The network cannot train on the image alone.
        """
        try:
            return super().outputs(image, network, full_size)
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
        selects = self.lambda_semi if self.softmax_threshold is None else 0.0
        return max(self.lambda_adv, selects, self.lambda_semi_adv) > 0

    def judge(self, logits: Tensor, valid: Tensor) -> Judged:
        """Return judged predictions; without a discriminator that plays, all scores are 0."""
        if self.plays:
            return super().judge(logits, valid)
        return Judged(logits, logits, torch.zeros_like(valid, dtype=logits.dtype), valid)

    def labeled_terms(self, judged: Judged) -> dict[str, Tensor]:
        """Return the adversarial losses on labelled images; their weights are `lambda_<name>`."""
        if self.lambda_adv == 0:
            return {}
        return {"adv": adversarial_loss(judged.scores, judged.valid, self.across_ranks)}

    def unlabeled_terms(
        self, judged: Judged, pseudo: Tensor | None = None, strong: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return this iteration's losses on unlabelled images, weighted by `lambda_<name>`.

        Args:
            judged: Predictions for the images.
            pseudo: (B, H, W) class ids, void where the network learns nothing; None takes those of
                the predictions.
            strong: (B, 3, H, W) second views of the images, on which the network learns them; None
                takes the images.
        """
        terms, due = {}, self._due()
        if "semi_adv" in due:
            terms["semi_adv"] = adversarial_loss(judged.scores, judged.valid, self.across_ranks)
        if "semi" in due:
            logits = judged.logits if strong is None else self.logits_of(strong)
            pseudo = self.pseudo_labels(judged) if pseudo is None else pseudo
            terms["semi"] = cross_entropy(
                logits, pseudo, self.ignore_index, across_ranks=self.across_ranks
            )
            if strong is not None:  # a few selected pixels must not have the weight of all
                kept = (pseudo != self.ignore_index).to(logits.dtype)
                terms["semi"] = terms["semi"] * masked_mean(kept, judged.valid, self.across_ranks)
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
        """Return (B, H, W) class ids, void where a prediction is not trusted."""
        if self.softmax_threshold is not None:
            return confident_labels(
                judged.logits, self.softmax_threshold, judged.valid, self.ignore_index
            )
        return pseudo_labels(
            judged.logits, judged.scores, self.t_semi, judged.valid, self.ignore_index
        )

    @torch.no_grad()
    def _pseudo_labels_now(self, judged: Judged, unlabeled: dict[str, Any]) -> Tensor | None:
        """Return pseudo-labels where a loss or the logs of this iteration need them."""
        if "semi" not in self._due() and not self.logs_now():
            return None
        if self.teacher is not None:
            logits = self.logits_of(unlabeled["image"], self.teacher)
            judged = self.judge(logits, judged.valid)
        return self.pseudo_labels(judged)

    def _strong(self, unlabeled: dict[str, Any]) -> Tensor | None:
        """Return the second views on which the network learns; None takes the images."""
        if not self.strong_view:
            return None
        if "image_strong" not in unlabeled:
            raise SetupError(
                "strong_view needs a second view of unlabelled images, and the batches have none",
                option=("data.strong_augmentation strong", "strong_view false"),
            )
        view: Tensor = unlabeled["image_strong"]
        return view

    @torch.no_grad()
    def selection(self, pseudo: Tensor, valid: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """Return the scalars `selected` and, where there are masks, `selected_accuracy`.

        Args:
            pseudo: (B, H, W) pseudo-labels of unlabelled images.
            valid: (B, H, W) bool, False where a pixel does not count.
            mask: (B, H, W) class ids of these images, which training does not use.
        """
        kept = pseudo != self.ignore_index
        found = {"selected": masked_mean(kept.float(), valid, self.across_ranks)}
        if mask is not None:
            known = kept & (mask != self.ignore_index)
            right = (pseudo == mask).float()
            found["selected_accuracy"] = masked_mean(right, known, self.across_ranks)
        return found

    def own_views(self, logits: Tensor, mask: Tensor | None) -> Views:
        """Return the confidence of D, and the pseudo-labels of an image if it had no labels."""
        judged = self.judge(logits, torch.ones_like(logits[:, 0], dtype=torch.bool))
        views: Views = {}
        trust = f"softmax >= {self.softmax_threshold}"
        if self.softmax_threshold is None:
            trust = f"D >= {self.t_semi:g}"
        if self.plays:
            confidence = judged.scores[0].sigmoid()
            views["confidence of D"] = ScaleView(confidence, 0, 1, "D: 1 is a label map")
        if mask is not None:
            views[f"pseudo-labels ({trust})"] = selected(
                self.pseudo_labels(judged)[0], mask[0], self.ignore_index
            )
        return views

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
            return self.judge(self.logits_of(unlabeled["image"]), valid), None
        together = self.outputs_for_loss(torch.cat([image, unlabeled["image"]]))
        count = len(image)
        outputs = {name: [each[:count] for each in found] for name, found in together.items()}
        return self.judge(together["out"][0][count:], valid), outputs

    def _weighted(self, terms: dict[str, Tensor]) -> Tensor:
        weighted = [getattr(self, f"lambda_{name}") * term for name, term in terms.items()]
        return torch.stack(weighted).sum() if weighted else self.image_mean.new_zeros(())
