"""Losses as pure functions, each with an `nn.Module` that carries its constants."""

from lightning_seg.losses.cross_entropy import CrossEntropy, cross_entropy

__all__ = ["CrossEntropy", "cross_entropy"]
