"""CamVid, the 11-class SegNet split (Brostow, Fauqueur, Cipolla 2009; arXiv 1511.00561)."""

from __future__ import annotations

from typing import Any

from datamodules.folder import FolderDataModule

PALETTE = {
    "sky": [128, 128, 128],
    "building": [128, 0, 0],
    "pole": [192, 192, 128],
    "road": [128, 64, 128],
    "pavement": [60, 40, 222],
    "tree": [128, 128, 0],
    "sign_symbol": [192, 128, 128],
    "fence": [64, 64, 128],
    "car": [64, 0, 128],
    "pedestrian": [64, 64, 0],
    "bicyclist": [0, 128, 192],
}


class CamVidDataModule(FolderDataModule):
    """367 training, 101 validation and 233 test frames of 480x360 pixels.

    Masks store 0..10, and 11 for void.

    Args:
        root: The folder with `train`, `val` and `test`, each holding `images` and `masks`.
        loader_options: Passed to `FolderDataModule`; the classes are fixed.
    """

    default_crop_size = (352, 352)
    default_scale = (0.6, 1.5)

    def __init__(self, root: str, **loader_options: Any) -> None:
        super().__init__(root, class_names=list(PALETTE), void=[11], **loader_options)

    @property
    def palette(self) -> list[list[int]]:
        """SegNet's colours."""
        return list(PALETTE.values())
