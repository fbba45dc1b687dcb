"""Feature maps read at locations, one number at a time."""

from __future__ import annotations

import math

import torch


def by_hand(maps, size, locations):
    """Return (B, K, sum of channels) float64, read bilinearly from (B, C_i, H_i, W_i) maps."""
    found = []
    for image, spots in enumerate(locations.tolist()):
        for row, column in spots:
            for each in maps:
                channels, rows, columns = each.shape[1:]
                y = min(max(row / (size[0] / rows), 0), rows - 1)
                x = min(max(column / (size[1] / columns), 0), columns - 1)
                top, left = math.floor(y), math.floor(x)
                low, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
                v, u = y - top, x - left
                for channel in range(channels):
                    value = each[image, channel].tolist()
                    found.append(
                        (1 - v) * ((1 - u) * value[top][left] + u * value[top][right])
                        + v * ((1 - u) * value[low][left] + u * value[low][right])
                    )
    return torch.tensor(found, dtype=torch.float64).view(*locations.shape[:2], -1)
