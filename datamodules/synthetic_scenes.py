"""Drawn landscapes with exact labels, which need no files."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.base import SegmentationDataModule
from datamodules.errors import DataError
from datamodules.images import Split
from datamodules.option_checks import at_least
from datamodules.reading.mask_decoder import VOID
from datamodules.reading.sources import Example, Source
from datamodules.selection.seeds import RandomStream, generator

PALETTE = {
    "sky": [135, 190, 235],
    "water": [30, 80, 160],
    "grass": [90, 160, 60],
    "road": [90, 90, 100],
    "building": [170, 100, 70],
    "pole": [250, 220, 60],
    "sign": [220, 30, 40],
    "boat": [230, 70, 200],
}
SKY, WATER, GRASS, ROAD, BUILDING, POLE, SIGN, BOAT = range(len(PALETTE))
_SPLITS: tuple[Split, ...] = ("train", "val", "test")

Color = tuple[int, int, int]


class SyntheticScenesDataModule(SegmentationDataModule):
    """Textured landscapes of eight classes, each drawn when it is read.

    They have the difficulties of real street scenes: `sign` is under 1 % of the pixels, `pole` is
    one to three pixels wide, a `sign` is always on a pole and a `boat` always on water, `water`
    has the texture of the sky and differs by its place alone, red flowers look like signs and are
    `grass`, and half of the scenes have void outlines.

    Args:
        train_size: Number of training scenes, at least 0.
        val_size: Number of validation scenes, at least 0.
        test_size: Number of test scenes, at least 0.
        image_size: Height and width of a scene in pixels, at least 32 each.
        scene_seed: Seed of the scenes, at least 0. A scene depends on this seed, its split and its
            index alone.
        loader_options: Arguments of `SegmentationDataModule`.

    Raises:
        DataError: An option is out of its range.
    """

    default_crop_size = 128
    default_scale = (0.75, 1.5)

    def __init__(
        self,
        train_size: int = 256,
        val_size: int = 48,
        test_size: int = 48,
        image_size: tuple[int, int] = (128, 160),
        scene_seed: int = 0,
        **loader_options: Any,
    ) -> None:
        super().__init__(**loader_options)
        if min(image_size) < 32:
            raise DataError(
                f"image_size must be at least 32x32, not {list(image_size)}", option="image_size"
            )
        at_least(0, train_size=train_size, val_size=val_size, test_size=test_size)
        at_least(0, scene_seed=scene_seed)
        if self.channels != 3:
            raise DataError(
                f"the scenes are drawn in RGB, not in {self.channels} channels", option="channels 3"
            )
        self.sizes: dict[Split, int] = {"train": train_size, "val": val_size, "test": test_size}
        self.image_size = image_size
        self.scene_seed = scene_seed

    @property
    def class_names(self) -> list[str]:
        """One name per class, in class order."""
        return list(PALETTE)

    @property
    def palette(self) -> list[list[int]]:
        """Colours near those of the scenes; poles and boats have brighter ones, to be seen."""
        return list(PALETTE.values())

    def source(self, split: Split) -> SceneSource:
        """Return all scenes of a split."""
        return SceneSource(split, self.sizes[split], self.image_size, self.scene_seed)


class SceneSource(Source):
    """Scenes of one split by index.

    Args:
        split: `train`, `val` or `test`; no scene is in two of them.
        size: Number of scenes, at least 0.
        image_size: Height and width of a scene in pixels, at least 32 each.
        seed: Seed of the scenes, at least 0.
    """

    def __init__(self, split: Split, size: int, image_size: tuple[int, int], seed: int) -> None:
        self.split = split
        self.size = size
        self.image_size = image_size
        self.seed = seed

    @property
    def ids(self) -> list[str]:
        """The names `train_00000`, `train_00001` and so on."""
        return [f"{self.split}_{index:05d}" for index in range(self.size)]

    def labels_version(self) -> str:
        """Return split, size and seed, which the scenes depend on."""
        return f"{self.split} {self.size} {self.image_size} {self.seed}"

    def read(self, index: int, reduce: int = 1) -> Example:
        """Draw a scene.

        Args:
            index: Position of the scene in its split.
            reduce: Ignored: a scene has its full size.
        """
        rng = generator(self.seed, RandomStream.SCENE, _SPLITS.index(self.split), index)
        image, mask = draw_scene(rng, self.image_size)
        return Example(f"{self.split}_{index:05d}", image, mask)


def draw_scene(
    rng: np.random.Generator, size: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw one landscape.

    Args:
        rng: Source of the random numbers.
        size: Height and width in pixels, at least 32 each.

    Returns:
        (H, W, 3) uint8 RGB image and (H, W) uint8 class ids, 255 where void.
    """
    scene = _Scene(rng, size)
    scene.ground()
    if rng.random() < 0.7:
        scene.water()
    scene.buildings()
    scene.road()
    scene.poles()
    return scene.finish()


