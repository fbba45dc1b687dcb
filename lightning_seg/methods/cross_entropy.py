"""Per-pixel cross-entropy, or another loss of pixels: the baseline of every other method.

    L = CE(out) + lambda_aux sum_k CE(aux_k)

`out` are the logits and `aux_k` the auxiliary logits of the network. Each CE is a mean over the
labelled pixels. `pixel_loss` takes the place of CE.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from lightning_seg.errors import SetupError, require_range
from lightning_seg.losses import CrossEntropy
from lightning_seg.training.segmentation import SegmentationModule, labeled_part


class CrossEntropyModule(SegmentationModule):
    """Supervised training with cross-entropy, or with another loss of pixels.

    Logs `loss`; with auxiliary logits also `loss_main` and `loss_aux`, and with a `WeightedSum` as
    `pixel_loss` each of its terms as `loss_<name>`.

    Args:
        network: The network, or a function from the number of classes to it; None takes `LRASPP`.
        num_classes: Number of classes C, without void.
        label_smoothing: Share of the target that is spread over all classes, in [0, 1]. It is an
            option of the cross-entropy, which a `pixel_loss` replaces.
        options: Arguments of `SegmentationModule`.

    Raises:
        SetupError: A setting is out of range, or two settings contradict each other.
    """

    def __init__(
        self,
        network: Callable[[int], nn.Module] | None = None,
        *,
        num_classes: int,
        label_smoothing: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(network, num_classes=num_classes, **options)
        require_range(0, 1, label_smoothing=label_smoothing)
        if label_smoothing > 0 and options.get("pixel_loss") is not None:
            raise SetupError(
                f"label_smoothing {label_smoothing} is for the cross-entropy, which "
                f"{type(options['pixel_loss']).__name__} replaces",
                option="label_smoothing 0",
            )
        if label_smoothing > 0:
            self.use_loss(CrossEntropy(self.ignore_index, label_smoothing=label_smoothing))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of a batch; of a batch of groups, the loss of its group `labeled`."""
        batch = labeled_part(batch)
        losses = self.supervised_losses(self.outputs_for_loss(batch["image"]), batch["mask"])
        self.log_training(losses, batch)
        return losses["loss"]
