"""Some pixels of maps, also of maps that are smaller than the image and upsampled bilinearly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class PickedPixels:
    """Values of maps at chosen pixels of each image, and the adjoint of choosing.

    Args:
        maps: (B, C, h, w), float32 or wider. Where (h, w) is smaller than `size`, values are those
            of bilinear upsampling with `align_corners=False`.
        size: (H, W) of the images.
        places: For each of B images, (S_b,) rising positions of pixels in its H W pixels.
    """

    def __init__(self, maps: Tensor, size: tuple[int, int], places: Sequence[Tensor]) -> None:
        self.maps = maps.detach()
        self.places = places
        self.resized = maps.shape[2:] != size
        if self.resized:
            self._corners = [self._corners_of(at, size) for at in places]

    def _corners_of(self, at: Tensor, size: tuple[int, int]) -> list[tuple[Tensor, Tensor]]:
        """Return four pairs of (S,) positions in the maps and (S,) shares, which add up to 1."""
        height, width = self.maps.shape[2:]
        rows = _neighbours(at // size[1], size[0], height)
        columns = _neighbours(at % size[1], size[1], width)
        return [
            (row * width + column, (high * wide).to(self.maps.dtype))
            for row, high in rows
            for column, wide in columns
        ]

    def values(self) -> Tensor:
        """Return (C, S), the values at the pixels of all images, one image after the other."""
        flat = self.maps.flatten(2)  # (B, C, h w)
        if not self.resized:
            pairs = zip(flat, self.places, strict=True)
            return torch.cat([image.index_select(1, at) for image, at in pairs], 1)
        found = []
        for image, corners in zip(flat, self._corners, strict=True):
            first, *rest = corners
            value = image.index_select(1, first[0]).mul_(first[1])
            for at, share in rest:
                value.addcmul_(image.index_select(1, at), share)
            found.append(value)
        return torch.cat(found, 1)

    def gradient(self, values: Tensor) -> Tensor:
        """Return (B, C, h, w), the gradient of the maps for (C, S) gradients of the values."""
        images, classes = self.maps.shape[:2]
        parts = torch.split(values, [len(at) for at in self.places], 1)
        if not self.resized:
            whole = values.new_zeros(images, classes, self.maps[0, 0].numel())
            for image, at, part in zip(whole, self.places, parts, strict=True):
                image.index_copy_(1, at, part)
            return whole.view(self.maps.shape)
        # (B, h w, C), because rows of C values are added faster than columns
        turned = values.new_zeros(images, self.maps[0, 0].numel(), classes)
        for image, corners, part in zip(turned, self._corners, parts, strict=True):
            for at, share in corners:
                image.index_add_(0, at, (part * share).T)
        return turned.movedim(1, 2).reshape(self.maps.shape)


def _neighbours(at: Tensor, size: int, small: int) -> list[tuple[Tensor, Tensor]]:
    """Return the two rows or columns of a map beside a place, each with its share."""
    # as in F.interpolate: (y + 1/2) h / H - 1/2, at least 0
    places = ((at.double() + 0.5) * (small / size) - 0.5).clamp(min=0)
    low = places.floor().clamp(max=small - 1)
    share = places - low
    first = low.long()
    return [(first, 1 - share), ((first + 1).clamp(max=small - 1), share)]
