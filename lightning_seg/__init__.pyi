from . import callbacks, deployment, inference, losses, methods, metrics, networks, training
from .deployment.segmenter import Segmenter, load
from .errors import NonFiniteLossError, SetupError
from .methods import (
    ASMLModule,
    ColorizationModule,
    CPGModule,
    CrossEntropyModule,
    JigsawModule,
    LMPModule,
    MixMatchModule,
    SemiAdvModule,
)
from .training import (
    MethodModule,
    PolyLR,
    PretrainingModule,
    SegmentationModule,
    ShardedStrategy,
    TwoPlayerModule,
)
from .version import __version__

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
    "callbacks",
    "deployment",
    "inference",
    "load",
    "losses",
    "methods",
    "metrics",
    "networks",
    "training",
]
