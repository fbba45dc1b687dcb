"""Loss max-pooling: train on the worst weights of the pixels within a convex set.

Long-tailed classes drown in the mean over pixels. Loss max-pooling replaces the uniform weights by
those that make the loss largest, as far as two norms allow: hard pixels, which are often those of
rare classes, get more, and no pixel gets more than `tau`.

S. Rota Bulo, G. Neuhold, P. Kontschieder: Loss Max-Pooling for Semantic Image Segmentation (CVPR
2017, arXiv 1704.02966). The equations stand in `lightning_seg.losses.loss_max_pooling`.

Differences from the code in use (mpl.pytorch): the optimum is exact, also with losses that are 0
and with a fractional support; void pixels are left out by the mask, not by a loss near 0; each
image is pooled by itself, and each auxiliary head. The paper's sampling of rare classes is the
data modules' `sampling: classes`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_seg.errors import SetupError
from lightning_seg.losses import LossMaxPooling
from lightning_seg.training.segmentation import SegmentationModule, labeled_part


class LMPModule(SegmentationModule):
    """Supervised training on the max-pooled cross-entropy.

    Logs, beside the loss and at the steps that are logged, the plain cross-entropy `loss_ce`, the
    effective support `support` = (sum w)^2 / (n sum w^2) in (0, 1], and `weight/<class>`, the share
    of the weight on a class's pixels, against `pixels/<class>`, the class's share of the pixels.

    Args:
        network: See `SegmentationModule`.
        num_classes: Number of classes C.
        p: Norm of the weights, in [1, inf]: small is steep, inf is the plain mean.
        ratio: Least share of the pixels with weight, in (0, 1]; 1 is the plain mean.
        per_image: Pool every image by itself; False pools the batch of a process.
        across_ranks: Pool the batches of all processes together; needs `per_image: false`.
        class_weights: One weight per class, multiplied into the losses before pooling.
        label_smoothing: Share of the target spread over all classes, in [0, 1].
        options: Passed to `SegmentationModule`.

    Raises:
        SetupError: Settings out of range or that contradict each other.
    """

    loss: LossMaxPooling

    def __init__(
        self,
        network: Callable[[int], nn.Module] | None = None,
        *,
        num_classes: int,
        p: float = 1.7,
        ratio: float = 0.3,
        per_image: bool = True,
        across_ranks: bool = False,
        class_weights: list[float] | None = None,
        label_smoothing: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(network, num_classes=num_classes, **options)
        if class_weights is not None and len(class_weights) != num_classes:
            raise SetupError(f"{len(class_weights)} class_weights for {num_classes} classes")
        try:
            self.loss = LossMaxPooling(
                p, ratio, self.ignore_index, per_image, class_weights, label_smoothing, across_ranks
            )
        except ValueError as error:
            raise SetupError(f"{error} (options: --model.p, --model.ratio)") from error

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of one batch, of its labelled images where there are others too."""
        batch = labeled_part(batch)
        outputs, target = self.outputs(batch["image"]), batch["mask"]
        losses = self.supervised_losses(outputs, target)
        if self.logs_now():
            losses |= self.attention(outputs["out"][0].detach(), target)
        self.log_training(losses, batch)
        return losses["loss"]

    @torch.no_grad()
    def attention(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return scalars that tell where the loss looks; see the class.

        Args:
            logits: (B, C, H, W).
            target: (B, H, W) class ids.
        """
        _, losses, weights = self.loss.pooled(logits, target)
        valid = target != self.ignore_index
        count = valid.sum().clamp(min=1)
        total = weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
        found = {
            "loss_ce": losses.sum() / count,
            "support": total.square() / weights.square().sum().clamp(min=1e-30) / count,
        }
        kinds = {"weight": weights / total, "pixels": valid.to(weights.dtype) / count}
        classes = target.where(valid, 0).flatten()
        for kind, values in kinds.items():
            share = values.new_zeros(self.num_classes)
            share.index_add_(0, classes, values.flatten())
            found |= {f"{kind}/{name}": share[i] for i, name in enumerate(self.class_names)}
        return found

    @torch.no_grad()
    def weight_map(self, image: Tensor, target: Tensor) -> Tensor:
        """Return where the loss looks, for a picture.

        Args:
            image: (B, 3, H, W) RGB, uint8 or in [0, 1].
            target: (B, H, W) class ids.

        Returns:
            (B, H, W) weights in multiples of the uniform weight; 0 where void.
        """
        weights = self.loss.pooled(self(image), target).weights
        valid = target != self.ignore_index
        dims = (1, 2) if self.loss.per_image else (0, 1, 2)
        return weights * valid.sum(dims, keepdim=True)
