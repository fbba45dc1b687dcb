"""The scores of `test` and `validate` are written to files, with those of every image."""

from __future__ import annotations

import datetime
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray

import lightning_seg
from lightning_seg.callbacks.gallery import Gallery, write_pictures
from lightning_seg.errors import require_range
from lightning_seg.pictures import color_table
from lightning_seg.processes import world_size
from lightning_seg.provenance import commit
from lightning_seg.run_folder import CONFIG, folder_of_checkpoint, run_folder
from lightning_seg.scores import PICTURES, Scores, iou_of
from lightning_seg.training import SegmentationModule
from lightning_seg.training.evaluation import image_counts, regions


class ScoreFiles(Callback):
    """Writes the scores of `test` and `validate` for `report` and `compare`, and for people.

    The files are in the folder `test` or `validate` of the run that wrote the checkpoint, and of
    the run itself where that is not known: `metrics.json` (all scores, the confusion matrix, the
    calibration, and how to repeat the evaluation), `metrics.csv` (a row for every class),
    `images.csv` (a row for every image), `counts.npz` (pixel counts of every image and class) and
    small `pictures`. The files of an earlier evaluation are replaced.

    Args:
        output_dir: The folder for the files; None takes the folder of the run.
        pictures: Number of images, at least 0, spread evenly over the split, of which a small copy
            with its labels and its prediction is kept. The 12 best and the 12 worst images are
            kept, too, unless the number is 0.

    Raises:
        SetupError: `pictures` is negative.
    """

    def __init__(self, output_dir: str | None = None, pictures: int = 200) -> None:
        require_range(0, math.inf, pictures=pictures)
        self.output_dir = output_dir
        self.pictures = pictures
        self.command: list[str] = []
        self.written: Path | None = None
        self._forget()

    def _start(self, module: LightningModule) -> None:
        self._forget()
        if isinstance(module, SegmentationModule):
            self._colors = color_table(module.num_classes, module.palette)

    def _forget(self) -> None:
        self._counts: dict[str, NDArray[np.int32]] = {}
        self._gallery = Gallery(math.ceil(self.pictures / world_size()))

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the images of an earlier evaluation."""
        self._start(pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the images of an earlier evaluation."""
        self._start(pl_module)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the pixels of the images in a batch."""
        if isinstance(pl_module, SegmentationModule):
            done = (batch_idx + 1) / max(1, sum(trainer.num_test_batches))
            self._add(pl_module, batch, outputs, done)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the pixels of the images in a batch of the verb `validate`."""
        if trainer.state.fn == "validate" and isinstance(pl_module, SegmentationModule):
            done = (batch_idx + 1) / max(1, sum(trainer.num_val_batches))
            self._add(pl_module, batch, outputs, done)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the files."""
        if isinstance(pl_module, SegmentationModule):
            self._write(trainer, pl_module, "test")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the files where the verb is `validate`."""
        if trainer.state.fn == "validate" and isinstance(pl_module, SegmentationModule):
            self._write(trainer, pl_module, "validate")

    # Counting

    def _add(
        self,
        module: SegmentationModule,
        batch: dict[str, Any],
        outputs: Any,
        progress: float,
    ) -> None:
        if not isinstance(outputs, dict) or "labels" not in outputs:
            return  # a step of a user's own
        labels, target = outputs["labels"], batch["mask"]
        found = image_counts(labels, target, module.num_classes, module.ignore_index)
        void = target.masked_fill(target == module.ignore_index, 255)
        for place, name in enumerate(batch["id"]):
            counts = found[place].cpu().numpy().astype(np.int32)
            # an image that evens out the processes has no labelled pixel, and its id is elsewhere
            if name in self._counts and not counts.any():
                continue
            self._counts[name] = counts
            if counts.any():
                score = float(np.nanmean(iou_of(counts[0])))
                maps = {"truth": void[place], "prediction": labels[place]}
                image = module.picture(batch["image"][place])
                self._gallery.offer(name, score, progress, image, maps, self._colors)

    # Writing

    def folder(self, trainer: Trainer, verb: str) -> Path:
        """Return the folder of the scores; every process must ask for it."""
        own = run_folder(trainer)
        if self.output_dir:
            return Path(self.output_dir)
        return (folder_of_checkpoint(trainer.ckpt_path) or own) / verb

    def _write(self, trainer: Trainer, module: SegmentationModule, verb: str) -> None:
        folder = self.folder(trainer, verb)
        parts = _of_all_processes((self._counts, self._gallery.shown))
        self._forget()
        if not trainer.is_global_zero:
            return
        counts: dict[str, NDArray[np.int32]] = {}
        for found, _ in parts:
            for name, each in found.items():
                if name not in counts or each.any():
                    counts[name] = each
        shown = {each.name: each for _, pictures in parts for each in pictures}
        ids = sorted(counts)
        if not ids:
            return
        stacked = np.stack([counts[name] for name in ids]).astype(np.int64)
        summary = self._summary(trainer, module, verb) | {"images": len(ids)}
        try:
            names = write_pictures(folder / PICTURES, [shown[name] for name in sorted(shown)])
            Scores(ids, regions(), stacked, summary | {"pictures": names}).write(folder)
            self.written = folder
        except OSError as error:
            rank_zero_warn(f"the scores could not be written to {folder}: {error}")

    def _summary(self, trainer: Trainer, module: SegmentationModule, verb: str) -> dict[str, Any]:
        found = {name: value.cpu() for name, value in module.evaluated.items()}
        bins = found["calibration/count"]
        edges = np.linspace(0, 1, len(bins) + 1).tolist()
        columns = zip(
            edges[:-1],
            edges[1:],
            bins.tolist(),
            found["calibration/confidence"].tolist(),
            found["calibration/accuracy"].tolist(),
            strict=True,
        )
        names = ("low", "high", "count", "confidence", "accuracy")
        checkpoint, data = trainer.ckpt_path, getattr(trainer, "datamodule", None)
        return {
            "verb": verb,
            "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "version": lightning_seg.__version__,
            "commit": commit(),
            "command": self.command,
            "checkpoint": str(Path(checkpoint).absolute()) if checkpoint else None,
            "seed": _seed(folder_of_checkpoint(checkpoint)),
            "method": type(module).__name__,
            "network": type(module.network).__name__,
            "data": type(data).__name__ if data is not None else None,
            "classes": module.class_names,
            "palette": color_table(module.num_classes, module.palette)[
                : module.num_classes
            ].tolist(),
            "scores": {name: value.item() for name, value in found.items() if value.ndim == 0},
            "confusion": found["confusion"].tolist(),
            "calibration": {
                "ece": found["ece"].item(),
                "bins": [dict(zip(names, row, strict=True)) for row in columns],
            },
        }


def _of_all_processes(part: Any) -> list[Any]:
    if world_size() == 1:
        return [part]
    parts: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(parts, part)
    return parts


def _seed(run: Path | None) -> int | None:
    """Return the seed of the training in a run's folder, or else that of this process."""
    if run is not None:
        config = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
        if isinstance(config, dict) and isinstance(config.get("seed_everything"), int):
            return int(config["seed_everything"])
    seed = os.environ.get("PL_GLOBAL_SEED")
    return int(seed) if seed and seed.isdigit() else None
