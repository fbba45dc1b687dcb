"""Some pixels of a map, also of a map that is smaller than the image and upsampled bilinearly."""

from __future__ import annotations

import torch
from torch import Tensor


class PickedPixels:
    """Values of the maps of an image at chosen pixels, and the adjoint of choosing.

    Args:
        maps: (C, h, w), float32 or wider. Where (h, w) is smaller than `size`, values are those of
            bilinear upsampling with `align_corners=False`.
        size: (H, W) of the image.
        places: (S,) rising positions of pixels in the flattened (H, W).
    """

    def __init__(self, maps: Tensor, size: tuple[int, int], places: Tensor) -> None:
        self.maps = maps.detach()
        self.places = places
        self.corners: list[tuple[Tensor, Tensor]] | None = None
        if maps.shape[1:] != size:
            self.corners = self._corners_of(places, size)

    def _corners_of(self, at: Tensor, size: tuple[int, int]) -> list[tuple[Tensor, Tensor]]:
        """Return four pairs of (S,) positions in the maps and (S,) shares, which add up to 1."""
        height, width = self.maps.shape[1:]
        rows = _neighbours(at // size[1], size[0], height)
        columns = _neighbours(at % size[1], size[1], width)
        return [
            (row * width + column, (high * wide).to(self.maps.dtype))
            for row, high in rows
            for column, wide in columns
        ]

    def values(self) -> Tensor:
        """Return (C, S), the values at the pixels."""
        flat = self.maps.flatten(1)  # (C, h w)
        if self.corners is None:
            return flat.index_select(1, self.places)
        first, *rest = self.corners
        value = flat.index_select(1, first[0]).mul_(first[1])
        for at, share in rest:
            value.addcmul_(flat.index_select(1, at), share)
        return value

    def add_gradient(self, values: Tensor, whole: Tensor) -> None:
        """Add what the (C, S) gradients of the values give to the gradient of the maps.

        Args:
            values: (C, S) gradients.
            whole: (C, h, w), changed in place. Pixels with their C values side by side in memory
                are faster where the maps are smaller than the image.
        """
        if self.corners is None:
            flat = whole.view(len(whole), -1)
            flat.index_copy_(1, self.places, flat.index_select(1, self.places).add_(values))
            return
        pixels = whole.permute(1, 2, 0).view(-1, len(whole))  # (h w, C)
        for at, share in self.corners:
            pixels.index_add_(0, at, (values * share).T)


def empty_gradient(maps: Tensor, resized: bool) -> Tensor:
    """Return zeros of the shape of maps (B, C, h, w), in the order that `add_gradient` wants."""
    order = torch.channels_last if resized else torch.contiguous_format
    return torch.zeros_like(maps, memory_format=order)


def _neighbours(at: Tensor, size: int, small: int) -> list[tuple[Tensor, Tensor]]:
    """Return the two rows or columns of a map beside a place, each with its share."""
    # as in F.interpolate: (y + 1/2) h / H - 1/2, at least 0
    places = ((at.double() + 0.5) * (small / size) - 0.5).clamp(min=0)
    low = places.floor().clamp(max=small - 1)
    share = places - low
    first = low.long()
    return [(first, 1 - share), ((first + 1).clamp(max=small - 1), share)]
