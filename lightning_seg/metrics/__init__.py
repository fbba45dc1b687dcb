"""Metrics of segmentation, all subclasses of `torchmetrics.Metric`."""

from lightning_seg.metrics.boundary_f import BoundaryFScore
from lightning_seg.metrics.boundary_iou import BoundaryIoU
from lightning_seg.metrics.calibration import CalibrationError
from lightning_seg.metrics.segmentation import SegmentationMetrics
from lightning_seg.metrics.trimap_iou import TrimapIoU
from lightning_seg.metrics.weighted_mean import WeightedMean

__all__ = [
    "BoundaryFScore",
    "BoundaryIoU",
    "CalibrationError",
    "SegmentationMetrics",
    "TrimapIoU",
    "WeightedMean",
]
