"""A trained network without the training: a plain module, and files for other programs."""

from lightning_seg.deployment.exporting import Exported, export_network
from lightning_seg.deployment.segmenter import Segmenter, load, load_module

__all__ = ["Exported", "Segmenter", "export_network", "load", "load_module"]
