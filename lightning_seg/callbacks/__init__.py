"""Lightning callbacks: tables, pictures, speed, files, running means of weights, searches."""

from lightning_seg.callbacks.auto_labels import AutoLabels
from lightning_seg.callbacks.complementary_sampling import ComplementarySampling
from lightning_seg.callbacks.inference import Inference
from lightning_seg.callbacks.iou_table import IoUTable
from lightning_seg.callbacks.last_checkpoint import LastCheckpoint
from lightning_seg.callbacks.network_ema import NetworkEMA
from lightning_seg.callbacks.prediction_writer import PredictionWriter
from lightning_seg.callbacks.run_monitor import RunMonitor
from lightning_seg.callbacks.save_config import LoggedConfig
from lightning_seg.callbacks.save_encoder import SaveEncoder
from lightning_seg.callbacks.score_files import ScoreFiles
from lightning_seg.callbacks.searches import BatchSizeSearch, LearningRateSearch
from lightning_seg.callbacks.stop_on_signal import StopOnSignal
from lightning_seg.callbacks.validation_pictures import ValidationPictures

ON_EVERY_RUN = {
    "inference": Inference,
    "predictions": PredictionWriter,
    "autolabel": AutoLabels,
    "iou_table": IoUTable,
    "scores": ScoreFiles,
    "encoder_file": SaveEncoder,
    "pictures": ValidationPictures,
    "monitor": RunMonitor,
    "stop_on_signal": StopOnSignal,
    "last_checkpoint": LastCheckpoint,
}
"""The callbacks that the command attaches, by the key of their options."""

__all__ = [
    "ON_EVERY_RUN",
    "AutoLabels",
    "BatchSizeSearch",
    "ComplementarySampling",
    "Inference",
    "IoUTable",
    "LastCheckpoint",
    "LearningRateSearch",
    "LoggedConfig",
    "NetworkEMA",
    "PredictionWriter",
    "RunMonitor",
    "SaveEncoder",
    "ScoreFiles",
    "StopOnSignal",
    "ValidationPictures",
]
