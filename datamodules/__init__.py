"""Files on disk become batches: one LightningDataModule per kind of dataset."""

from datamodules.base import SegmentationDataModule
from datamodules.camvid import CamVidDataModule
from datamodules.errors import DataError
from datamodules.folder import FolderDataModule
from datamodules.synthetic_scenes import SyntheticScenesDataModule

__all__ = [
    "CamVidDataModule",
    "DataError",
    "FolderDataModule",
    "SegmentationDataModule",
    "SyntheticScenesDataModule",
]
