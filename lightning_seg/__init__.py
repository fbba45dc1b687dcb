"""Training methods for semantic segmentation that go beyond per-pixel cross-entropy."""

from lightning_seg.errors import NonFiniteLossError, SetupError
from lightning_seg.methods import CPGModule, CrossEntropyModule, LMPModule, SegmentationModule

__all__ = [
    "CPGModule",
    "CrossEntropyModule",
    "LMPModule",
    "NonFiniteLossError",
    "SegmentationModule",
    "SetupError",
    "__version__",
]

__version__ = "0.1.0"
