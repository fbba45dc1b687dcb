"""What the methods stand on: LightningModule bases, optimization, checkpoints."""

from lightning_seg.training.gradients import frozen
from lightning_seg.training.method import MethodModule
from lightning_seg.training.optimization import PolyLR
from lightning_seg.training.pretraining import PretrainingModule
from lightning_seg.training.segmentation import SegmentationModule
from lightning_seg.training.sharding import ShardedStrategy
from lightning_seg.training.two_players import TwoPlayerModule

__all__ = [
    "MethodModule",
    "PolyLR",
    "PretrainingModule",
    "SegmentationModule",
    "ShardedStrategy",
    "TwoPlayerModule",
    "frozen",
]
