"""Loss max-pooling: the worst case of the loss over a convex set of pixel weights.

In a mean over pixels, rare classes hardly count. Loss max-pooling replaces the uniform weights by
those that make the loss largest within two norms. Hard pixels, often those of rare classes, get
larger weights, and no weight exceeds tau:

    L = max_w sum_i w_i l_i   where   w >= 0,  |w|_p <= n^(-1/q),  |w|_inf <= tau
    tau = n^(-1/q) (ratio n)^(-1/p),   1/p + 1/q = 1

l_i are the cross-entropies of the n labelled pixels. With a `pixel_loss` L_pixel, such as the
Lovasz loss, the total is L + lambda_pixel L_pixel.

S. Rota Bulo, G. Neuhold, P. Kontschieder: Loss Max-Pooling for Semantic Image Segmentation (CVPR
2017, arXiv 1704.02966). `lightning_seg.losses.loss_max_pooling` computes the optimum.

Differences from the public code (mpl.pytorch): the optimum is exact, also for losses of 0 and for a
fractional ratio * n; void pixels are excluded by a mask, not by a loss near 0; every image and
every auxiliary head is pooled separately. The paper's sampling of rare classes is the option
`sampling: classes` of the data modules.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_seg.errors import SetupError, require_range
from lightning_seg.losses import LossMaxPooling, WeightedSum
from lightning_seg.training.segmentation import SegmentationModule, labeled_part
from lightning_seg.views import ScaleView, Views


class LMPModule(SegmentationModule):
    """Supervised training with the max-pooled cross-entropy.

    Besides `loss`, the steps that are logged have the plain cross-entropy `loss_ce`, the effective
    support `support` = (sum w)^2 / (n sum w^2) in (0, 1], and for each class `weight/<class>`, the
    share of the weight on its pixels, beside `pixels/<class>`, its share of the pixels.

    Args:
        network: The network, or a function from the number of classes to it; None takes `LRASPP`.
        num_classes: Number of classes C, without void.
        p: Order of the norm that bounds the weights, in [1, inf]. A small p prefers hard pixels
            strongly, inf is the plain mean.
        ratio: Smallest share of the pixels among which the weight is divided, in (0, 1]; 1 is the
            plain mean.
        per_image: Whether every image is pooled separately; False pools the batch, with
            `across_ranks` the batches of all processes together.
        label_smoothing: Share of the target that is spread over all classes, in [0, 1].
        pixel_loss: A loss of pixels that is added to the max-pooled one, such as a loss of
            segmentation_models_pytorch. The terms are logged as `loss_lmp` and `loss_pixel`, and
            those of a `WeightedSum` by their names. None adds nothing.
        lambda_pixel: Weight of `pixel_loss`, at least 0.
        options: Arguments of `SegmentationModule`.

    Raises:
        SetupError: A setting is out of range, or two settings contradict each other.
    """

    own_terms = ("ce",)

    def __init__(
        self,
        network: Callable[[int], nn.Module] | None = None,
        *,
        num_classes: int,
        p: float | Literal["inf"] = 1.7,
        ratio: float = 0.3,
        per_image: bool = True,
        label_smoothing: float = 0.0,
        pixel_loss: nn.Module | None = None,
        lambda_pixel: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(network, num_classes=num_classes, **options)
        require_range(0, math.inf, lambda_pixel=lambda_pixel)
        self.pooling = LossMaxPooling(
            p, ratio, self.ignore_index, per_image, label_smoothing=label_smoothing
        )
        self.use_loss(_added(self.pooling, pixel_loss, lambda_pixel))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of a batch; of a batch of groups, the loss of its group `labeled`."""
        batch = labeled_part(batch)
        outputs, target = self.outputs_for_loss(batch["image"]), batch["mask"]
        losses = self.supervised_losses(outputs, target)
        if self.logs_now():
            losses |= self.attention(outputs["out"][0].detach(), target)
        self.log_training(losses, batch)
        return losses["loss"]

    @torch.no_grad()
    def attention(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the scalars that the class's docstring lists, by name.

        Args:
            logits: (B, C, H, W) logits.
            target: (B, H, W) class ids.
        """
        # (B, C, H, W) -> (B, H, W) cross-entropies and weights, 0 where void
        _, losses, weights = self.pooling.pooled(logits, target)
        valid = target != self.ignore_index
        count = valid.sum().clamp(min=1)
        total = weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
        found = {
            "loss_ce": losses.sum() / count,
            "support": total.square() / weights.square().sum().clamp(min=1e-30) / count,
        }
        # (B, H, W) -> (C,) sums per class
        kinds = {"weight": weights / total, "pixels": valid.to(weights.dtype) / count}
        classes = target.where(valid, 0).flatten()
        for kind, values in kinds.items():
            share = values.new_zeros(self.num_classes)
            share.index_add_(0, classes, values.flatten())
            found |= {f"{kind}/{name}": share[i] for i, name in enumerate(self.class_names)}
        return found

    @torch.no_grad()
    def weight_map(self, image: Tensor, target: Tensor) -> Tensor:
        """Return the weight of every pixel in the loss.

        Args:
            image: (B, 3, H, W) RGB, uint8 in 0..255 or floating point in [0, 1].
            target: (B, H, W) class ids.

        Returns:
            (B, H, W) weights in multiples of the uniform weight, 0 where void.
        """
        return self._multiples(self(image), target)

    def _multiples(self, logits: Tensor, target: Tensor) -> Tensor:
        weights = self.pooling.pooled(logits, target).weights
        dims = (1, 2) if self.pooling.per_image else (0, 1, 2)
        return weights * (target != self.ignore_index).sum(dims, keepdim=True)

    def own_views(self, logits: Tensor, mask: Tensor | None) -> Views:
        """Return the weight of every pixel, from 0 to tau in multiples of the uniform weight."""
        if mask is None:
            return {}
        weights = self._multiples(logits, mask).masked_fill(mask == self.ignore_index, math.nan)
        # tau n = n^(1/p) (ratio n)^(-1/p)
        largest = max(self.pooling.ratio ** (-1 / self.pooling.p), 1.001)
        return {"weight": ScaleView(weights[0], 0, largest, "x uniform weight; 0: not in the loss")}


def _added(pooling: LossMaxPooling, other: nn.Module | None, weight: float) -> nn.Module:
    """Return the max-pooled loss, or its sum with another loss or with the terms of a sum."""
    if other is None:
        return pooling
    if not isinstance(other, WeightedSum):
        return WeightedSum({"lmp": pooling, "pixel": other}, {"pixel": weight})
    if "lmp" in other.names:
        raise SetupError(
            "LMPModule logs a `loss_lmp` of its own: give the term `lmp` of the loss another name",
            option="pixel_loss.losses",
        )
    losses = dict(zip(other.names, other.losses, strict=True))
    weights = {name: weight * own for name, own in zip(other.names, other.weights, strict=True)}
    return WeightedSum({"lmp": pooling, **losses}, weights)
