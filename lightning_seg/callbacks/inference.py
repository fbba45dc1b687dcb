"""One set of options says how `validate`, `test` and `predict` see images."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm import tqdm

from lightning_seg.errors import SetupError, require_range
from lightning_seg.inference import Predictor
from lightning_seg.inference.windows import Blend, Block
from lightning_seg.training import SegmentationModule, ShardedStrategy


class Inference(Callback):
    """Sets how the network sees the images of `validate`, `test` and `predict`.

    The same options give the same class ids in all of them, so the scores of `test` are those of
    the files that `predict` writes. Probabilities are averaged over the windows that cover a pixel
    and over the copies of test-time augmentation.

    Args:
        window: Side of the square windows in pixels, or height and width, at least the stride of
            the network. A window that is larger than an image is the image. None shows the network
            whole images.
        overlap: Smallest share of a window that its neighbour covers, in [0, 1).
        blend: `gaussian` gives pixels near the middle of a window more weight; `flat` weighs all
            windows of a pixel equally.
        batch_size: Windows of an image that the network sees at once, at least 1.
        flip: Whether the network also sees a copy that is mirrored from left to right.
        scales: Factors of the sides of the copies that the network sees, above 0; 1 is the image
            itself. With windows, it is each window that is scaled.
        during_fit: Whether these options hold for the validations of `fit`, too, which see whole
            images otherwise, because windows and copies take longer.
        stream_above: Pixels of an image above which `predict`, where `window` is set, reads the
            image and writes its mask in strips of rows, at least 1. The class ids are the same.
            Default chosen here: below, an image takes 50 MB.

    Raises:
        SetupError: A value is out of its range, or does not fit the network or the strategy.
    """

    def __init__(
        self,
        window: int | tuple[int, int] | None = None,
        overlap: float = 0.25,
        blend: Blend = "gaussian",
        batch_size: int = 4,
        flip: bool = False,
        scales: list[float] | None = None,
        during_fit: bool = False,
        stream_above: int = 16_000_000,
    ) -> None:
        require_range(1, math.inf, stream_above=stream_above)
        self.predictor = Predictor(
            window, overlap, blend, batch_size, flip, [1.0] if scales is None else scales
        )
        self.during_fit = during_fit
        self.stream_above = stream_above

    def prepare(self, data: Any) -> None:
        """Let a data module give large images to `predict` as files, where `window` is set."""
        if hasattr(data, "rows_above"):
            data.rows_above = self.stream_above if self.predictor.window else None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the module see images as the options say.

        Raises:
            SetupError: The options do not fit the module, its network or the strategy.
        """
        self.prepare(trainer.datamodule)  # type: ignore[attr-defined]
        if self.predictor.plain or (stage == "fit" and not self.during_fit):
            if isinstance(pl_module, SegmentationModule):
                pl_module.predictor = Predictor()
            return
        option = "window" if self.predictor.window else "flip" if self.predictor.flip else "scales"
        if not isinstance(pl_module, SegmentationModule):
            raise SetupError(
                f"{type(pl_module).__name__} predicts no class of each pixel: windows and copies "
                "of images are for methods that do",
                option=option,
            )
        if self.predictor.window and isinstance(trainer.strategy, ShardedStrategy):
            raise SetupError(
                "windows need the whole network in each process, because images of different "
                "sizes have different numbers of windows",
                option=("window null", "trainer.strategy"),
            )
        self.predictor.require_window_for(pl_module.network)
        self.predictor.progress = self._shown if trainer.progress_bar_callback else _quiet
        pl_module.predictor = self.predictor

    def _shown(self, blocks: Iterable[Block], total: int) -> Iterable[Block]:
        """Show a line for an image of many windows."""
        if total < _MANY:
            return blocks
        shown: Iterable[Block] = tqdm(
            blocks, "windows", total, leave=False, unit="window", disable=None
        )
        return shown


_MANY = 50  # windows of an image that take long enough to be shown


def _quiet(blocks: Iterable[Block], total: int) -> Iterable[Block]:
    return blocks
