"""Probability gradients: class probabilities change in space where the labels change.

A convolution with an edge kernel K_d gives the spatial gradient, in direction d, of the probability
P_c of each class and of its one-hot labels Y_c. At the boundaries of the labels the two gradients
are made equal, which sharpens boundaries that per-pixel losses leave blurred:

    L = L_pixel + lambda_cpg mean over (c, d, x) with (K_d * Y_c)(x) != 0
                             of ((K_d * P_c)(x) - (K_d * Y_c)(x))^2

Convolution-based Probability Gradient Loss for Semantic Segmentation (2024, arXiv 2404.06704). The
network does not change, and predictions cost nothing more.

Beyond the paper, `false_edges` w adds a term against edges where the labels have none. It is the
mean over the labelled pixels x without an edge of the labels:

    L + lambda_cpg w mean_x sum_c,d (K_d * P_c)(x)^2

Differences from the authors' code: the loss is 0 instead of NaN where there is no boundary; void
pixels make no edges unless `void: reference` asks for it; boundaries are found on integers. The
weight lambda_cpg = 1 is a default chosen here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_seg.errors import require_range
from lightning_seg.losses import ProbabilityGradientLoss
from lightning_seg.numerics import mean_of
from lightning_seg.training.segmentation import SegmentationModule, labeled_part
from lightning_seg.views import KindView, ScaleView, Views


class CPGModule(SegmentationModule):
    """Supervised training with a loss of pixels and the probability gradient loss.

    Logs `loss`, `loss_pixel` and `loss_cpg`, and with `false_edges` also `loss_false_edges`, its
    term without the weights. The steps that are logged also have `boundary`, the share of the
    labelled pixels that lie at a boundary.

    Args:
        network: The network, or a function from the number of classes to it; None takes `LRASPP`.
        num_classes: Number of classes C, without void.
        lambda_cpg: Weight of the probability gradient loss, at least 0.
        false_edges: Weight, relative to `lambda_cpg`, of the term against false edges, at least 0.
            The term is not the paper's. 1 adds 2.7 +- 0.9 and 0.8 +- 0.3 points of mIoU on two
            settings with two classes, and none on two settings with eleven.
        kernel_size: Side of the edge kernel in pixels: 3, 5 or 7.
        void: Effect of void pixels in a window: `strict` excludes the window, `reference` lets void
            make edges as in the authors' code, `nearest` takes the nearest label.
        normalize: Whether the kernels of all sizes have the same scale, so that one `lambda_cpg`
            suits all of them.
        on_aux: Whether the loss acts on auxiliary logits too, weighted by `lambda_aux`.
        options: Arguments of `SegmentationModule`.

    Raises:
        SetupError: A setting is out of range.
    """

    own_terms = ("pixel", "cpg", "false_edges")

    def __init__(
        self,
        network: Callable[[int], nn.Module] | None = None,
        *,
        num_classes: int,
        lambda_cpg: float = 1.0,
        false_edges: float = 0.0,
        kernel_size: Literal[3, 5, 7] = 3,
        void: Literal["strict", "reference", "nearest"] = "strict",
        normalize: bool = False,
        on_aux: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(network, num_classes=num_classes, **options)
        require_range(0, math.inf, lambda_cpg=lambda_cpg)
        self.lambda_cpg = lambda_cpg
        self.on_aux = on_aux
        self.cpg = ProbabilityGradientLoss(
            kernel_size, void, self.ignore_index, normalize, false_edges=false_edges
        )

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of a batch; of a batch of groups, the loss of its group `labeled`."""
        batch = labeled_part(batch)
        outputs, target = self.outputs_for_loss(batch["image"]), batch["mask"]
        losses = self.supervised_losses(outputs, target)
        pixels, terms = losses["loss"], self.edge_terms(outputs, target)
        cpg = terms["cpg"]
        if "false_edges" in terms:
            cpg = cpg + self.cpg.false_edges * terms["false_edges"]
        total = pixels + self.lambda_cpg * cpg
        losses |= {"loss": total, "loss_pixel": pixels.detach()}
        losses |= {f"loss_{name}": term.detach() for name, term in terms.items()}
        if self.logs_now():
            losses["boundary"] = self.boundary_share(target)
        self.log_training(losses, batch)
        return total

    def edge_terms(self, outputs: dict[str, list[Tensor]], target: Tensor) -> dict[str, Tensor]:
        """Return `cpg`, the paper's loss, and `false_edges` where it has a weight, as scalars.

        Args:
            outputs: The logits that `outputs` returned; those of `aux` count with `on_aux`.
            target: (B, H, W) class ids.
        """
        found: dict[str, Tensor] = {}
        aux = outputs["aux"] if self.on_aux else []
        for factor, logits in (
            (1.0, outputs["out"][0]),
            *((self.lambda_aux, each) for each in aux),
        ):
            edges, false = self.cpg.terms(logits, target)
            for name, term in (("cpg", edges), ("false_edges", false)):
                if term is not None:
                    found[name] = found[name] + factor * term if name in found else term
        return found

    @torch.no_grad()
    def boundary_share(self, target: Tensor) -> Tensor:
        """Return the share of boundary pixels among the labelled pixels of (B, H, W) class ids."""
        boundary = self.cpg.boundary(target)
        labelled = (target != self.ignore_index).sum()
        return mean_of(boundary.sum().float(), labelled, self.across_ranks)

    def own_views(self, logits: Tensor, mask: Tensor | None) -> Views:
        """Return the boundary mask, and the gradients of truth and prediction."""
        if mask is None:
            return {}
        boundary = KindView(self.cpg.boundary(mask)[0].long() - 1, {"in the loss": (230, 97, 0)})
        truth, predicted = self.cpg.gradient_sizes(logits, mask)  # (1, H, W) each
        meaning = "1: a straight edge; grey: void"
        return {
            "boundary": boundary,
            "gradient of truth": ScaleView(truth[0], 0, 1.5, meaning),
            "gradient of prediction": ScaleView(predicted[0], 0, 1.5, meaning),
        }
