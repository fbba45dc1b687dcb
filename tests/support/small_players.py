"""Opponents that are small enough for many steps; configurations name them."""

from __future__ import annotations

from lightning_seg.networks import FCDiscriminator, StructureAnalyzer


def analyzer(channels: int) -> StructureAnalyzer:
    """Return the smallest analyzer."""
    return StructureAnalyzer(channels, widths=(4, 8, 8))


def discriminator(channels: int) -> FCDiscriminator:
    """Return the smallest discriminator."""
    return FCDiscriminator(channels, width=4)
