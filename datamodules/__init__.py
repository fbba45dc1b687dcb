"""Files on disk become batches: one LightningDataModule per kind of dataset."""

from datamodules.ade20k import ADE20KDataModule
from datamodules.augmenting.patches import PatchMixer
from datamodules.base import SegmentationDataModule
from datamodules.camvid import CamVidDataModule
from datamodules.cityscapes import CityscapesDataModule
from datamodules.coco_stuff import COCOStuffDataModule
from datamodules.errors import DataError
from datamodules.folder import FolderDataModule
from datamodules.images import ImageDataModule
from datamodules.loading.shards import UnlabeledShards
from datamodules.scan import scan
from datamodules.synthetic_scenes import SyntheticScenesDataModule
from datamodules.unlabeled import UnlabeledDataModule
from datamodules.voc import VOCDataModule
from datamodules.weizmann_horse import WeizmannHorseDataModule

__all__ = [
    "ADE20KDataModule",
    "COCOStuffDataModule",
    "CamVidDataModule",
    "CityscapesDataModule",
    "DataError",
    "FolderDataModule",
    "ImageDataModule",
    "PatchMixer",
    "SegmentationDataModule",
    "SyntheticScenesDataModule",
    "UnlabeledDataModule",
    "UnlabeledShards",
    "VOCDataModule",
    "WeizmannHorseDataModule",
    "scan",
]
