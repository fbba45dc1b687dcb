"""One LightningModule per training method."""

from lightning_seg.methods.base import SegmentationModule
from lightning_seg.methods.cpg import CPGModule
from lightning_seg.methods.cross_entropy import CrossEntropyModule
from lightning_seg.methods.lmp import LMPModule

__all__ = ["CPGModule", "CrossEntropyModule", "LMPModule", "SegmentationModule"]
