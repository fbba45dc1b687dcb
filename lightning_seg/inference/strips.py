"""Class ids of an image that is read and predicted in strips of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_seg.inference.predictor import Network, Predictor


class Strip(NamedTuple):
    """Some rows of a prediction, which are final."""

    top: int
    """First row of the strip."""
    labels: Tensor
    """(h, W) uint8 class ids, on the CPU."""
    probabilities: Tensor | None
    """(C, h, W) float16 probabilities, on the CPU; None where they were not asked for."""


def strips(
    predictor: Predictor,
    network: Network,
    rows: Callable[[int, int], Tensor],
    size: tuple[int, int],
    probabilities: bool = False,
) -> Iterator[Strip]:
    """Yield the prediction of one image in strips from top to bottom.

    Args:
        predictor: Divides the image into several windows.
        network: Returns the (B, C, h, w) logits of (B, channels, h, w) images.
        rows: Returns the (channels, bottom - top, W) pixels of the rows from `top` to `bottom`;
            both numbers grow from call to call.
        size: Height and width of the image.
        probabilities: Whether a strip also holds the probabilities of the classes.
    """
    width = size[1]
    labels = found = None
    for top, left, logits in predictor.blocks(network, rows, size):
        count, height, across = logits.shape
        if labels is None:
            labels = torch.empty(height, width, dtype=torch.uint8)
            found = (
                torch.empty(count, height, width, dtype=torch.float16) if probabilities else None
            )
        # (C, h, w) -> (h, w)
        labels[:, left : left + across] = logits.max(0).indices
        if found is not None:
            found[..., left : left + across] = logits.softmax(0)
        if left + across == width:
            yield Strip(top, labels, found)
            labels = found = None
