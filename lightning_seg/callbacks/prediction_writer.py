"""Predictions become files as they are made."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray
from PIL import Image

from lightning_seg.errors import SetupError
from lightning_seg.pictures import color_table, overlay


class PredictionWriter(BasePredictionWriter):
    """Writes `masks/<id>.png`, class ids at the image's size, and `overlays/<id>.jpg`.

    The masks are palette PNGs: any viewer shows them in the classes' colours, and the stored
    values are the class ids. Each file appears complete or not at all.

    Args:
        output_dir: Folder for both; None is `predictions` in the trainer's `default_root_dir`.
        overlays: Write the colour overlays.
        opacity: Share of the colour in an overlay, in [0, 1].
    """

    def __init__(
        self, output_dir: str | None = None, overlays: bool = True, opacity: float = 0.5
    ) -> None:
        super().__init__(write_interval="batch")
        if not 0 <= opacity <= 1:
            raise SetupError(f"--predictions.opacity must lie in [0, 1], not {opacity}")
        self.output_dir = output_dir
        self.overlays = overlays
        self.opacity = opacity
        self._written = 0

    def folder(self, trainer: Trainer) -> Path:
        """Return the folder that files go to."""
        return Path(self.output_dir or Path(trainer.default_root_dir) / "predictions")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count, with the module's colours; warn of a network that never learnt."""
        if not trainer.ckpt_path:
            rank_zero_warn("predicting without a checkpoint (option: --ckpt_path)")
        self._written = 0
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
        """Write the pictures of one batch."""
        root = self.folder(trainer)
        labels = prediction["labels"].cpu().numpy()
        images = batch["image"].permute(0, 2, 3, 1).cpu().numpy()
        for name, mask, image in zip(prediction["id"], labels, images, strict=True):
            index = Image.fromarray(mask)
            index.putpalette(self._colors.tobytes())
            _save(index, root / "masks" / f"{name}.png")
            if self.overlays:
                _save(self._overlay(image, mask), root / "overlays" / f"{name}.jpg", quality=92)
            self._written += 1

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where the files are."""
        parts = "masks/ and overlays/" if self.overlays else "masks/"
        whose = " by each process" if trainer.world_size > 1 else ""
        rank_zero_info(
            f"{self._written} predictions written{whose}: {self.folder(trainer)}/{parts}"
        )

    def _overlay(self, image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> Image.Image:
        return Image.fromarray(overlay(image, mask, self._colors, self.opacity))


def _save(picture: Image.Image, path: Path, **options: Any) -> None:
    if ".." in path.parts:
        raise SetupError(f"an image's id leads out of the output folder: {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        picture.save(part, format={".png": "PNG", ".jpg": "JPEG"}[path.suffix], **options)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
