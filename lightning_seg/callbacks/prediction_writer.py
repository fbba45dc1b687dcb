"""Predictions are written to files batch by batch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from numpy.typing import NDArray
from PIL import Image

from lightning_seg.errors import SetupError, require_range
from lightning_seg.files import write_whole
from lightning_seg.pictures import color_table, overlay
from lightning_seg.processes import world_size
from lightning_seg.views import rgb_array


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
        failed: (id, error) of every image that could not be read; of all processes at the end.

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
        self.failed: list[tuple[str, str]] = []

    def folder(self, trainer: Trainer) -> Path:
        """Return the folder of `masks` and `overlays`."""
        return Path(self.output_dir or Path(trainer.default_root_dir) / "predictions")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to count, and take the colours of the module's classes."""
        self.written, self.failed = 0, []
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
        """Write the masks and overlays of one batch, and note the images that could not be read."""
        self.failed += batch.get("failed", [])
        unread = {name for name, _ in self.failed}
        root = self.folder(trainer)
        labels = prediction["labels"].cpu().numpy()
        for name, mask, image in zip(prediction["id"], labels, batch["image"], strict=True):
            if name in unread:
                continue
            index = Image.fromarray(mask)
            index.putpalette(self._colors.tobytes())
            _save(index, root / "masks" / f"{name}.png")
            if self.overlays:
                shown = rgb_array(pl_module.picture(image))  # type: ignore[operator]
                _save(self._overlay(shown, mask), root / "overlays" / f"{name}.jpg", quality=92)
            self.written += 1

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collect the failures of all processes."""
        if world_size() > 1:
            gathered: list[Any] = [None] * world_size()
            torch.distributed.all_gather_object(gathered, self.failed)
            self.failed = list(dict.fromkeys(pair for each in gathered for pair in each))

    def _overlay(self, image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> Image.Image:
        return Image.fromarray(overlay(image, mask, self._colors, self.opacity))


_LONGEST = 255  # bytes of a file's name


def _save(picture: Image.Image, path: Path, **options: Any) -> None:
    if ".." in path.parts:
        raise SetupError(f"an image's id leads out of the output folder: {path}")
    kind = {".png": "PNG", ".jpg": "JPEG"}[path.suffix]
    if len(os.fsencode(path.name)) > _LONGEST:
        digest = sha256(path.stem.encode()).hexdigest()[:8]
        kept = path.stem.encode()[: _LONGEST - 16].decode(errors="ignore")
        path = path.with_name(f"{kept}-{digest}{path.suffix}")
    with write_whole(path) as part:
        picture.save(part, format=kind, **options)
