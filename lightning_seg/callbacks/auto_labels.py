"""Confident predictions for images without labels become masks to train on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray

from lightning_seg.callbacks.file_threads import FileThreads
from lightning_seg.callbacks.label_folder import LabelFolder, own_names
from lightning_seg.errors import SetupError, UserError, require_one_of, require_range
from lightning_seg.label_selection import (
    CODES,
    Tally,
    count,
    encoded,
    report,
    selected,
    smallest_codes,
)
from lightning_seg.pictures import color_table
from lightning_seg.processes import world_size
from lightning_seg.training import SegmentationModule
from lightning_seg.training.discriminator import DiscriminatorModule
from lightning_seg.training.prediction import softmax_log_odds


class Images(Protocol):
    """Examples of a data module, by number."""

    @property
    def ids(self) -> Sequence[str]:
        """The name of every image."""
        ...

    def mask(self, index: int) -> NDArray[np.uint8] | None:
        """Return the (H, W) class ids of an image."""
        ...

    def __getitem__(self, index: int) -> Any:
        """Return an image with its (H, W, C) values as `image`."""
        ...


class Found(NamedTuple):
    """What one process has found."""

    labels: Tally
    validation: Tally
    links: Counter[str]
    images: Counter[str]
    failed: list[tuple[str, str]]


class AutoLabels(Callback):
    """Writes confident predictions for images without labels as masks, for another training.

    The network sees every image once. Then every class gets its threshold, counted over all images
    (see `lightning_seg.label_selection`), and a mask holds 255 (void) where the prediction is less
    confident. Images whose mask would be all void are left out. The folder has `images/train` and
    `masks/train` for `FolderDataModule`, `autolabel.json` with thresholds and numbers of pixels,
    and `data.yaml`, a piece of configuration. It appears when it is complete.

    The same thresholds are applied to the predictions for validation images, whose labels say how
    many of the kept pixels are right.

    Args:
        output: The folder to write; None takes `autolabel` in the Trainer's `default_root_dir`.
        by: The confidence of a pixel: `softmax` takes the largest probability of its classes, and
            `discriminator` the confidence of the discriminator of `SemiAdvModule` that the
            prediction is a label map.
        keep: Share in (0, 1] of the pixels of every predicted class that become labels, the most
            confident ones; None keeps all. Default chosen here: students on horses were better than
            with 0.5 for each of three seeds, by 0.4 to 0.9 points of mIoU (docs/autolabel.md).
        threshold: Smallest confidence in [0, 1) of a label. Where `keep` is given, too, the higher
            one of both thresholds counts. None, the default chosen here, sets none: a class of
            which the network is never sure would lose all its labels.
        with_labeled: Whether the folder also gets the training images that have labels, and the
            validation images, so that it is a complete training set. Default chosen here.

    Attributes:
        report: The content of `autolabel.json` after the run.
        failed: (id, error) of every image that could not be read.

    Raises:
        SetupError: An option is out of its range, the folder cannot be written, or the module or
            its data have no such predictions.
    """

    def __init__(
        self,
        output: str | None = None,
        by: Literal["softmax", "discriminator"] = "softmax",
        keep: float | None = 0.8,
        threshold: float | None = None,
        with_labeled: bool = True,
    ) -> None:
        require_one_of("softmax", "discriminator", by=by)
        if keep is not None and not 0 < keep <= 1:
            raise SetupError(f"keep must be in (0, 1], not {keep}", option="autolabel.keep 0.8")
        if threshold is not None and not 0 <= threshold < 1:
            raise SetupError(
                f"threshold must be in [0, 1), not {threshold}", option="autolabel.threshold 0.9"
            )
        self.output = output
        self.by = by
        self.keep = keep
        self.threshold = threshold
        self.with_labeled = with_labeled
        self.report: dict[str, Any] = {}
        self.failed: list[tuple[str, str]] = []
        self.piece: dict[str, Any] | None = None
        self._parts: Any = None
        self._files = FileThreads()

    def folder(self, trainer: Trainer) -> Path:
        """Return the folder that is written."""
        return Path(self.output or Path(trainer.default_root_dir) / "autolabel")

    # Before the prediction

    def prepare(self, trainer: Trainer, module: LightningModule, data: Any) -> None:
        """Make the next prediction write labels; without this call, the callback does nothing.

        Args:
            trainer: The Trainer that will predict.
            module: The module that will predict.
            data: The data module, which finds the images.

        Raises:
            SetupError: The folder cannot be written, or module or data do not fit.
            DataError: There are no images without labels.
        """
        log_odds = self._log_odds(module)
        if not hasattr(data, "setup_autolabel"):
            raise SetupError(f"{type(data).__name__} has no labels to start from", option="data")
        require_range(1, 255, num_classes=data.num_classes)
        colors = color_table(data.num_classes, data.palette)
        self._folder = LabelFolder(self.folder(trainer), colors)
        self._folder.require_free(_read_folders(data))
        self._parts = data.setup_autolabel()
        module.log_odds = log_odds
        data.rows_above = None  # the confidence is that of whole images
        self._names = list(data.class_names)
        self._count = len(self._parts.unlabeled)
        self._numbers = {name: at for at, name in enumerate(data.split_ids("predict"))}
        taken = self._parts.labeled.ids if self.with_labeled else ()
        parts = {"unlabelled": self._parts.unlabeled, "train": self._parts.labeled}
        parts |= {"val": self._parts.validation}
        self._sources: dict[str, tuple[Images, list[Path | None]]] = {
            name: (part, self._parts.paths(part)) for name, part in parts.items()
        }
        self._own = own_names(self._parts.unlabeled.ids, taken)

    def _log_odds(self, module: LightningModule) -> Any:
        """Return the function from logits to log-odds of the confidence."""
        name = type(module).__name__
        if not isinstance(module, SegmentationModule):
            raise SetupError(
                f"{name} predicts no class of each pixel: labels come from methods that do",
                option="model",
            )
        if self.by == "softmax":
            return softmax_log_odds
        if not isinstance(module, DiscriminatorModule):
            raise SetupError(
                f"{name} has no discriminator of label maps: SemiAdvModule has one",
                option=("autolabel.by softmax", "model"),
            )
        if not getattr(module, "plays", True):
            raise SetupError(
                f"no loss of this {name} trains its discriminator", option="autolabel.by softmax"
            )
        return module.confidence_log_odds

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Show whole images to the network."""
        if self._parts is not None and stage == "predict":
            trainer.datamodule.rows_above = None  # type: ignore[attr-defined]

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to count."""
        if self._parts is None:
            return
        if trainer.is_global_zero:
            with self._writing():
                self._folder.begin()
        trainer.strategy.barrier()
        self._counts = np.zeros((len(self._names), CODES), np.int64)
        self._seen: list[int] = []
        self.failed = []

    # While the network predicts

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the predictions of a batch on the disk, and count their confidences."""
        if self._parts is None:
            return
        self.failed += batch.get("failed", [])
        unread = {name for name, _ in self.failed}
        labels = outputs["labels"].cpu().numpy()
        log_odds = outputs["log_odds"].float().cpu().numpy()
        counted = batch.get("counted", [True] * len(labels))
        for place, name in enumerate(outputs["id"]):
            if name in unread or not counted[place]:  # a copy that evens out the processes
                continue
            number, codes = self._numbers[name], encoded(log_odds[place])
            if number < self._count:
                count(self._counts, labels[place], codes)
            self._seen.append(number)
            with self._writing():
                self._files.submit(self._folder.keep, number, labels[place], codes)

    # After the prediction

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the thresholds, and write masks, images and numbers."""
        if self._parts is None:
            return
        with self._writing():
            self._files.finish()
            smallest = smallest_codes(
                _sum_of_processes(self._counts, pl_module.device), self.keep, self.threshold
            )
            found = _of_all_processes(self._write_share(trainer, smallest))
            self.failed = list(dict.fromkeys(found.failed))
            known = found.validation if found.validation.predicted.any() else None
            self.report = {
                "checkpoint": trainer.ckpt_path and str(Path(trainer.ckpt_path).absolute()),
                "by": self.by,
                "keep": self.keep,
                "threshold": self.threshold,
                "images": {
                    **{name: found.images[name] for name in _IMAGES},
                    "have_labels": self._parts.left_out,
                    "not_read": len(self.failed),
                },
                "files": dict(found.links),
                **report(self._names, smallest, found.labels, known),
            }
            if trainer.is_global_zero:
                self._folder.finish(self.report, self.piece)
        trainer.strategy.barrier()
        self._parts = None  # a later prediction is an ordinary one
        assert isinstance(pl_module, SegmentationModule)
        pl_module.log_odds = None

    def _write_share(self, trainer: Trainer, smallest: NDArray[np.int64]) -> Found:
        """Write the images that this process has predicted, and its share of the labelled ones."""
        classes = len(self._names)
        labels, validation, images = Tally.none(classes), Tally.none(classes), Counter[str]()
        for number in self._seen:
            predicted, codes = self._folder.kept(number)
            chosen = selected(predicted, codes, smallest)
            if number >= self._count:
                truth = self._truth(number - self._count, predicted.shape)
                if truth is not None:
                    validation = validation.plus(Tally.of(predicted, chosen, classes, truth))
                continue
            labels = labels.plus(Tally.of(predicted, chosen, classes))
            kind = "autolabelled" if (chosen != 255).any() else "all_void"
            images[kind] += 1
            if kind == "autolabelled":
                image = self._image("unlabelled", number)
                self._folder.add("train", self._own[number], image, chosen)
        if self.with_labeled:
            for split in ("train", "val"):
                images[f"labelled_{split}"] += self._add_labelled(trainer, split)
        return Found(labels, validation, self._folder.links, images, self.failed)

    def _add_labelled(self, trainer: Trainer, split: str) -> int:
        """Write this process's share of the images that have labels; return their number."""
        added, part = 0, self._sources[split][0]
        for number in range(trainer.global_rank, len(part.ids), trainer.world_size):
            try:
                image, mask = self._image(split, number), part.mask(number)
            except UserError as error:
                self.failed.append((part.ids[number], str(error)))
                continue
            if mask is not None:
                self._folder.add(split, part.ids[number], image, mask)
                added += 1
        return added

    def _image(self, name: str, number: int) -> Path | NDArray[Any]:
        """Return the file of an image; its values where it is no file."""
        part, paths = self._sources[name]
        values: Path | NDArray[Any] = paths[number] or part[number].image
        return values

    def _truth(self, number: int, size: tuple[int, ...]) -> NDArray[np.uint8] | None:
        """Return the mask of a validation image; None where it cannot be used."""
        name = self._parts.validation.ids[number]
        try:
            mask: NDArray[np.uint8] | None = self._parts.validation.mask(number)
        except UserError as error:
            self.failed.append((name, str(error)))
            return None
        return mask if mask is not None and mask.shape == size else None

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Remove the files that are not complete."""
        self._files.stop()
        if self._parts is not None and trainer.is_global_zero:
            self._folder.discard()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Report a full disk and other errors of the system in a sentence."""
        try:
            yield
        except OSError as error:
            raise SetupError(
                f"labels cannot be written to {self._folder.output}: {error.strerror or error}",
                option="autolabel.output",
            ) from error


_IMAGES = ("autolabelled", "all_void", "labelled_train", "labelled_val")


def _read_folders(data: Any) -> list[Path]:
    """Return the folders that a data module reads."""
    found = [getattr(data, "root", None)]
    for name in ("predict", "unlabeled"):
        value = getattr(data, name, None)
        found += [value] if isinstance(value, str) else value or []
    folders = [Path(each).expanduser() for each in found if each is not None]
    return [folder for folder in folders if folder.is_dir()]


def _sum_of_processes(counts: NDArray[np.int64], device: torch.device) -> NDArray[np.int64]:
    """Return the sum of the counts of all processes."""
    if world_size() == 1:
        return counts
    total = torch.from_numpy(counts).to(device)
    dist.all_reduce(total)
    summed: NDArray[np.int64] = total.cpu().numpy()
    return summed


def _of_all_processes(own: Found) -> Found:
    """Return the sums of what all processes have found, and the list of all failures."""
    if world_size() == 1:
        return own
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, own)
    total: Found = gathered[0]
    for each in gathered[1:]:
        total = Found(
            total.labels.plus(each.labels),
            total.validation.plus(each.validation),
            total.links + each.links,
            total.images + each.images,
            total.failed + each.failed,
        )
    return total
