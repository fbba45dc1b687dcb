"""What the page of the verb `app` shows of one or two trained networks, and of an image."""

from __future__ import annotations

import base64
import io
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from lightning_seg.commands.checkpoint_path import checkpoint_of
from lightning_seg.deployment.segmenter import WEIGHTS, colors_of, load_module
from lightning_seg.errors import SetupError, UserError
from lightning_seg.inference import Predictor
from lightning_seg.inference.windows import Block
from lightning_seg.pictures import color_table, palette_picture
from lightning_seg.training import SegmentationModule
from lightning_seg.version import __version__
from lightning_seg.views import rgb_array

Reader = Callable[[bytes, str], NDArray[Any]]

SHOWN_PIXELS = 4_000_000
"""Largest number of pixels of the pictures that a page gets. Of a larger image, it gets every n-th
pixel; the file of the mask and the areas are those of all pixels."""

SHOWN_SIDE = 8192
"""Largest side of the pictures that a page gets, in pixels: a canvas of a phone takes no more."""

OWN_OPTIONS = ("max_pixels", "image_range")
"""Options of the verb that a message to the page may name."""

_LEVEL = 3  # of the compression of masks, as in the files of `predict`
_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")


@dataclass(frozen=True)
class Side:
    """A trained network of the page.

    Attributes:
        name: The name of its checkpoint.
        module: The method, with its network, on the device.
    """

    name: str
    module: SegmentationModule

    @torch.inference_mode()
    def labels(self, image: torch.Tensor) -> NDArray[np.uint8]:
        """Return the (H, W) class ids of one (channels, H, W) image.

        Raises:
            SetupError: The network does not take an image of this size, or the memory is too small.
        """
        size = f"{image.shape[2]}x{image.shape[1]} pixels (width x height)"
        try:
            batch = {"image": image[None].to(self.module.device), "id": [""]}
            found: NDArray[np.uint8] = self.module.predict_step(batch, 0)["labels"][0].cpu().numpy()
        except UserError:
            raise
        except Exception as error:  # of a network, whose errors have no common class
            text = str(error)
            if isinstance(error, MemoryError) or any(each in text for each in _OUT_OF_MEMORY):
                raise SetupError(
                    f"the memory is too small for {size} at once; the option --inference.window "
                    "512 of the command divides the image into windows"
                ) from error
            first = text.strip().partition("\n")[0] or type(error).__name__
            raise SetupError(f"{self.name} does not take an image of {size}: {first}") from error
        return found


def load_sides(
    paths: Sequence[tuple[str, str]], predictor: Predictor, device: torch.device
) -> list[Side]:
    """Return the trained networks of some checkpoints.

    Args:
        paths: The option that names a checkpoint, what `export` wrote or the folder of a run, and
            its value.
        predictor: How the networks see images.
        device: Where the networks are.

    Raises:
        SetupError: A checkpoint cannot be used, or two of them have different classes or numbers of
            channels.
    """
    found = [_module(Path(given).expanduser(), option) for option, given in paths]
    names = distinct_names([path for path, _ in found])
    sides = []
    for name, (_, module) in zip(names, found, strict=True):
        predictor.require_window_for(module.network)
        module.predictor = predictor
        sides.append(Side(name, module.to(device)))
    for other in sides[1:]:
        _require_same(sides[0], other)
    return sides


