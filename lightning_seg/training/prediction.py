"""The class ids of a batch that is predicted: from pixels in memory, or from a file in strips."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_seg.inference import Strip, strips
from lightning_seg.losses.upsampled_labels import most_probable
from lightning_seg.numerics import at_least_float32

if TYPE_CHECKING:
    from lightning_seg.training.segmentation import SegmentationModule


class RowReader(Protocol):
    """An image of which some rows are read at a time."""

    size: tuple[int, int]
    """Height and width in pixels."""

    def rows(self, top: int, bottom: int) -> Tensor:
        """Return the (channels, bottom - top, W) pixels of some rows; the numbers grow."""
        ...


def predicted(module: SegmentationModule, batch: dict[str, Any]) -> dict[str, Any]:
    """Return the prediction of a batch; see `SegmentationModule.predict_step`."""
    keep = module.keeps_probabilities
    if "file" in batch:
        return {"strips": _strips_of_file(module, batch["file"], keep)}
    image = batch["image"]
    if module.log_odds is not None:
        logits = module.predictor(module, image)
        labels = logits.max(dim=1).indices.to(torch.uint8)
        return {"labels": labels, "log_odds": module.log_odds(logits)}
    size = (image.shape[-2], image.shape[-1])
    if module.predictor.divides(size):
        every = [_in_memory(module, each, size, keep) for each in image]
        found = {"labels": torch.stack([labels for labels, _ in every])}
        maps = [each for _, each in every if each is not None]
        return found | ({"probabilities": torch.from_numpy(np.stack(maps))} if keep else {})
    if module.predictor.plain and not keep:
        logits = module.logits_of(image)
        return {"labels": most_probable(logits, size).labels.to(torch.uint8)}
    logits = module.predictor(module, image)
    found = {"labels": logits.max(dim=1).indices.to(torch.uint8)}  # argmax takes ten times as long
    return found | ({"probabilities": _probabilities(logits)} if keep else {})


def softmax_log_odds(logits: Tensor) -> Tensor:
    """Return the log-odds of the largest probability of every pixel.

    Args:
        logits: (B, C, H, W) logits of the segmenter, any floating dtype.

    Returns:
        (B, H, W) log(q / (1 - q)) with q = max_c softmax(logits)_c, in float32 or wider. It is
        exact also where q rounds to 1: the largest logit minus the logsumexp of the others.

    Examples:
        Probabilities of 3/4 and 1/4 have odds of 3.

        >>> logits = torch.tensor([0.25, 0.75]).log().view(1, 2, 1, 1)
        >>> round(softmax_log_odds(logits).exp().item(), 4)
        3.0
    """
    largest, labels = at_least_float32(logits).max(1, keepdim=True)
    # (B, C, H, W) -> (B, H, W)
    others = at_least_float32(logits).scatter(1, labels, -torch.inf).logsumexp(1)
    return largest[:, 0] - others


def _probabilities(logits: Tensor) -> Tensor:
    return at_least_float32(logits).softmax(1).half()


def _in_memory(
    module: SegmentationModule, image: Tensor, size: tuple[int, int], keep: bool
) -> tuple[Tensor, NDArray[np.float16] | None]:
    """Return class ids and probabilities of one image, whose logits are never all in memory."""

    def rows(top: int, bottom: int) -> Tensor:
        return image[:, top:bottom]

    parts = list(strips(module.predictor, module, rows, size, keep))
    labels = torch.cat([part.labels for part in parts])
    # by numpy: torch joins no float16 where the precision is bfloat16
    maps = [part.probabilities.numpy() for part in parts if part.probabilities is not None]
    return labels, np.concatenate(maps, axis=1) if maps else None


def _strips_of_file(module: SegmentationModule, file: RowReader, keep: bool) -> Iterator[Strip]:
    """Yield the prediction of a file, which is read while it is predicted."""
    context: Callable[[], Any] = module.trainer.precision_plugin.predict_step_context

    def network(image: Tensor) -> Tensor:
        with context():  # the caller takes the strips after the step
            return module(image)  # type: ignore[no-any-return]

    def rows(top: int, bottom: int) -> Tensor:
        return file.rows(top, bottom).to(module.device)

    yield from strips(module.predictor, network, rows, file.size, keep)
