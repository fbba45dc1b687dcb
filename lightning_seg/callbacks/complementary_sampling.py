"""Images of the classes that the last validation found hard."""

from __future__ import annotations

import math

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_seg.errors import SetupError


class ComplementarySampling(Callback):
    """Weighs the classes of `--data.sampling classes` by 1 - IoU after each validation.

    A class is drawn with probability (1 - mix) / C + mix (1 - IoU_c) / sum_k (1 - IoU_k), from the
    next training epoch on. Classes that validation does not show count with the mean IoU. The
    paper on loss max-pooling (CVPR 2017) samples so beside its loss; its mixing rate is not
    in the parts that could be read: 0.5 is ours.

    Args:
        mix: Share of the draws that follow the IoU, in [0, 1].

    Raises:
        SetupError: `mix` out of range, or a data module without `weigh_classes`.
    """

    def __init__(self, mix: float = 0.5) -> None:
        if not 0 <= mix <= 1:
            raise SetupError(f"mix of ComplementarySampling must lie in [0, 1], not {mix}")
        self.mix = mix

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the scores, but not those of the check before training."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        weigh = getattr(trainer.datamodule, "weigh_classes", None)  # type: ignore[attr-defined]
        if weigh is None:
            raise SetupError("ComplementarySampling needs one of the data modules' classes")
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
