"""Training methods for semantic segmentation that go beyond per-pixel cross-entropy."""

from lightning_seg.deployment.segmenter import Segmenter, load
from lightning_seg.errors import NonFiniteLossError, SetupError
from lightning_seg.methods import (
    ASMLModule,
    ColorizationModule,
    CPGModule,
    CrossEntropyModule,
    JigsawModule,
    LMPModule,
    MixMatchModule,
    SemiAdvModule,
)
from lightning_seg.training import (
    MethodModule,
    PolyLR,
    PretrainingModule,
    SegmentationModule,
    ShardedStrategy,
    TwoPlayerModule,
)
from lightning_seg.version import __version__

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
    "PolyLR",
    "PretrainingModule",
    "SegmentationModule",
    "Segmenter",
    "SemiAdvModule",
    "SetupError",
    "ShardedStrategy",
    "TwoPlayerModule",
    "__version__",
    "load",
]
