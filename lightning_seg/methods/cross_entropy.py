"""Per-pixel cross-entropy: the baseline of every other method.

    L = CE(out) + lambda_aux sum_k CE(aux_k)

`out` are the logits and `aux_k` the auxiliary logits of the network. Each CE is a mean over the
labelled pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from lightning_seg.errors import SetupError, require_range
from lightning_seg.losses import CrossEntropy
from lightning_seg.training.segmentation import SegmentationModule, labeled_part


class CrossEntropyModule(SegmentationModule):
    """Supervised training with cross-entropy.

    Logs `loss`; with auxiliary logits also `loss_main` and `loss_aux`.

    Args:
        network: The network, or a function from the number of classes to it; None takes `LRASPP`.
        num_classes: Number of classes C, without void.
        class_weights: One weight per class; None weighs all classes equally.
        label_smoothing: Share of the target that is spread over all classes, in [0, 1].
        options: Arguments of `SegmentationModule`.

    Raises:
        SetupError: A setting is out of range, or there is not one weight per class.
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
            raise SetupError(
                f"{len(class_weights)} class_weights for {num_classes} classes",
                option="class_weights",
            )
        require_range(0, 1, label_smoothing=label_smoothing)
        self.loss = CrossEntropy(self.ignore_index, class_weights, label_smoothing)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of a batch; of a batch of groups, the loss of its group `labeled`."""
        batch = labeled_part(batch)
        losses = self.supervised_losses(self.outputs(batch["image"]), batch["mask"])
        self.log_training(losses, batch)
        return losses["loss"]