def _module(path: Path, option: str) -> tuple[Path, SegmentationModule]:
    weights = path / WEIGHTS  # of a folder that `export` wrote
    checkpoint = weights if weights.is_file() else checkpoint_of(path, option)
    try:
        return checkpoint, load_module(checkpoint)
    except SetupError as error:
        raise SetupError(error.args[0], option=option if error.options else ()) from error


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return short names of checkpoints, which differ where the paths do.

    Examples:
        >>> distinct_names([Path("runs/a/checkpoints/best.ckpt")])
        ['a/best.ckpt']
        >>> distinct_names([Path("runs/a/x/best.ckpt"), Path("runs/b/x/best.ckpt")])
        ['a/x/best.ckpt', 'b/x/best.ckpt']
    """
    parts = [[part for part in path.absolute().parts if part != "checkpoints"] for path in paths]
    longest = max(map(len, parts))
    for count in range(2, longest + 1):
        names = ["/".join(each[-count:]) for each in parts]
        if len(set(names)) == len(names):
            break
    else:
        names = [str(path) for path in paths]
    return names


def _require_same(one: Side, other: Side) -> None:
    """Raise an error for two networks that cannot be compared on an image."""
    names, others = one.module.class_names, other.module.class_names
    if names != others:
        apart = [
            f"only {side.name} has {', '.join(alone[:5])}{', ...' * (len(alone) > 5)}"
            for side, alone in (
                (one, [name for name in names if name not in others]),
                (other, [name for name in others if name not in names]),
            )
            if alone
        ]
        reason = " and ".join(apart) or "the classes have another order"
        raise SetupError(
            f"{one.name} and {other.name} have different classes, so their masks cannot be "
            f"compared: {reason}",
            option="against",
        )
    if one.module.channels != other.module.channels:
        raise SetupError(
            f"{one.name} takes images of {one.module.channels} channels, and {other.name} of "
            f"{other.module.channels}",
            option="against",
        )


class Trial:
    """One or two trained networks that segment images for a page.

    Args:
        sides: The networks, which have the same classes and take the same images.
        read: Decodes the bytes of an image file; see `datamodules.uploads.upload_reader`.
        max_megabytes: Largest size of a file in units of 1,000,000 bytes.
        max_pixels: Largest height x width of an image.

    Attributes:
        ending: Set where no image is to be segmented any more; an image in windows ends after the
            window at hand.
    """

    def __init__(
        self, sides: Sequence[Side], read: Reader, max_megabytes: float, max_pixels: int
    ) -> None:
        self.sides = sides
        self.read = read
        self.max_bytes = int(max_megabytes * 1_000_000)
        self.max_pixels = max_pixels
        first = sides[0].module
        self.colors = color_table(first.num_classes, first.palette)
        self.ending = threading.Event()
        for side in sides:
            side.module.predictor.progress = self._until_the_end

    def _until_the_end(self, blocks: Iterable[Block], total: int) -> Iterator[Block]:
        """Yield the windows of an image until the server ends."""
        for block in blocks:
            self._require_running()
            yield block

    def _require_running(self) -> None:
        if self.ending.is_set():
            raise SetupError("the server is ending")

    def facts(self) -> dict[str, Any]:
        """Return what the page says of the networks, as plain values without paths."""
        first = self.sides[0].module
        colors = colors_of(first.class_names, first.palette)
        return {
            "sides": [
                {
                    "name": side.name,
                    "method": type(side.module).__name__,
                    "network": network_name(side.module.network),
                }
                for side in self.sides
            ],
            "classes": [
                {"name": name, "color": color}
                for name, color in zip(first.class_names, colors, strict=True)
            ],
            "channels": first.channels,
            "device": device_name(first.device),
            "seen": how_seen(first.predictor),
            "max_bytes": self.max_bytes,
            "max_pixels": self.max_pixels,
            "version": __version__,
        }

    def answer(self, data: bytes, name: str) -> dict[str, Any]:
        """Segment an image.

        Args:
            data: The bytes of an image file.
            name: The name of the file, for errors.

        Returns:
            The `width` and `height` of the image in pixels, its `picture` (JPEG) and, for each
            network, the `ids` (a grey PNG of class ids of the size of the picture), the `mask` (a
            palette PNG of class ids of the size of the image), the `pixels` of each class, and the
            `seconds` that it took; the seconds of reading; and the number of pixels in which two
            networks `differ`. Files are in base64.

        Raises:
            UserError: The file cannot be read, or a network does not take the image.
        """
        self._require_running()
        start = time.perf_counter()
        array = self.read(data, name)
        image = torch.from_numpy(array).permute(2, 0, 1)  # (H, W, channels) -> (channels, H, W)
        read = time.perf_counter() - start
        every, results = [], []
        step = step_of((array.shape[0], array.shape[1]))
        for side in self.sides:
            start = time.perf_counter()
            labels = side.labels(image)
            seconds = time.perf_counter() - start
            every.append(labels)
            small = Image.fromarray(np.ascontiguousarray(labels[::step, ::step]))
            counts = np.bincount(labels.ravel(), minlength=side.module.num_classes)
            results.append(
                {
                    "seconds": seconds,
                    "pixels": counts[: side.module.num_classes].tolist(),
                    "ids": _png(small),
                    "mask": _png(palette_picture(labels, self.colors)),
                }
            )
        picture = Image.fromarray(rgb_array(self.sides[0].module.picture(image)))
        return {
            "width": array.shape[1],
            "height": array.shape[0],
            "step": step,
            "picture": _encoded(picture.reduce(step), "JPEG", quality=90),
            "results": results,
            "differ": int((every[0] != every[1]).sum()) if len(every) > 1 else None,
            "seconds": read,
        }


def step_of(size: tuple[int, int]) -> int:
    """Return n, where a page gets every n-th pixel of an image of a (height, width).

    Examples:
        >>> step_of((2000, 2000)), step_of((2001, 2000)), step_of((1, 20_000))
        (1, 2, 3)
    """
    height, width = size
    by_area = math.ceil(math.sqrt(height * width / SHOWN_PIXELS))
    return max(1, by_area, math.ceil(max(height, width) / SHOWN_SIDE))


def sentence(error: UserError) -> str:
    """Return the message of an error for the page, with the option of the verb that changes it."""
    text = str(error.args[0])
    own = [each for each in error.options if each.partition(" ")[0] in OWN_OPTIONS]
    return f"{text} (the command's option --{own[0]})" if own else text


def network_name(network: torch.nn.Module) -> str:
    """Return the class of a network and the name of its encoder, where it has one."""
    inner = getattr(network, "network", network)  # of a network that another library has
    encoder = getattr(getattr(network, "encoder", None), "name", None)
    name = type(inner if isinstance(inner, torch.nn.Module) else network).__name__
    return f"{name} ({encoder})" if isinstance(encoder, str) else name


def device_name(device: torch.device) -> str:
    """Return the name of a device for people."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def how_seen(predictor: Predictor) -> str:
    """Return in words how networks see an image."""
    if predictor.window is None:
        words = ["the whole image"]
    else:
        words = [f"windows of {predictor.window[1]}x{predictor.window[0]} pixels"]
    words += ["mirrored, too"] * predictor.flip
    if predictor.scales != (1,):
        words.append(f"at the scales {', '.join(f'{each:g}' for each in predictor.scales)}")
    return ", ".join(words)


def _png(picture: Image.Image) -> str:
    return _encoded(picture, "PNG", compress_level=_LEVEL)


def _encoded(picture: Image.Image, form: str, **options: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format=form, **options)
    return base64.b64encode(buffer.getvalue()).decode()
