"""Compare the loading speed of a usual albumentations pipeline and of this project on one core.

    python benchmarks/data.py [--rounds 7] [--images 12]

Both pipelines read the same files in one process, alternating in every round. The table shows the
median number of crops per second, and the median over rounds of the ratio to the usual pipeline.
The usual pipeline decodes, scales the whole image, pads, crops, flips, normalises and converts to
tensors. This project normalises on the device of the model; the last column includes the
normalisation on the core.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import numpy as np
import torch
from albumentations.pytorch import ToTensorV2
from PIL import Image
from rich.console import Console
from rich.table import Table

from datamodules.augmenting.steps import Augmentation
from datamodules.loading.dataset import SegmentationDataset
from datamodules.reading.cache import DecodedCache
from datamodules.reading.mask_decoder import MaskDecoder
from datamodules.reading.sources import FileSource
from datamodules.selection.samplers import SampleKey
from datamodules.synthetic_scenes import PALETTE, draw_scene

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
CASES = (
    ("png", (1024, 2048), (512, 769)),
    ("jpg", (1024, 2048), (512, 769)),
    ("jpg", (375, 500), (321, 513)),
)


def write_files(folder: Path, count: int, size: tuple[int, int], kind: str) -> FileSource:
    """Write synthetic scenes with the noise of a camera, so that they compress like photographs.

    Args:
        folder: The folder to write to.
        count: Number of images.
        size: Height and width in pixels.
        kind: Suffix of the image files, `png` or `jpg`.
    """
    images, masks = {}, {}
    for number in range(count):
        rng = np.random.default_rng(number)
        image, mask = draw_scene(rng, (size[0] // 2, size[1] // 2))
        image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_CUBIC)
        grain = cv2.GaussianBlur(rng.normal(0, 12, image.shape), (0, 0), 1.0)
        name = f"{number:03d}"
        images[name], masks[name] = folder / f"{name}.{kind}", folder / f"{name}_mask.png"
        picture = Image.fromarray(np.clip(image + grain, 0, 255).astype(np.uint8))
        picture.save(images[name], **({"quality": 95} if kind == "jpg" else {}))
        labels = Image.fromarray(mask.repeat(2, 0).repeat(2, 1)[: size[0], : size[1]])
        if labels.size != picture.size:
            labels = labels.resize(picture.size, Image.Resampling.NEAREST)
        labels.save(masks[name])
    return FileSource(images, masks, MaskDecoder(range(len(PALETTE)), void=[255]))


class UsualPipeline:
    """The pipeline of most training scripts: OpenCV, then albumentations."""

    def __init__(self, source: FileSource, crop: int) -> None:
        self.source = source
        self.steps = A.Compose(
            [
                A.RandomScale((-0.5, 1.0), p=1),
                A.PadIfNeeded(crop, crop, fill=0, fill_mask=255),
                A.RandomCrop(crop, crop),
                A.HorizontalFlip(),
                A.Normalize(),
                ToTensorV2(),
            ]
        )

    def __call__(self, number: int, seed: int) -> None:
        name = self.source.ids[number]
        image = cv2.cvtColor(cv2.imread(str(self.source.images[name])), cv2.COLOR_BGR2RGB)
        mask = cv2.imread(str(self.source.masks[name]), cv2.IMREAD_GRAYSCALE)
        self.steps(image=image, mask=mask)


class ProjectPipeline:
    """The dataset of this project, with or without normalisation."""

    def __init__(self, source: FileSource, crop: int, normalize: bool = False) -> None:
        self.dataset = SegmentationDataset(source, Augmentation("standard", (crop, crop)))
        self.normalize = normalize

    def __call__(self, number: int, seed: int) -> None:
        image = self.dataset[SampleKey(number, seed)]["image"]
        if self.normalize:
            (image.float() / 255 - MEAN[:, None, None]) / STD[:, None, None]


def seconds(loader: UsualPipeline | ProjectPipeline, count: int, turn: int) -> float:
    """Return the mean time per image, in seconds, of one round over all images."""
    begin = time.perf_counter()
    for number in range(count):
        loader(number, turn * count + number)
    return (time.perf_counter() - begin) / count


def main() -> None:
    """Measure all cases and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    table = Table(title="training crops per second and core, and ratio to the usual pipeline")
    for name in (
        "files",
        "crop",
        "usual",
        "project",
        "",
        "project, cached",
        "",
        "cached+normalised",
        "",
    ):
        table.add_column(name, justify="right")
    for kind, size, crops in CASES:
        with tempfile.TemporaryDirectory() as place:
            source = write_files(Path(place), options.images, size, kind)
            cached = FileSource(
                source.images, source.masks, source.decode, DecodedCache(Path(place, "cache"))
            )
            for crop in crops:
                loaders = [
                    UsualPipeline(source, crop),
                    ProjectPipeline(source, crop),
                    ProjectPipeline(cached, crop),
                    ProjectPipeline(cached, crop, normalize=True),
                ]
                for loader in loaders:  # fills the caches of the project and of the system
                    seconds(loader, options.images, 0)
                times = [
                    [seconds(loader, options.images, turn) for loader in loaders]
                    for turn in range(1, options.rounds + 1)
                ]
                cells = []
                for column in range(len(loaders)):
                    cells.append(f"{1 / statistics.median(row[column] for row in times):.0f}")
                    if column:
                        ratio = statistics.median(row[0] / row[column] for row in times)
                        cells.append(f"{ratio:.2f}x")
                table.add_row(f"{kind} {size[1]}x{size[0]}", str(crop), *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
