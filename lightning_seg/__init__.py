"""Training methods for semantic segmentation that go beyond per-pixel cross-entropy."""

from lightning_seg.errors import SetupError
from lightning_seg.methods import CrossEntropyModule, SegmentationModule

__all__ = ["CrossEntropyModule", "SegmentationModule", "SetupError", "__version__"]

__version__ = "0.1.0"
