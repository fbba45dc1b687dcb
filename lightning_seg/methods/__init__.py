"""One LightningModule per training method."""

from lightning_seg.methods.base import SegmentationModule
from lightning_seg.methods.cross_entropy import CrossEntropyModule

__all__ = ["CrossEntropyModule", "SegmentationModule"]
