"""Classes with a low IoU in the last validation are sampled more often."""

from __future__ import annotations

import math

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_seg.errors import SetupError, require_range


class ComplementarySampling(Callback):
    """Weighs the classes of the data module's `sampling: classes` by 1 - IoU after each validation.

    From the next training epoch on, class c of C is drawn with probability

        (1 - mix) / C + mix (1 - IoU_c) / sum_k (1 - IoU_k)

    A class that validation does not show counts with the mean IoU. S. Rota Bulo, G. Neuhold, P.
    Kontschieder (CVPR 2017, arXiv 1704.02966) sample in this way beside loss max-pooling.

    Args:
        mix: Share of the draws that follow the IoU, in [0, 1]; 0.5 is a default chosen here, not
            yet measured.

    Raises:
        SetupError: `mix` is out of range, or the data module has no `weigh_classes`.
    """

    def __init__(self, mix: float = 0.5) -> None:
        require_range(0, 1, mix=mix)
        self.mix = mix

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Weigh the classes by the scores, but not by those of the check before training."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        weigh = getattr(trainer.datamodule, "weigh_classes", None)  # type: ignore[attr-defined]
        if weigh is None:
            raise SetupError("ComplementarySampling needs a data module with `weigh_classes`")
        names: list[str] = pl_module.class_names  # type: ignore[assignment]
        iou = [trainer.callback_metrics[f"val/iou/{name}"].item() for name in names]
        weigh(class_weights(iou, self.mix))


def class_weights(iou: list[float], mix: float) -> list[float]:
    """Return the probability of each class, from its IoU in [0, 1] or NaN where it is unknown.

    >>> class_weights([0.5, 1.0, 0.0, float("nan")], mix=1.0)
    [0.25, 0.0, 0.5, 0.25]
    """
    known = [value for value in iou if not math.isnan(value)]
    mean = sum(known) / len(known) if known else 0.0
    misses = [1 - (mean if math.isnan(value) else value) for value in iou]
    total = sum(misses) or 1.0
    return [(1 - mix) / len(iou) + mix * miss / total for miss in misses]
