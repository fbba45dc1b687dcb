"""Predictions are written to files batch by batch, those of large images in strips of rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from numpy.typing import NDArray
from PIL import Image

from lightning_seg.callbacks.file_threads import FileThreads
from lightning_seg.callbacks.mask_files import (
    Georeference,
    GeoTIFFMask,
    georeference,
    write_palette_png,
)
from lightning_seg.callbacks.prediction_files import (
    is_written,
    place,
    remove_parts,
    require_writable,
    write_strips,
)
from lightning_seg.callbacks.video_file import OverlayVideos
from lightning_seg.errors import SetupError, UserError, require_range
from lightning_seg.files import write_whole
from lightning_seg.pictures import color_table, overlay
from lightning_seg.processes import world_size
from lightning_seg.views import rgb_array


class PredictionWriter(BasePredictionWriter):
    """Writes predictions as `masks/<id>.png` and `overlays/<id>.jpg`.

    A mask is a palette PNG of the image's own size: its stored values are class ids, and any viewer
    shows them in the colours of the classes. The mask of a TIFF file with a georeference is a tiled
    `masks/<id>.tif` with the same georeference, where the package rasterio (extra `geo`) is
    installed. Each file appears whole or not at all. The overlay of an image that is read in strips
    of rows shows every n-th pixel, so that it has at most 4 million. The overlays of a video are
    `overlays/<name>.mp4`, and the masks of its frames `masks/<name>/<frame>.png`.

    Args:
        output_dir: The folder of `masks` and `overlays`; None takes `predictions` in the Trainer's
            `default_root_dir`.
        overlays: Whether the colour overlays are written.
        opacity: Share of the class colour in an overlay, in [0, 1].
        probabilities: Whether `probabilities/<id>.npy` holds the (classes, height, width) float16
            probabilities of an image, too.
        resume: Whether images whose files are all there are left out. What a killed run left half
            written is removed, so no other run may write to the folder at the same time.
        frame_masks: Whether masks of the frames of a video are written beside the overlays.

    Attributes:
        written: Number of predictions that this process has written.
        kept: Number of images that `resume` has left out.
        failed: (id, error) of every image that could not be read; of all processes at the end.

    Raises:
        SetupError: `opacity` is out of range, an image's id leads out of the folder, or the folder
            cannot be written to.
    """

    def __init__(
        self,
        output_dir: str | None = None,
        overlays: bool = True,
        opacity: float = 0.5,
        probabilities: bool = False,
        resume: bool = False,
        frame_masks: bool = True,
    ) -> None:
        super().__init__(write_interval="batch")
        require_range(0, 1, opacity=opacity)
        self.output_dir = output_dir
        self.overlays = overlays
        self.opacity = opacity
        self.probabilities = probabilities
        self.resume = resume
        self.frame_masks = frame_masks
        self._videos = OverlayVideos(Path(), {})
        self.written = self.kept = 0
        self.failed: list[tuple[str, str]] = []
        self._files = FileThreads()

    def folder(self, trainer: Trainer) -> Path:
        """Return the folder of `masks` and `overlays`."""
        return Path(self.output_dir or Path(trainer.default_root_dir) / "predictions")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ask the module for what is to be written, and leave out what is there.

        Raises:
            SetupError: The folder cannot be written to.
        """
        if stage != "predict":
            return
        root = self.folder(trainer)
        require_writable(root)
        data = trainer.datamodule  # type: ignore[attr-defined]
        self._videos = OverlayVideos(root, getattr(data, "videos", {}))
        if self._videos.videos and trainer.world_size > 1:
            raise SetupError(
                "the frames of a video are predicted in order, by one process, not by "
                f"{trainer.world_size}",
                option="trainer.devices 1",
            )
        pl_module.keeps_probabilities = self.probabilities  # type: ignore[assignment]
        self.kept = 0
        if self.resume:
            if trainer.is_global_zero:
                remove_parts(root)
            if not hasattr(data, "leave_out"):
                raise SetupError("resume needs a data module of this package", option="resume")
            self.kept = data.leave_out(partial(self._is_written, root))

    def _is_written(self, root: Path, name: str) -> bool:
        video = self._videos.video_of(name)
        if video is not None and self.overlays:  # it appears after its last frame
            return self._videos.path(video).is_file()
        return is_written(root, self.overlays, self.probabilities, name)

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
        if "strips" in prediction:
            self._write_strips(pl_module, prediction, batch, root)
            return
        labels = prediction["labels"].cpu().numpy()
        paths = batch.get("path", [None] * len(labels))
        for number, name in enumerate(prediction["id"]):
            if name in unread:
                continue
            mask = labels[number]
            if self.probabilities:
                values = prediction["probabilities"][number].cpu().numpy()
                with write_whole(place(root, "probabilities", name)) as part:
                    np.save(part, values)
            video = self._videos.video_of(name)
            if video is None or self.frame_masks:
                path = place(root, "masks", name)
                where = georeference(paths[number])
                self._files.submit(self._write_mask, path, mask, where)
            if self.overlays:
                image = rgb_array(pl_module.picture(batch["image"][number]))  # type: ignore[operator]
                if video is None:
                    path = place(root, "overlays", name)
                    self._files.submit(self._write_overlay, path, image, mask)
                else:
                    self._videos.add(video, np.asarray(self._overlay(image, mask)))
            self.written += 1

    def _write_mask(self, path: Path, mask: NDArray[np.uint8], where: Georeference | None) -> None:
        if where is not None:
            with write_whole(path.with_suffix(".tif")) as part:
                file = GeoTIFFMask(part, mask.shape, self._colors, where)
                file.add(mask)
                file.close()
            return
        write_palette_png(path, mask, self._colors)

    def _write_overlay(self, path: Path, image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> None:
        _save(self._overlay(image, mask), path)

    def _write_strips(
        self, module: LightningModule, prediction: Any, batch: Any, root: Path
    ) -> None:
        """Write the prediction of an image that is read while it is predicted."""
        (name,), (path,), file = prediction["id"], batch["path"], batch["file"]
        try:
            with write_strips(root, name, prediction["strips"], file, path, self._colors) as small:
                if self.overlays:
                    image = torch.from_numpy(file.small).permute(2, 0, 1)  # (h, w, C) -> (C, h, w)
                    shown = self._overlay(rgb_array(module.picture(image)), small)  # type: ignore[operator]
                    _save(shown, place(root, "overlays", name))
            self.written += 1
        except UserError as error:
            if error.scope != "data":
                raise
            self.failed.append((name, str(error)))
        finally:
            file.close()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Complete the last video, and collect the failures of all processes."""
        self._files.finish()
        self._videos.close()
        if world_size() > 1:
            gathered: list[Any] = [None] * world_size()
            torch.distributed.all_gather_object(gathered, self.failed)
            self.failed = list(dict.fromkeys(pair for each in gathered for pair in each))

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Finish the files that were begun, and remove a video that is not complete."""
        self._files.stop()
        self._videos.discard()

    def _overlay(self, image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> Image.Image:
        return Image.fromarray(overlay(image, mask, self._colors, self.opacity))


def _save(picture: Image.Image, path: Path) -> None:
    with write_whole(path) as part:
        picture.save(part, format="JPEG", quality=92)
