"""Training methods for semantic segmentation that go beyond per-pixel cross-entropy."""

from lightning_seg.errors import NonFiniteLossError, SetupError
from lightning_seg.methods import (
    ASMLModule,
    ColorizationModule,
    CPGModule,
    CrossEntropyModule,
    JigsawModule,
    LMPModule,
    MethodModule,
    MixMatchModule,
    PretrainingModule,
    SegmentationModule,
    SemiAdvModule,
    TwoPlayerModule,
)

__all__ = [
    "ASMLModule",
    "CPGModule",
    "ColorizationModule",
    "CrossEntropyModule",
    "JigsawModule",
    "LMPModule",
    "MethodModule",
    "MixMatchModule",
    "NonFiniteLossError",
    "PretrainingModule",
    "SegmentationModule",
    "SemiAdvModule",
    "SetupError",
    "TwoPlayerModule",
    "__version__",
]

__version__ = "0.1.0"
