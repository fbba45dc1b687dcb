"""Small copies of some images of an evaluation, with their labels and predictions."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lightning_seg.callbacks.drawing import shrunk
from lightning_seg.files import write_whole
from lightning_seg.views import rgb_array

_LONGEST_SIDE = 512  # pixels
_EXTREMES = 12  # number of the best, and of the worst images that are kept


@dataclass
class Shown:
    """The encoded pictures of an image.

    Attributes:
        name: The id of the image.
        score: The image's mean IoU.
        files: The content of a JPEG or PNG file by its kind: `image`, `truth` and `prediction`.
    """

    name: str
    score: float
    files: dict[str, bytes]


class Gallery:
    """Keeps images that are spread over an evaluation, and those with extreme scores.

    Args:
        size: Number of images that are spread over the evaluation; 0 keeps no image at all.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._spread: list[Shown] = []
        self._extremes: list[Shown] = []

    @property
    def shown(self) -> list[Shown]:
        """All images that are kept."""
        return [*self._spread, *self._extremes]

    def offer(
        self,
        name: str,
        score: float,
        progress: float,
        image: Tensor,
        maps: dict[str, Tensor],
        colors: NDArray[np.uint8],
    ) -> None:
        """Keep an image where it is one of those to show.

        Args:
            name: The id of the image.
            score: The image's mean IoU.
            progress: Share of the evaluation that is done after this image, in (0, 1].
            image: (3, H, W) RGB, uint8 in 0..255 or floating point in [0, 1].
            maps: (H, W) class ids by kind, 255 for void.
            colors: (256, 3) colours of the class ids.
        """
        if self.size == 0:
            return
        if len(self._spread) < self.size * progress:
            self._spread.append(Shown(name, score, _encoded(image, maps, colors)))
        elif self._is_extreme(score):
            shown = Shown(name, score, _encoded(image, maps, colors))
            kept = sorted([*self._extremes, shown], key=lambda each: each.score)
            over = len(kept) > 2 * _EXTREMES
            self._extremes = kept[:_EXTREMES] + kept[-_EXTREMES:] if over else kept

    def _is_extreme(self, score: float) -> bool:
        ranked = [each.score for each in self._extremes]
        full = len(ranked) >= 2 * _EXTREMES
        return not full or score < ranked[_EXTREMES - 1] or score > ranked[_EXTREMES]


def write_pictures(folder: Path, shown: Sequence[Shown]) -> list[dict[str, str]]:
    """Write the pictures of images, and remove those of an earlier evaluation.

    Args:
        folder: The folder for the files.
        shown: The images.

    Returns:
        For each image its `id` and, by their kinds, its files relative to the folder above.
    """
    entries, names = [], set()
    for each in shown:
        entry = {"id": each.name}
        # an id may be longer than a file's name can be, or hold characters that it cannot
        stem = hashlib.sha256(each.name.encode()).hexdigest()[:16]
        for kind, content in each.files.items():
            name = f"{stem}_{kind}.{'jpg' if kind == 'image' else 'png'}"
            with write_whole(folder / name) as part:
                part.write_bytes(content)
            entry[kind] = f"{folder.name}/{name}"
            names.add(name)
        entries.append(entry)
    for old in folder.glob("?" * 16 + "_*.*"):
        if old.name not in names:
            old.unlink()
    return entries


def _encoded(image: Tensor, maps: dict[str, Tensor], colors: NDArray[np.uint8]) -> dict[str, bytes]:
    """Return an image as JPEG and class maps as palette PNGs, at most 512 pixels wide and high."""
    picture = Image.fromarray(shrunk(rgb_array(image), _LONGEST_SIDE))
    files = {"image": _file(picture, "JPEG", quality=85)}
    for kind, labels in maps.items():
        ids = labels.to(torch.uint8).cpu().numpy()
        index = Image.fromarray(shrunk(ids, _LONGEST_SIDE))
        index.putpalette(colors.tobytes())
        files[kind] = _file(index, "PNG")
    return files


def _file(picture: Image.Image, kind: str, **options: Any) -> bytes:
    memory = io.BytesIO()
    picture.save(memory, kind, **options)
    return memory.getvalue()
