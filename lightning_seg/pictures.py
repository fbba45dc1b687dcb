"""Class ids as colours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def color_table(
    num_classes: int, palette: Sequence[Sequence[int]] | None = None
) -> NDArray[np.uint8]:
    """Return 256 RGB rows: the palette, or PASCAL VOC's colours, and white for void (255).

    VOC spreads the bits of the class id over the high bits of red, green and blue.

    >>> color_table(3)[[1, 2, 255]].tolist()
    [[128, 0, 0], [0, 128, 0], [255, 255, 255]]
    """
    table = np.zeros((256, 3), np.uint8)
    if palette is not None:
        table[:num_classes] = palette
    else:
        for index in range(num_classes):
            for bit in range(8):
                for channel in range(3):
                    table[index, channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
    table[255] = 255
    return table


def overlay(
    image: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    table: NDArray[np.uint8],
    opacity: float = 0.5,
) -> NDArray[np.uint8]:
    """Blend class colours over an image.

    Args:
        image: (H, W, 3) RGB.
        labels: (H, W) class ids; void leaves the image as it is.
        table: (256, 3) colours, see `color_table`.
        opacity: Share of the colour, in [0, 1].

    Returns:
        (H, W, 3) RGB.
    """
    mixed = image * (1 - opacity) + table[labels] * opacity
    return np.where((labels == 255)[..., None], image, mixed.round()).astype(np.uint8)