class _Scene:
    """A canvas; each method paints one kind of thing over the things painted before."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        self.rng = rng
        self.height, self.width = size
        self.horizon = int(self.height * rng.uniform(0.35, 0.55))
        self.mask = np.full(size, SKY, np.uint8)
        self.image = np.empty((*size, 3), np.float32)
        self.void_outlines = rng.random() < 0.5
        # sky and water have the same colour, so that only their place distinguishes them
        self.blue: Color = _near(rng, (130, 165, 205), 25)
        self.image[:] = self._texture(self.blue, cell=24, contrast=18)

    def ground(self) -> None:
        below = np.zeros_like(self.mask)
        below[self.horizon :] = 1
        self._paint(below, GRASS, self._texture((95, 130, 65), cell=4, contrast=30))
        for _ in range(int(self.rng.integers(0, 6))):  # flowers in the colour of signs
            x, y = self._point(self.horizon + 4, self.height)
            cv2.circle(self.image, (x, y), 1 + self.height // 100, (200, 40, 40), -1)

    def water(self) -> None:
        left = bool(self.rng.random() < 0.5)
        reach = int(self.width * self.rng.uniform(0.3, 0.55))
        depth = int((self.height - self.horizon) * self.rng.uniform(0.35, 0.8))
        edge = 0 if left else self.width - 1
        lake = np.zeros_like(self.mask)
        cv2.ellipse(lake, (edge, self.horizon + depth // 2), (reach, depth // 2), 0, 0, 360, 1, -1)
        lake[: self.horizon] = 0
        self._paint(lake, WATER, self._texture(self.blue, cell=24, contrast=18))
        for _ in range(int(self.rng.integers(0, 3))):
            self._boat(lake)

    def _boat(self, lake: NDArray[np.uint8]) -> None:
        half = max(3, int(self.width * self.rng.uniform(0.03, 0.07)))
        # (H, W) -> the pixels where a whole boat has water around it
        rows, columns = np.nonzero(cv2.erode(lake, np.ones((half + 5, 2 * half + 5), np.uint8)))
        if len(rows) == 0:
            return
        at = int(self.rng.integers(len(rows)))
        x, y = int(columns[at]), int(rows[at])
        hull = np.array([(x - half, y), (x + half, y), (x + half // 2, y + half // 2 + 1)])
        hull = np.vstack([hull, (x - half // 2, y + half // 2 + 1)])
        sail = np.array([(x, y - 2 * half), (x, y), (x + half, y)])
        shape = np.zeros_like(self.mask)
        cv2.fillPoly(shape, [hull.astype(np.int32), sail.astype(np.int32)], 1)
        self._paint(shape, BOAT, self._texture((235, 230, 220), cell=3, contrast=12))

    def buildings(self) -> None:
        for _ in range(int(self.rng.integers(1, 5))):
            width = int(self.width * self.rng.uniform(0.1, 0.25))
            height = int(self.horizon * self.rng.uniform(0.3, 0.95))
            x = int(self.rng.integers(-width // 2, self.width - width // 2))
            bottom = self.horizon + 2
            shape = np.zeros_like(self.mask)
            cv2.rectangle(shape, (x, bottom - height), (x + width, bottom), 1, -1)
            shape[self.mask == WATER] = 0
            shape[self.mask == BOAT] = 0
            wall = self._texture(_near(self.rng, (140, 115, 108), 45), cell=3, contrast=14)
            step = max(4, self.height // 16)
            window = np.zeros_like(self.mask)
            for row in range(bottom - height + 2, bottom - 2, step):
                window[max(row, 0) : max(row + step // 2, 0), max(x + 2, 0) :: step] = 1
            wall[window == 1] *= 0.55
            self._paint(shape, BUILDING, wall)

    def road(self) -> None:
        far, near = self._point(0, 1)[0], self._point(0, 1)[0]
        half = self.width * self.rng.uniform(0.15, 0.3)
        corners = [
            (far - half * 0.08, self.horizon + 1),
            (far + half * 0.08, self.horizon + 1),
            (near + half, self.height),
            (near - half, self.height),
        ]
        shape = np.zeros_like(self.mask)
        cv2.fillPoly(shape, [np.array(corners).round().astype(np.int32)], 1)
        shape[self.mask != GRASS] = 0
        self._paint(shape, ROAD, self._texture((112, 110, 112), cell=2, contrast=16))

    def poles(self) -> None:
        for _ in range(int(self.rng.integers(1, 5))):
            foot = self._point(self.horizon + 2, int(self.height * 0.9))
            if self.mask[foot[1], foot[0]] in (WATER, BOAT):
                continue
            top = max(4, foot[1] - int(self.height * self.rng.uniform(0.25, 0.5)))
            thick = int(self.rng.integers(1, 4))
            shape = np.zeros_like(self.mask)
            cv2.rectangle(shape, (foot[0], top), (foot[0] + thick - 1, foot[1]), 1, -1)
            self._paint(shape, POLE, self._texture((70, 70, 75), cell=2, contrast=8))
            if self.rng.random() < 0.6:
                self._sign(foot[0] + thick // 2, top)

    def _sign(self, x: int, y: int) -> None:
        radius = max(2, int(self.height * self.rng.uniform(0.018, 0.03)))
        shape = np.zeros_like(self.mask)
        if self.rng.random() < 0.5:
            cv2.circle(shape, (x, y), radius, 1, -1)
        else:
            cv2.rectangle(shape, (x - radius, y - radius), (x + radius, y + radius), 1, -1)
        self._paint(shape, SIGN, self._texture((200, 40, 40), cell=2, contrast=12))

    def finish(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        light = self.rng.uniform(0.75, 1.2)
        grain = self.rng.normal(0, 5, self.image.shape)
        image = np.clip(self.image * light + grain, 0, 255).astype(np.uint8)
        if self.void_outlines:
            thing = np.isin(self.mask, (BUILDING, BOAT, WATER)).astype(np.uint8) * self.mask
            cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
            outline = cv2.morphologyEx(thing, cv2.MORPH_GRADIENT, cross) > 0
            thin = np.isin(self.mask, (POLE, SIGN))  # an outline would cover them wholly
            self.mask[outline & ~thin] = VOID
        return image, self.mask

    def _paint(self, shape: NDArray[np.uint8], label: int, texture: NDArray[np.float32]) -> None:
        inside = shape > 0
        self.image[inside] = texture[inside]
        self.mask[inside] = label

    def _texture(self, color: Color, cell: int, contrast: float) -> NDArray[np.float32]:
        """Return smooth noise (H, W, 3) around a colour; `cell` is its grain in pixels."""
        coarse = (self.height // cell + 2, self.width // cell + 2)
        noise = self.rng.normal(0, contrast, coarse).astype(np.float32)
        smooth = cv2.resize(noise, (self.width, self.height), interpolation=cv2.INTER_CUBIC)
        return np.asarray(color, np.float32) + smooth[..., None]

    def _point(self, top: int, bottom: int) -> tuple[int, int]:
        """Return a random column, and a random row in [top, bottom)."""
        return int(self.rng.integers(self.width)), int(self.rng.integers(top, bottom))


def _near(rng: np.random.Generator, color: Color, spread: float) -> Color:
    red, green, blue = (int(channel + rng.uniform(-spread, spread)) for channel in color)
    return red, green, blue
