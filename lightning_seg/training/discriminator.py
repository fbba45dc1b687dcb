"""What methods with a discriminator share: judged predictions and the discriminator's loss."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from lightning_seg.errors import SetupError
from lightning_seg.losses import (
    class_probabilities,
    discriminator_loss,
    one_hot_map,
    score_map,
)
from lightning_seg.networks import FCDiscriminator
from lightning_seg.numerics import masked_mean
from lightning_seg.training.shared_forward import scores_of
from lightning_seg.training.two_players import TwoPlayerModule


class Judged(NamedTuple):
    """Predictions and the discriminator's logits for them."""

    logits: Tensor
    """(B, C, h, w) logits of the segmenter, no larger than the image."""
    maps: Tensor
    """(B, C, H, W) class probabilities."""
    scores: Tensor
    """(B, H, W) logits of the discriminator, large for labels, with a gradient to the segmenter."""
    valid: Tensor
    """(B, H, W) bool, False where a pixel does not count."""
    own_scores: Tensor | None = None
    """The scores with a gradient to the discriminator alone; None where they need a new pass."""


class DiscriminatorModule(TwoPlayerModule, ABC):
    """Base of the methods whose opponent is a discriminator D of label maps and predictions.

    Args:
        network: The segmenter; see `SegmentationModule`.
        num_classes: Number of classes C, without void.
        discriminator: A module (B, C, H, W) -> (B, 1, h, w) logits, or a function from the number
            of classes to it; None takes `FCDiscriminator`.
        opponent_optimizer: Function from parameter groups to the discriminator's optimizer.
        options: Arguments of `TwoPlayerModule`.

    Raises:
        SetupError: The discriminator does not return one logit per place.
    """

    def __init__(
        self,
        network: Callable[[int], nn.Module] | None = None,
        *,
        num_classes: int,
        discriminator: Callable[[int], nn.Module] | None = None,
        opponent_optimizer: OptimizerCallable = lambda groups: torch.optim.Adam(groups, lr=0.0001),
        **options: Any,
    ) -> None:
        super().__init__(
            network, num_classes=num_classes, opponent_optimizer=opponent_optimizer, **options
        )
        self.discriminator, scores = self.adopt(
            "discriminator", discriminator or FCDiscriminator, num_classes
        )
        if not isinstance(scores, Tensor) or scores.ndim != 4 or scores.shape[1] != 1:
            raise SetupError(
                f"{type(self.discriminator).__name__} does not return one logit per place, "
                "(B, 1, h, w)",
                option="discriminator",
            )

    @property
    def opponent(self) -> nn.Module:
        """The discriminator."""
        return self.discriminator

    def judge(self, logits: Tensor, valid: Tensor) -> Judged:
        """Return the discriminator's logits for predictions, without a gradient to its weights.

        Args:
            logits: (B, C, h, w) logits of the segmenter, no larger than the image.
            valid: (B, H, W) bool, False where a pixel does not count.
        """
        maps = class_probabilities(logits, (valid.shape[-2], valid.shape[-1]))
        scores, own_scores = scores_of(self.discriminator, self._scores, maps)
        return Judged(logits, maps, scores, valid, own_scores)

    def discriminator_term(
        self, shown: Sequence[Judged], real: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of the discriminator, and its accuracies at the steps that are logged.

        Args:
            shown: Predictions that are shown as fake.
            real: (B, H, W) class ids that are shown as real.
        """
        # (B, C, H, W) probabilities and one-hot labels -> (B, H, W) logits of the discriminator
        fake = torch.cat([self._own_scores(each) for each in shown])
        fake_valid = torch.cat([each.valid for each in shown])
        real_valid = real != self.ignore_index
        truth = self._scores_of_labels(real, real_valid)
        accuracies = {}
        if self.logs_now():
            accuracies = {
                "d_accuracy_fake": masked_mean((fake < 0).float(), fake_valid, self.across_ranks),
                "d_accuracy_real": masked_mean((truth > 0).float(), real_valid, self.across_ranks),
            }
        loss = discriminator_loss(fake, truth, fake_valid, real_valid, self.across_ranks)
        return loss, accuracies

    @torch.no_grad()
    def confidence_map(self, image: Tensor) -> Tensor:
        """Return the discriminator's confidence that the prediction for an image is a label map.

        Args:
            image: (B, 3, H, W) RGB, uint8 in 0..255 or floating point in [0, 1].

        Returns:
            (B, H, W) confidences in [0, 1].
        """
        return self.confidence_log_odds(self(image)).sigmoid()

    @torch.no_grad()
    def confidence_log_odds(self, logits: Tensor) -> Tensor:
        """Return the logits of the discriminator for predictions, (B, C, H, W) -> (B, H, W).

        Args:
            logits: (B, C, H, W) logits of the segmenter, whose softmax the discriminator sees, as
                in the training.
        """
        return self._scores(class_probabilities(logits))

    def _own_scores(self, judged: Judged) -> Tensor:
        """Return the scores of predictions, with a gradient to the discriminator alone."""
        if judged.own_scores is not None:
            return judged.own_scores
        return self._scores(judged.maps.detach())

    def _scores_of_labels(self, labels: Tensor, valid: Tensor) -> Tensor:
        """Return the logits of the discriminator for labels, (B, H, W) -> (B, H, W)."""
        if type(self.discriminator) is not FCDiscriminator:
            return self._scores(one_hot_map(labels, self.num_classes, self.ignore_index))
        size = (labels.shape[-2], labels.shape[-1])
        return score_map(self.discriminator(labels.where(valid, self.num_classes)), size)

    def _scores(self, maps: Tensor) -> Tensor:
        """Return the logits of the discriminator at every pixel, (B, C, H, W) -> (B, H, W)."""
        maps = maps.to(self.image_mean.dtype)  # the dtype of the weights, also in a float16 module
        return score_map(self.discriminator(maps), (maps.shape[-2], maps.shape[-1]))
