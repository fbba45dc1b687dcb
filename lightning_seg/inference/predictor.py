"""Logits of images, seen whole or in windows, with test-time augmentation or without."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from lightning_seg.errors import SetupError, require_one_of, require_range
from lightning_seg.inference.augmented import augmented_probabilities, log_probabilities
from lightning_seg.inference.windows import Blend, Block, Grid, blended, windows_of

Network = Callable[[Tensor], Tensor]


class Progress(Protocol):
    """Shows how many windows of an image are done."""

    def __call__(self, blocks: Iterable[Block], total: int) -> Iterable[Block]:
        """Return the blocks, of which there are `total`, as they come."""
        ...


def silent(blocks: Iterable[Block], total: int) -> Iterable[Block]:
    """Return the blocks, and show nothing."""
    return blocks


class Predictor:
    """Logits of images from a network that sees them whole, in windows, or in several copies.

    Probabilities are averaged, over the windows that cover a pixel and over the copies of
    test-time augmentation, and their logarithms are returned, which are logits of the averages.
    Where one window covers the image and there is no augmentation, the result is what the network
    returns.

    Args:
        window: Side of the square windows in pixels, or height and width, at least 1; a window that
            is larger than an image is the image. None shows the network whole images.
        overlap: Smallest share of a window that its neighbour covers, in [0, 1).
        blend: `gaussian` gives pixels near the middle of a window more weight, with a standard
            deviation of 1/8 of its side (nnU-Net, Nature Methods 18, 2021); `flat` weighs all
            windows of a pixel equally.
        batch_size: Windows of an image that the network sees at once, at least 1.
        flip: Whether the network also sees a copy that is mirrored from left to right.
        scales: Factors of the sides of the copies that the network sees, above 0; 1 is the image
            itself. With windows, it is each window that is scaled.

    Attributes:
        progress: Gets the blocks of an image that has several windows, to show how far they are.

    Raises:
        SetupError: A value is out of its range.
    """

    def __init__(
        self,
        window: int | tuple[int, int] | None = None,
        overlap: float = 0.25,
        blend: Blend = "gaussian",
        batch_size: int = 4,
        flip: bool = False,
        scales: Sequence[float] = (1.0,),
    ) -> None:
        self.window = (window, window) if isinstance(window, int) else window
        require_range(1, math.inf, window=min(self.window or (1,)))
        if not 0 <= overlap < 1:
            raise SetupError(f"overlap must be in [0, 1), not {overlap}", option="overlap")
        require_one_of("gaussian", "flat", blend=blend)
        require_range(1, math.inf, batch_size=batch_size)
        if not scales or not all(0 < scale < math.inf for scale in scales):
            raise SetupError(
                f"scales must be factors above 0, at least one, not {list(scales)}", option="scales"
            )
        self.overlap = overlap
        self.blend: Blend = blend
        self.batch_size = batch_size
        self.flip = flip
        self.scales = tuple(scales)
        self.progress: Progress = silent

    @property
    def plain(self) -> bool:
        """Whether the network sees whole images once."""
        return self.window is None and not self.augments

    @property
    def augments(self) -> bool:
        """Whether the network sees several copies, or one that is scaled."""
        return self.flip or self.scales != (1,)

    def divides(self, size: Sequence[int]) -> bool:
        """Return whether an image of a (height, width) takes more than one window."""
        return self.window is not None and any(
            side > window for side, window in zip(size, self.window, strict=True)
        )

    def __call__(self, network: Network, image: Tensor) -> Tensor:
        """Return the logits of images.

        Args:
            network: Returns the (B, C, h, w) logits of (B, channels, h, w) images of any size.
            image: (B, channels, H, W), uint8 in 0..255 or floating point in [0, 1].

        Returns:
            (B, C, H, W) logits; the logarithms of averaged probabilities, in at least 32 bits,
            where there are several windows or copies.
        """
        if not self.divides(image.shape[-2:]):
            if not self.augments:
                return network(image)
            return log_probabilities(self._probabilities(network, image))
        every = [self._divided(network, each) for each in image]
        return torch.stack(every) if len(every) > 1 else every[0][None]

    def _divided(self, network: Network, image: Tensor) -> Tensor:
        """Return the (C, H, W) logits of one (channels, H, W) image in windows."""
        height, width = image.shape[-2:]
        whole: Tensor | None = None
        for top, left, logits in self.blocks(
            network, lambda top, bottom: image[:, top:bottom], (height, width)
        ):
            if whole is None:
                whole = logits.new_empty(logits.shape[0], height, width)
            whole[:, top : top + logits.shape[1], left : left + logits.shape[2]] = logits
        assert whole is not None
        return whole

    def blocks(
        self, network: Network, rows: Callable[[int, int], Tensor], size: tuple[int, int]
    ) -> Iterator[Block]:
        """Yield the logits of one image in blocks that no later window changes.

        The memory that this needs grows with the width of the image and the overlapping part of a
        window's height, and not with the height of the image.

        Args:
            network: As in a call.
            rows: Returns the (channels, bottom - top, W) pixels of the rows from `top` to `bottom`;
                both numbers grow from call to call.
            size: Height and width of the image, which takes more than one window.

        Yields:
            Blocks of logits in reading order, which cover each pixel once.
        """
        assert self.window is not None
        grid = Grid(size, self.window, self.overlap, self.blend)
        predicted = (
            pair
            for places, windows in windows_of(grid, rows, self.batch_size)
            for pair in zip(places, self._probabilities(network, windows), strict=True)
        )
        for block in self.progress(blended(grid, predicted), len(grid)):
            yield block._replace(values=log_probabilities(block.values))

    def _probabilities(self, network: Network, image: Tensor) -> Tensor:
        return augmented_probabilities(network, image, self.flip, self.scales)

    def require_window_for(self, network: nn.Module) -> None:
        """Raise an error for windows that are smaller than a pixel of the deepest feature map.

        Args:
            network: The network; only encoders that say their `reductions` are checked.

        Raises:
            SetupError: A side of a scaled window is smaller than the largest reduction.
        """
        if self.window is None:
            return
        found = (getattr(part, "reductions", None) for part in network.modules())
        stride = max((max(each) for each in found if each), default=1)
        smallest = int(min(self.window) * min(self.scales))
        if smallest < stride:
            scaled = f", {smallest} after scaling," if smallest < min(self.window) else ""
            raise SetupError(
                f"a window of {self.window[0]}x{self.window[1]} pixels{scaled} is smaller than the "
                f"stride {stride} of the network's deepest feature map",
                option="window",
            )
