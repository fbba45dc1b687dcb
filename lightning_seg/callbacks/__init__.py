"""What watches training: tables, files of predictions, the saved configuration."""

from lightning_seg.callbacks.complementary_sampling import ComplementarySampling
from lightning_seg.callbacks.iou_table import IoUTable
from lightning_seg.callbacks.prediction_writer import PredictionWriter
from lightning_seg.callbacks.save_config import LoggedConfig

__all__ = ["ComplementarySampling", "IoUTable", "LoggedConfig", "PredictionWriter"]
