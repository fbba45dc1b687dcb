"""A folder of images and masks to train on, which appears when it is complete."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from lightning_seg.callbacks.mask_files import write_palette_png
from lightning_seg.callbacks.prediction_files import require_writable, shortened
from lightning_seg.errors import SetupError
from lightning_seg.files import PART, write_whole
from lightning_seg.label_selection import Codes

REPORT, PIECE = "autolabel.json", "data.yaml"
APART = "autolabelled"
"""The subfolder of images whose names labelled images have already."""


class LabelFolder:
    """Writes `images/<split>` and `masks/<split>` beside their place, and renames them at the end.

    Several processes may add images to it at the same time; one of them begins and ends it.

    Args:
        output: The folder, which must not exist, or be empty.
        colors: (256, 3) uint8 RGB colours of the class ids.

    Attributes:
        part: The folder in which the files are until they are complete.
        links: Number of images by the way that brought them here: `hard link`, `symbolic link`,
            `copy`, or `new file` for images that are no files.
    """

    def __init__(self, output: Path, colors: NDArray[np.uint8]) -> None:
        self.output = output.expanduser().absolute()
        self.colors = colors
        self.part = self.output.with_name(f"{PART}{self.output.name}")
        self._work = self.part / "work"
        self.links: Counter[str] = Counter()

    def require_free(self, sources: Iterable[Path]) -> None:
        """Raise an error for a folder that cannot be written, is not empty, or is among the data.

        Args:
            sources: Folders that the data module reads.

        Raises:
            SetupError: With the folder and the reason.
        """
        place = self.output.resolve()
        if self.output.exists() and not self.output.is_dir():
            raise SetupError(f"{self.output} is a file, not a folder", option="autolabel.output")
        if self.output.is_dir() and any(self.output.iterdir()):
            raise SetupError(
                f"{self.output} exists and is not empty: take another folder, or remove it",
                option="autolabel.output",
            )
        for folder in sources:
            if place.is_relative_to(folder.expanduser().resolve()):
                raise SetupError(
                    f"{self.output} lies in {folder}, whose images are read: new images there "
                    "would change the data",
                    option="autolabel.output",
                )
        require_writable(self.output.parent, "autolabel.output", "labels")

    def begin(self) -> None:
        """Remove what a killed run has left, and make the folder for the files."""
        self.discard()
        self._work.mkdir(parents=True)

    def discard(self) -> None:
        """Remove the files that are not complete."""
        shutil.rmtree(self.part, ignore_errors=True)

    # Predictions that wait for the thresholds

    def keep(self, number: int, labels: NDArray[np.uint8], codes: Codes) -> None:
        """Keep the prediction for an image until the thresholds are known, 3 bytes a pixel."""
        with (self._work / f"{number}.npz").open("wb") as file:
            np.savez(file, labels=labels, codes=codes)

    def kept(self, number: int) -> tuple[NDArray[np.uint8], Codes]:
        """Return the prediction for an image, and remove its file."""
        path = self._work / f"{number}.npz"
        with np.load(path) as arrays:
            found = arrays["labels"], arrays["codes"]
        path.unlink()
        return found

    # The images and masks to train on

    def add(
        self, split: str, name: str, image: Path | NDArray[Any], mask: NDArray[np.uint8]
    ) -> None:
        """Add an image and its mask.

        Args:
            split: `train` or `val`.
            name: The path of both files below the folders of the split, without their types.
            image: The file, or (H, W, C) uint8 values of an image that is no file.
            mask: (H, W) class ids, 255 where void.
        """
        write_palette_png(self.part / "masks" / split / f"{name}.png", mask, self.colors)
        if isinstance(image, Path):
            target = self.part / "images" / split / f"{name}{image.suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            self.links[_brought(image.resolve(), target)] += 1
            return
        target = self.part / "images" / split / f"{name}.png"
        with write_whole(target) as part:
            Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(part)
        self.links["new file"] += 1

    def finish(self, report: dict[str, Any], piece: dict[str, Any] | None) -> None:
        """Write the report and the piece of configuration, and let the folder appear.

        Args:
            report: The content of `autolabel.json`; a list in it has one entry a line.
            piece: The content of `data.yaml`; None writes none.
        """
        shutil.rmtree(self._work)
        with write_whole(self.part / REPORT) as part:
            part.write_text(_in_lines(report), encoding="utf-8")
        if piece is not None:
            with write_whole(self.part / PIECE) as part:
                text = yaml.safe_dump(piece, sort_keys=False, allow_unicode=True)
                part.write_text(f"# The images and masks of this folder.\n{text}", encoding="utf-8")
        self.part.replace(self.output)


def own_names(ids: Sequence[str], taken: Iterable[str]) -> list[str]:
    """Return the names under which images without labels are written, in the order of their ids.

    A name is the id below the folder of the split. An id that a labelled image has, too, gets a
    folder in front of it.

    Args:
        ids: The ids of images without labels.
        taken: The names of labelled images.

    Raises:
        SetupError: Two images would have one name.
    """
    used = set(taken)
    names = []
    for each in ids:
        parts = [part for part in PurePosixPath(each).parts if part not in ("/", "..")]
        name = "/".join([*parts[:-1], shortened(parts[-1], len(".jpeg"))])
        if name in used:
            name = f"{APART}/{name}"
        if name in used:
            raise SetupError(
                f"two images would be called {name}: rename one of them", option="data"
            )
        used.add(name)
        names.append(name)
    return names


def _brought(image: Path, target: Path) -> str:
    """Bring a file to its place without a copy where that is possible; return the way."""
    for way, bring in (("hard link", target.hardlink_to), ("symbolic link", target.symlink_to)):
        try:
            bring(image)
        except OSError:  # another disk, or a file system without links
            continue
        return way
    shutil.copyfile(image, target)
    return "copy"


def _in_lines(report: dict[str, Any]) -> str:
    """Return JSON in which every entry, and every entry of a list of dicts, has one line."""
    lines = []
    for name, value in report.items():
        text = json.dumps(value, ensure_ascii=False)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            rows = ",\n  ".join(json.dumps(each, ensure_ascii=False) for each in value)
            text = f"[\n  {rows}\n ]"
        lines.append(f" {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"
