"""How a network sees an image: whole or in windows, with test-time augmentation, in any memory."""

from lightning_seg.inference.augmented import augmented_probabilities
from lightning_seg.inference.predictor import Predictor
from lightning_seg.inference.strips import Strip, strips
from lightning_seg.inference.windows import Grid, starts

__all__ = ["Grid", "Predictor", "Strip", "augmented_probabilities", "starts", "strips"]
