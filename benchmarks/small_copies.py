"""Copies of a data set whose images have at most a given longest side, for cheap trainings.

    python benchmarks/small_copies.py ../shared/data/camvid runs/evidence/data/camvid_240 240

The folder has `images` and `masks` in `train`, `val` and `test`, as `FolderDataModule` reads them.
Images are averaged over areas; masks keep the nearest label.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from PIL import Image


def small_copies(source: Path, target: Path, longest_side: int) -> Path:
    """Return a folder of small copies, which is made where it is missing.

    Args:
        source: The data set.
        target: The folder of the copies.
        longest_side: Largest width or height in pixels; smaller images are copied as they are.
    """
    if target.is_dir():
        return target
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    for path in sorted(source.rglob("*")):
        place = part / path.relative_to(source)
        if path.suffix == ".txt":
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
        if path.suffix not in (".png", ".jpg"):
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as picture:
            scale = min(1.0, longest_side / max(picture.size))
            size = (round(picture.width * scale), round(picture.height * scale))
            if path.parent.name == "masks":
                picture.resize(size, Image.Resampling.NEAREST).save(place)
            else:
                picture.convert("RGB").resize(size, Image.Resampling.BOX).save(place, quality=95)
    part.rename(target)
    return target


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("longest_side", type=int)
    options = parser.parse_args()
    print(small_copies(options.source, options.target, options.longest_side))
