"""Metrics of segmentation, all subclasses of `torchmetrics.Metric`."""

from lightning_seg.metrics.segmentation import SegmentationMetrics
from lightning_seg.metrics.weighted_mean import WeightedMean

__all__ = ["SegmentationMetrics", "WeightedMean"]
