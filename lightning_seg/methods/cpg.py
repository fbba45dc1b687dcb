"""Probability gradients: make class probabilities change where the labels do.

A convolution with an edge kernel gives the spatial gradient of each class's probability and of its
labels; at the labels' boundaries the two are to be equal. It sharpens boundaries that per-pixel
losses leave blurred, changes nothing in the network and costs nothing at prediction.

Convolution-based Probability Gradient Loss for Semantic Segmentation (2024, arXiv 2404.06704):

    L = L_pixel + lambda_cpg * L_cpg

The equation of L_cpg stands in `lightning_seg.losses.probability_gradient`. Differences from the
authors' code: 0 instead of NaN where there is no boundary; void pixels make no edges unless
`void: reference` asks for it; boundaries are found on integers. The loss weight is not in the
paper's public parts: 1 is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_seg.errors import SetupError, require_range
from lightning_seg.losses import CrossEntropy, ProbabilityGradientLoss
from lightning_seg.training.segmentation import SegmentationModule, labeled_part


class CPGModule(SegmentationModule):
    """Supervised training on a loss of pixels and the probability gradient loss.

    Logs both terms, and at the steps that are logged `boundary`, the share of the labelled pixels
    at which the second one looks.

    Args:
        network: See `SegmentationModule`.
        num_classes: Number of classes C.
        pixel_loss: The loss of pixels, logits and class ids -> scalar; None takes `CrossEntropy`.
            `LossMaxPooling` goes as well.
        lambda_cpg: Weight of the probability gradient loss.
        kernel_size: 3, 5 or 7.
        void: What void pixels in a window do; see `probability_gradient_loss`.
        normalize: Bring the kernels to one scale, so that `lambda_cpg` serves all sizes.
        on_aux: Also on the auxiliary heads, weighted by `lambda_aux`.
        across_ranks: Average over the boundaries of all processes, not per process.
        options: Passed to `SegmentationModule`.

    Raises:
        SetupError: Settings out of range.
    """

    def __init__(
        self,
        network: Callable[[int], nn.Module] | None = None,
        *,
        num_classes: int,
        pixel_loss: nn.Module | None = None,
        lambda_cpg: float = 1.0,
        kernel_size: Literal[3, 5, 7] = 3,
        void: Literal["strict", "reference", "nearest"] = "strict",
        normalize: bool = False,
        on_aux: bool = False,
        across_ranks: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(network, num_classes=num_classes, **options)
        require_range(0, math.inf, lambda_cpg=lambda_cpg)
        self.loss = CrossEntropy(self.ignore_index) if pixel_loss is None else pixel_loss
        self.lambda_cpg = lambda_cpg
        self.on_aux = on_aux
        try:
            self.cpg = ProbabilityGradientLoss(
                kernel_size, void, self.ignore_index, normalize, across_ranks
            )
        except ValueError as error:
            raise SetupError(f"{error} (options: --model.kernel_size, --model.void)") from error

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of one batch, of its labelled images where there are others too."""
        batch = labeled_part(batch)
        outputs, target = self.outputs(batch["image"]), batch["mask"]
        losses = self.supervised_losses(outputs, target)
        pixels = losses["loss"]
        cpg: Tensor = self.cpg(outputs["out"][0], target)
        if self.on_aux:
            for logits in outputs["aux"]:
                cpg = cpg + self.lambda_aux * self.cpg(logits, target)
        total = pixels + self.lambda_cpg * cpg
        losses |= {"loss": total, "loss_pixel": pixels.detach(), "loss_cpg": cpg.detach()}
        if self.logs_now():
            losses["boundary"] = self.boundary_share(target)
        self.log_training(losses, batch)
        return total

    @torch.no_grad()
    def boundary_share(self, target: Tensor) -> Tensor:
        """Return the share of the labelled pixels of (B, H, W) class ids that lie at a boundary."""
        labelled = (target != self.ignore_index).sum().clamp(min=1)
        share: Tensor = self.cpg.boundary(target).sum() / labelled
        return share
