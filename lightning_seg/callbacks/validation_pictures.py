"""Pictures of a few validation images through the whole training, in files and dashboards."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_seg.callbacks.drawing import (
    Drawing,
    Example,
    draw,
    example_of,
    image_miou,
    single_images,
)
from lightning_seg.callbacks.picture_sinks import send, write_files
from lightning_seg.errors import SetupError, require_range
from lightning_seg.run_folder import run_folder
from lightning_seg.training import MethodModule, SegmentationModule, ShardedStrategy
from lightning_seg.training.undisturbed import undisturbed

MOST = 8
"""Largest number of images in a picture."""


class ValidationPictures(Callback):
    """Draws the same few validation images through the whole training, and what a method sees.

    The pictures are written to `pictures/<name>_<step>.png` in the run's folder, and logged to W&B
    and TensorBoard. `examples` has a row for each image, with the views of the method; `hardest`
    has the images of the last validation with the lowest mIoU. W&B also gets masks whose classes
    can be switched, a table of the hardest images, the confusion matrix and the IoU of each class.

    The first and the last validation of a training are always drawn, the last one without `hardest`
    where a training ends before the step that was expected to be its last. A validation in between
    is left out where drawing has taken more than its share of the time, or where its files would
    take more than the same share of `max_megabytes` as the steps so far are of all steps. Only the
    first process draws, and with several processes the images are those that it validates. Drawing
    changes neither random numbers nor weights, statistics, modes or scores.

    Args:
        every_n_validations: Number of validations from one drawing to the next: 1 draws at every
            validation, 0 never.
        images: Number of images, 0 to 8, which are spread evenly over the validation set.
        ids: Names of the images, at most 8, in place of images that are spread evenly.
        size: Longest side in pixels of the images with masks in W&B, at least 16.
        max_time_share: Share of the time of a run that drawing may take, in [0, 1].
        max_megabytes: Size of all pictures of a run in files and loggers in MB, at least 0.

    Raises:
        SetupError: A setting is out of range, or a name is that of no validation image.
    """

    def __init__(
        self,
        every_n_validations: int = 1,
        images: int = 4,
        ids: list[str] | None = None,
        size: int = 512,
        max_time_share: float = 0.02,
        max_megabytes: float = 20,
    ) -> None:
        require_range(0, math.inf, every_n_validations=every_n_validations)
        require_range(0, MOST, images=images)
        require_range(16, math.inf, size=size)
        require_range(0, 1, max_time_share=max_time_share)
        require_range(0, math.inf, max_megabytes=max_megabytes)
        if ids is not None and len(ids) > MOST:
            raise SetupError(f"pictures show at most {MOST} images, not {len(ids)}", option="ids")
        self.every_n_validations = every_n_validations
        self.images = images
        self.ids = None if ids is None else list(dict.fromkeys(ids))
        self.size = size
        self.max_time_share = max_time_share
        self.max_megabytes = max_megabytes
        self._validations = 0
        self._bytes = 0
        self._restart()

    def _restart(self) -> None:
        self._choosing, self._chosen = True, list[dict[str, Any]]()
        self._hardest: list[Example] = []
        self._largest, self._spent, self._started = 0, 0.0, time.monotonic()
        self._shown_at: int | None = None
        self._due = False
        self._folder: Path | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the run's folder, and raise an error for a name that is no validation image's."""
        self._restart()
        self._folder = run_folder(trainer) / "pictures"  # every process asks
        of_split = getattr(trainer.datamodule, "split_ids", None)  # type: ignore[attr-defined]
        if self.ids is None or of_split is None:
            return
        if missing := [name for name in self.ids if name not in set(of_split("val"))]:
            raise SetupError(
                f"{missing[0]} is no image of the validation set, which has "
                f"{', '.join(of_split('val')[:3])}, ...",
                option="pictures.ids",
            )

    # Which images

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the images that are shown, and those with the lowest mIoU."""
        if not self._watches(trainer) or dataloader_idx > 0:
            return
        with self._clock():
            self._choose(batch, batch_idx, int(trainer.num_val_batches[0]))
            scored = isinstance(outputs, dict) and "labels" in outputs and "mask" in batch
            if self._due and scored:  # a score for each image costs some milliseconds
                assert isinstance(pl_module, SegmentationModule)
                self._rank(batch, outputs["labels"], pl_module)

    def _watches(self, trainer: Trainer) -> bool:
        fits = trainer.state.fn == "fit" and not trainer.sanity_checking
        real = not getattr(trainer, "fast_dev_run", False)
        # one process draws, and a sharded network needs all of them
        alone = not isinstance(trainer.strategy, ShardedStrategy)
        return bool(self.every_n_validations and fits and real and alone and trainer.is_global_zero)

    def _choose(self, batch: dict[str, Any], batch_idx: int, batches: int) -> None:
        """Keep images of the first validation; later ones show them again."""
        if not self._choosing:
            return
        parts = single_images(batch)
        if self.ids is not None:
            self._chosen += [part for part in parts if part["id"][0] in self.ids]
            self._chosen.sort(key=lambda part: self.ids.index(part["id"][0]))  # type: ignore[union-attr]
            return
        # the number of images that are due after this batch, if they are spread evenly
        due = math.ceil(self.images * (batch_idx + 1) / max(1, batches))
        left = max(0, min(due, self.images) - len(self._chosen))
        self._chosen += parts[:left]

    def _rank(self, batch: dict[str, Any], labels: Tensor, module: SegmentationModule) -> None:
        """Keep the images of a batch that are among those with the lowest mIoU so far."""
        scores = image_miou(labels, batch["mask"], module.num_classes, module.ignore_index)
        for index, score in enumerate(scores):
            full = len(self._hardest) >= self.images
            if math.isnan(score) or (full and not any(score < each.miou for each in self._hardest)):
                continue
            example = example_of(batch, labels, index, score, module, self.size)
            self._hardest.append(example)
            self._hardest.sort(key=lambda example: example.miou)
            del self._hardest[self.images :]

    # When

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide whether this validation is drawn: every n-th one and the last one."""
        self._due, self._hardest = False, []
        if self._watches(trainer):
            last = trainer.global_step >= trainer.estimated_stepping_batches
            nth = (self._validations + 1) % self.every_n_validations == 0
            self._due = last or (nth and self._affordable(trainer))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, but not after the check before training."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._validations += 1
        self._choosing = False
        if self._due:
            self._draw(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the last validation also where it was not known to be the last one."""
        validated = not self._choosing
        if validated and self._watches(trainer) and self._shown_at != trainer.global_step:
            self._draw(trainer, pl_module, ended=True)

    def _affordable(self, trainer: Trainer) -> bool:
        if self._shown_at is None:
            return True
        in_time = self._spent <= self.max_time_share * (time.monotonic() - self._started)
        steps = trainer.estimated_stepping_batches
        done = trainer.global_step / steps if 0 < steps < math.inf else 1.0
        # the last drawing must fit, too
        expected = self._bytes + 2 * self._largest
        return in_time and expected <= self.max_megabytes * 1e6 * min(1.0, done)

    @contextmanager
    def _clock(self) -> Iterator[None]:
        begin = time.monotonic()
        try:
            yield
        finally:
            self._spent += time.monotonic() - begin

    def state_dict(self) -> dict[str, Any]:
        """Return the number of validations and the size of the pictures so far."""
        return {"validations": self._validations, "bytes": self._bytes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the number of validations and the size of the pictures."""
        self._validations = state_dict["validations"]
        self._bytes = state_dict.get("bytes", 0)

    # Drawing

    def _draw(self, trainer: Trainer, pl_module: LightningModule, ended: bool = False) -> None:
        if not isinstance(pl_module, MethodModule):
            return
        with self._clock():
            self._shown_at = trainer.global_step
            steps = trainer.global_step, max(0, _logged_step(trainer) - ended)
            with undisturbed(pl_module), trainer.precision_plugin.val_step_context():
                drawing = draw(pl_module, self._chosen, self._hardest, self.size, steps)
            size = self._write(drawing)
            for logger in trainer.loggers:
                size += send(logger, drawing)
            self._bytes += size
            self._largest = max(self._largest, size)

    def _write(self, drawing: Drawing) -> int:
        if self._folder is None:
            return 0
        try:
            return write_files(drawing, self._folder)
        except OSError as error:
            rank_zero_warn(f"pictures are not written to {self._folder}: {error.strerror}")
            self._folder = None
            return 0


def _logged_step(trainer: Trainer) -> int:
    """Return the step with which Lightning logs, which is one less than the steps made."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped
