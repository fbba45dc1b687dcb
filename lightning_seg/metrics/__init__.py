"""Metrics of segmentation, all `torchmetrics.Metric`."""

from lightning_seg.metrics.segmentation import SegmentationMetrics

__all__ = ["SegmentationMetrics"]
