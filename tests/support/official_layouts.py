"""Small datasets of generated images in the official layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


def pair_of(number: int, values: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """An image and a mask of 70x90 pixels in blocks of these values."""
    rng = np.random.default_rng(number)
    mask = rng.choice(values, (7, 9)).repeat(10, 0).repeat(10, 1)
    return rng.integers(0, 256, (70, 90, 3)), mask


def write_voc(root: Path) -> None:
    home = root / "VOC2012"
    splits = {"trainaug": 16, "val": 2}
    for first, (split, count) in enumerate(splits.items()):
        ids = [f"{split}_{number}" for number in range(count)]
        for number, name in enumerate(ids):
            image, mask = pair_of(100 * first + number, [0, 1, 15, 20, 255])
            write(home / f"JPEGImages/{name}.jpg", image)
            for folder in ("SegmentationClass", "SegmentationClassAug"):
                write(home / f"{folder}/{name}.png", mask)
        for name in (split, split.removesuffix("aug")):
            path = home / f"ImageSets/Segmentation/{name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(ids) + "\n")


def write_cityscapes(root: Path) -> None:
    for split, count in (("train", 16), ("val", 2)):
        for number in range(count):
            image, mask = pair_of(number, [0, 7, 11, 24, 33])
            name = f"{split}/ulm/ulm_{number:06d}_000019"
            write(root / f"leftImg8bit/{name}_leftImg8bit.png", image)
            write(root / f"gtFine/{name}_gtFine_labelIds.png", mask)


def write_ade20k(root: Path) -> None:
    for split, short, count in (("training", "train", 16), ("validation", "val", 2)):
        for number in range(1, count + 1):
            image, mask = pair_of(number, [0, 1, 75, 150])
            name = f"{split}/ADE_{short}_{number:08d}"
            write(root / f"ADEChallengeData2016/images/{name}.jpg", image)
            write(root / f"ADEChallengeData2016/annotations/{name}.png", mask)


def write_coco_stuff(root: Path) -> None:
    for split, count in (("train2017", 16), ("val2017", 2)):
        for number in range(count):
            image, mask = pair_of(number, [0, 89, 91, 181, 255])
            write(root / f"images/{split}/{number:012d}.jpg", image)
            write(root / f"annotations/{split}/{number:012d}.png", mask)


def write_camvid(root: Path) -> None:
    for split, count in (("train", 16), ("val", 2), ("test", 1)):
        for number in range(count):
            image, mask = pair_of(number, list(range(12)))
            write(root / f"{split}/{number:03d}.png", image)
            write(root / f"{split}annot/{number:03d}.png", mask)


def write_horses(root: Path) -> None:
    for number in range(1, 329):
        image, mask = pair_of(number, [0, 255])
        write(root / f"rgb/horse{number:03d}.jpg", image)
        write(root / f"figure_ground/horse{number:03d}.jpg", mask)


def write_images(root: Path) -> None:
    for number in range(8):
        write(root / f"{number}.jpg", pair_of(number, [0])[0])


WRITERS = {
    "voc": write_voc,
    "cityscapes": write_cityscapes,
    "ade20k": write_ade20k,
    "coco_stuff": write_coco_stuff,
    "camvid": write_camvid,
    "horse": write_horses,
    "proxy": write_images,
}
