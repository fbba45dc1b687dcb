"""One LightningModule per training method."""

from lightning_seg.methods.asml import ASMLModule
from lightning_seg.methods.colorization import ColorizationModule
from lightning_seg.methods.cpg import CPGModule
from lightning_seg.methods.cross_entropy import CrossEntropyModule
from lightning_seg.methods.jigsaw import JigsawModule
from lightning_seg.methods.lmp import LMPModule
from lightning_seg.methods.mix_match import MixMatchModule
from lightning_seg.methods.semi_adv import SemiAdvModule

__all__ = [
    "ASMLModule",
    "CPGModule",
    "ColorizationModule",
    "CrossEntropyModule",
    "JigsawModule",
    "LMPModule",
    "MixMatchModule",
    "SemiAdvModule",
]
