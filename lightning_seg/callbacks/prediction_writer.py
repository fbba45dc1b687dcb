"""Predictions are written to files batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from numpy.typing import NDArray
from PIL import Image

from lightning_seg.errors import SetupError, require_range
from lightning_seg.files import write_whole
from lightning_seg.pictures import color_table, overlay


class PredictionWriter(BasePredictionWriter):
    """Writes predictions as `masks/<id>.png` and `overlays/<id>.jpg`.

    A mask is a palette PNG of the image's own size: its stored values are class ids, and any viewer
    shows them in the colours of the classes. Each file appears whole or not at all.

    Args:
        output_dir: The folder of `masks` and `overlays`; None takes `predictions` in the Trainer's
            `default_root_dir`.
        overlays: Whether the colour overlays are written.
        opacity: Share of the class colour in an overlay, in [0, 1].

    Attributes:
        written: Number of predictions that this process has written.

    Raises:
        SetupError: `opacity` is out of range, or an image's id leads out of the folder.
    """

    def __init__(
        self, output_dir: str | None = None, overlays: bool = True, opacity: float = 0.5
    ) -> None:
        super().__init__(write_interval="batch")
        require_range(0, 1, opacity=opacity)
        self.output_dir = output_dir
        self.overlays = overlays
        self.opacity = opacity
        self.written = 0

    def folder(self, trainer: Trainer) -> Path:
        """Return the folder of `masks` and `overlays`."""
        return Path(self.output_dir or Path(trainer.default_root_dir) / "predictions")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to count, and take the colours of the module's classes."""
        self.written = 0
        self._colors = color_table(pl_module.num_classes, pl_module.palette)  # type: ignore[arg-type]

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write the masks and overlays of one batch."""
        root = self.folder(trainer)
        labels = prediction["labels"].cpu().numpy()
        images = batch["image"].permute(0, 2, 3, 1).cpu().numpy()
        for name, mask, image in zip(prediction["id"], labels, images, strict=True):
            index = Image.fromarray(mask)
            index.putpalette(self._colors.tobytes())
            _save(index, root / "masks" / f"{name}.png")
            if self.overlays:
                _save(self._overlay(image, mask), root / "overlays" / f"{name}.jpg", quality=92)
            self.written += 1

    def _overlay(self, image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> Image.Image:
        return Image.fromarray(overlay(image, mask, self._colors, self.opacity))


def _save(picture: Image.Image, path: Path, **options: Any) -> None:
    if ".." in path.parts:
        raise SetupError(f"an image's id leads out of the output folder: {path}")
    kind = {".png": "PNG", ".jpg": "JPEG"}[path.suffix]
    with write_whole(path) as part:
        picture.save(part, format=kind, **options)
