"""Plain supervised training with per-pixel cross-entropy: the yardstick of every other method.

L = CE(out) + lambda_aux * sum_k CE(aux_k), each term the mean over labelled pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from lightning_seg.errors import SetupError
from lightning_seg.losses import CrossEntropy
from lightning_seg.training.segmentation import SegmentationModule, labeled_part


class CrossEntropyModule(SegmentationModule):
    """Trains a network with cross-entropy.

    Args:
        network: See `SegmentationModule`.
        num_classes: Number of classes, void not counted.
        class_weights: One weight per class; None weighs all alike.
        label_smoothing: Share of the target spread over all classes, in [0, 1].
        options: Passed to `SegmentationModule`.
    """

    def __init__(
        self,
        network: Callable[[int], nn.Module] | None = None,
        *,
        num_classes: int,
        class_weights: list[float] | None = None,
        label_smoothing: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(network, num_classes=num_classes, **options)
        if class_weights is not None and len(class_weights) != num_classes:
            raise SetupError(f"{len(class_weights)} class_weights for {num_classes} classes")
        if not 0 <= label_smoothing <= 1:
            raise SetupError(f"label_smoothing must lie in [0, 1], not {label_smoothing}")
        self.loss = CrossEntropy(self.ignore_index, class_weights, label_smoothing)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of one batch, of its labelled images where there are others too."""
        batch = labeled_part(batch)
        losses = self.supervised_losses(self.outputs(batch["image"]), batch["mask"])
        self.log_training(losses, batch)
        return losses["loss"]
