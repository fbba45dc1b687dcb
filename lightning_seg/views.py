"""What a method shows of an image: maps with a colour scale or a legend, and sheets of them.

A method returns views, which hold tensors. This module turns them into pictures.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from lightning_seg.pictures import (
    class_legend,
    color_table,
    font_of,
    overlay,
    scatter_plot,
    shortened,
)

VOID = 255
"""The class id of void pixels in a `ClassView`."""
RIGHT, WRONG, NOTHING = (0, 114, 178), (230, 97, 0), (185, 165, 220)
"""Blue, orange and lilac, which people with any colour vision tell apart."""

_BLACK, _GRAY, _WHITE = (0, 0, 0), (90, 90, 90), (255, 255, 255)
_EMPTY = np.array((205, 205, 205), np.uint8)
_GAP = 6
_HEADING, _KEY, _CAPTION = 20, 34, 17  # heights in pixels of a sheet's parts


@dataclass(frozen=True)
class View(ABC):
    """One map of an image, which becomes a cell of a sheet.

    Attributes:
        has_key: Whether `key` draws something.
    """

    has_key: ClassVar[bool] = False

    @abstractmethod
    def pixels(self, image: NDArray[np.uint8] | None, table: NDArray[np.uint8]) -> Image.Image:
        """Return the map in colours, at its own size.

        Args:
            image: The (H, W, 3) image that the map belongs to.
            table: (256, 3) colours of the classes.
        """

    def key(self, draw: ImageDraw.ImageDraw, left: int, top: int, width: int) -> None:
        """Draw what the colours mean, in a strip of 34 pixels height; nothing by default."""
        return

    @property
    def note(self) -> str:
        """The line below the cell."""
        return ""


@dataclass(frozen=True)
class ColorView(View):
    """A picture in colours.

    Args:
        image: (3, H, W) RGB, uint8 or floating point in [0, 1].
        caption: The line below the picture.
    """

    image: Tensor
    caption: str = ""

    def pixels(self, image: NDArray[np.uint8] | None, table: NDArray[np.uint8]) -> Image.Image:
        """Return the picture itself."""
        return Image.fromarray(rgb_array(self.image))

    @property
    def note(self) -> str:
        """The caption."""
        return self.caption


@dataclass(frozen=True)
class ClassView(View):
    """Class ids, in the colours of the classes over the image.

    Args:
        labels: (H, W) class ids, 255 where void.
        caption: The line below the picture.
    """

    labels: Tensor
    caption: str = ""

    def pixels(self, image: NDArray[np.uint8] | None, table: NDArray[np.uint8]) -> Image.Image:
        """Return the colours of the classes, mixed with the image."""
        ids = self.ids
        below = np.full((*ids.shape, 3), 128, np.uint8) if image is None else image
        return Image.fromarray(overlay(below, ids, table, 0.7))

    @property
    def ids(self) -> NDArray[np.uint8]:
        """The class ids as an (H, W) uint8 array."""
        return self.labels.to("cpu").numpy().astype(np.uint8)

    @property
    def note(self) -> str:
        """The caption."""
        return self.caption


@dataclass(frozen=True)
class ScaleView(View):
    """Numbers on a colour scale, from dark violet (low) to yellow (high).

    Args:
        values: (H, W) numbers, NaN where there is none.
        low: The number of the scale's dark end.
        high: The number of the scale's bright end, above `low`.
        meaning: What the numbers are, for the line below the scale.
    """

    has_key = True
    values: Tensor
    low: float
    high: float
    meaning: str

    def pixels(self, image: NDArray[np.uint8] | None, table: NDArray[np.uint8]) -> Image.Image:
        """Return the colours of the numbers, grey where there is none."""
        values = self.values.detach().float().to("cpu").numpy()
        nothing = np.isnan(values)
        steps = (np.nan_to_num(values) - self.low) / max(self.high - self.low, 1e-12) * 255
        colors = _scale()[np.clip(steps, 0, 255).round().astype(np.uint8)]
        colors[nothing] = _EMPTY
        return Image.fromarray(colors)

    def key(self, draw: ImageDraw.ImageDraw, left: int, top: int, width: int) -> None:
        """Draw the scale with the numbers at its ends."""
        font = font_of("DejaVuSans.ttf", 11)
        ends = f"{self.low:.2g}", f"{self.high:.3g}"
        begin = left + round(font.getlength(ends[0])) + 5
        end = left + width - round(font.getlength(ends[1])) - 5
        for x in range(begin, end):
            color = _scale()[round(255 * (x - begin) / max(end - begin - 1, 1))]
            draw.line((x, top + 3, x, top + 13), tuple(color.tolist()))
        draw.text((left, top + 1), ends[0], _BLACK, font)
        draw.text((end + 5, top + 1), ends[1], _BLACK, font)
        draw.text((left, top + 16), shortened(self.meaning, font, width), _GRAY, font)


@dataclass(frozen=True)
class KindView(View):
    """A few kinds of pixels, each in a colour of its own over the grey image.

    Args:
        kinds: (H, W) numbers of kinds; a number without a kind leaves the pixel grey.
        colors: RGB colour in 0..255 of every kind by its name, in the order of the numbers. The
            name is part of the legend.
    """

    has_key = True
    kinds: Tensor
    colors: Mapping[str, tuple[int, int, int]]

    def pixels(self, image: NDArray[np.uint8] | None, table: NDArray[np.uint8]) -> Image.Image:
        """Return the grey image, tinted where there is a kind."""
        kinds = self.kinds.to("cpu").numpy()
        tinted = np.full((*kinds.shape, 3), 200, np.uint8)
        if image is not None:
            gray = 90 + image.mean(-1, keepdims=True) * (150 / 255)
            tinted = np.broadcast_to(gray, image.shape).astype(np.uint8).copy()
        for number, color in enumerate(self.colors.values()):
            chosen = kinds == number
            tinted[chosen] = (0.2 * tinted[chosen] + 0.8 * np.array(color)).astype(np.uint8)
        return Image.fromarray(tinted)

    def key(self, draw: ImageDraw.ImageDraw, left: int, top: int, width: int) -> None:
        """Draw a square of the colour beside the name of every kind."""
        font, x, y = font_of("DejaVuSans.ttf", 11), left, top
        for name, color in self.colors.items():
            needed = round(font.getlength(name)) + 25
            if x > left and x + needed > left + width:
                x, y = left, y + 16
            draw.rectangle((x, y + 3, x + 12, y + 13), color, _GRAY)
            draw.text((x + 16, y + 1), name, _BLACK, font)
            x += needed


@dataclass(frozen=True)
class PointsView:
    """Points in the plane with a class each, which become a picture of their own.

    Args:
        points: (N, 2) coordinates.
        labels: (N,) class ids.
        title: The line above the picture.
    """

    points: Tensor
    labels: Tensor
    title: str

    def picture(
        self, class_names: Sequence[str], palette: Sequence[Sequence[int]] | None
    ) -> NDArray[np.uint8]:
        """Return the (H, W, 3) picture, with a legend of the classes."""
        table = color_table(len(class_names), palette)
        points, labels = self.points.float().cpu().numpy(), self.labels.cpu().numpy()
        return scatter_plot(points, labels, class_names, table, self.title)


Views = dict[str, View]
"""The views of one image by the heading of their column."""


def correctness(labels: Tensor, mask: Tensor, ignore_index: int) -> KindView:
    """Return where class ids agree with a mask.

    Args:
        labels: (H, W) class ids.
        mask: (H, W) class ids of the truth.
        ignore_index: The class id of void pixels in `mask`.
    """
    kinds = (labels != mask).long() - 1  # right pixels have no colour
    colors = {"wrong": WRONG, "void": NOTHING}
    return KindView(kinds.masked_fill(mask == ignore_index, 1), colors)


def selected(labels: Tensor, mask: Tensor, ignore_index: int) -> KindView:
    """Return which pixels have a pseudo-label, and whether it is right.

    Args:
        labels: (H, W) pseudo-labels, `ignore_index` where there is none.
        mask: (H, W) class ids of the truth.
        ignore_index: The class id of void pixels and of pixels without a pseudo-label.
    """
    kinds = (labels != mask).long()
    kinds = kinds.masked_fill(mask == ignore_index, 2).masked_fill(labels == ignore_index, -1)
    return KindView(kinds, {"right": RIGHT, "wrong": WRONG, "void": NOTHING})


def rgb_of(image: Tensor, channels: Sequence[int] | None = None) -> Tensor:
    """Return a picture of an image of any number of channels; RGB images are returned as they are.

    The values of other images are stretched, so that the darkest and brightest 2 % of each shown
    channel are black and white.

    Args:
        image: (..., C, H, W), uint8 or in [0, 1].
        channels: The channels to show as red, green and blue, or a single one; None shows the first
            three, or the first one of fewer.

    Returns:
        (..., 3, H, W) of the type of `image`.
    """
    count = image.shape[-3]
    if count == 3 and channels is None:
        return image
    chosen = list(channels) if channels is not None else [0, 1, 2] if count > 3 else [0]
    shown = image[..., chosen, :, :].expand(*image.shape[:-3], 3, *image.shape[-2:])
    if count in (1, 3):
        return shown
    values = shown.flatten(-2).float()
    low, high = (_quantile(values, share)[..., None, None] for share in (0.02, 0.98))
    white = 1 if image.is_floating_point() else 255
    stretched = (shown.float() - low) / (high - low).clamp(min=1e-6) * white
    return stretched.clamp(0, white).to(image.dtype)


def _quantile(values: Tensor, share: float) -> Tensor:
    """Return the values (...) below which a share of (..., N) values lies, of any number."""
    ordered = values[..., :: max(1, values.shape[-1] // 100_000)].sort(-1).values
    return ordered[..., round(share * (ordered.shape[-1] - 1))]


def rgb_array(image: Tensor) -> NDArray[np.uint8]:
    """Return a (3, H, W) image, uint8 or in [0, 1], as an (H, W, 3) uint8 array."""
    if image.is_floating_point():
        image = (image.detach().clamp(0, 1) * 255).round().byte()
    return np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())


def sheet(
    rows: Sequence[Views],
    class_names: Sequence[str] = (),
    palette: Sequence[Sequence[int]] | None = None,
    width: int = 256,
) -> NDArray[np.uint8]:
    """Lay out the views of several images: a row for each image, a column for each view.

    Every column has a heading and, where its colours have a meaning, a scale or a legend. The
    classes that are in the pictures are listed at the bottom.

    Args:
        rows: The views of every image by the heading of their column; a missing one leaves its
            cell empty. At least one row has a view.
        class_names: One name per class.
        palette: One RGB colour in 0..255 per class; None takes the colours of PASCAL VOC.
        width: Width of a column in pixels.

    Returns:
        (H, W, 3) RGB.
    """
    table = color_table(len(class_names), palette)
    headings = list(dict.fromkeys(heading for row in rows for heading in row))
    drawn = [_cells(row, table, width) for row in rows]
    heights = [max((cell.height for cell in row.values()), default=1) for row in drawn]
    shown = [(heading, *_picture_of(view)) for row in rows for heading, view in row.items()]
    legend = class_legend(shown, class_names)
    total = len(headings) * (width + _GAP) + _GAP
    columns = max(1, (total - _GAP) // 190)
    bottom = 18 * -(-len(legend) // columns) + 6 * bool(legend)
    header = _HEADING + _KEY * any(view.has_key for row in rows for view in row.values())
    size = (total, header + sum(heights) + _CAPTION * len(rows) + bottom)
    canvas = Image.new("RGB", size, _WHITE)
    draw = ImageDraw.Draw(canvas)
    _draw_headings(draw, rows, headings, width)
    top, font = header, font_of("DejaVuSans.ttf", 11)
    for row, cells, height in zip(rows, drawn, heights, strict=True):
        for heading, cell in cells.items():
            left = _GAP + headings.index(heading) * (width + _GAP)
            canvas.paste(cell, (left, top))
            note = shortened(row[heading].note, font, width)
            draw.text((left, top + cell.height + 1), note, _GRAY, font)
        top += height + _CAPTION
    for number, (index, name) in enumerate(legend):
        x, y = _GAP + number % columns * 190, top + 6 + number // columns * 18
        if index is not None:
            draw.rectangle((x, y + 2, x + 20, y + 13), tuple(table[index].tolist()), _GRAY)
        draw.text((x + 26, y), shortened(name, font, 158), _BLACK, font)
    return np.asarray(canvas)


def _draw_headings(
    draw: ImageDraw.ImageDraw, rows: Sequence[Views], headings: Sequence[str], width: int
) -> None:
    bold = font_of("DejaVuSans-Bold.ttf", 12)
    for column, heading in enumerate(headings):
        left = _GAP + column * (width + _GAP)
        draw.text((left, 3), shortened(heading, bold, width), _BLACK, bold)
        view = next(row[heading] for row in rows if heading in row)
        view.key(draw, left, _HEADING, width)


def _cells(views: Views, table: NDArray[np.uint8], width: int) -> dict[str, Image.Image]:
    """Return the views of one image as pictures of one width."""
    first = views.get("image")
    image = rgb_array(first.image) if isinstance(first, ColorView) else None
    cells = {}
    for heading, view in views.items():
        picture = view.pixels(image, table)
        height = max(1, min(2 * width, round(picture.height * width / picture.width)))
        smaller = width < picture.width
        kind = Image.Resampling.BOX if smaller else Image.Resampling.NEAREST
        if isinstance(view, ColorView):
            kind = Image.Resampling.LANCZOS if smaller else Image.Resampling.BICUBIC
        cells[heading] = picture.resize((width, height), kind)
    return cells


def _picture_of(view: View) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Return an empty image and, for classes, the class ids: what the legend is made of."""
    return np.zeros((1, 1, 3), np.uint8), view.ids if isinstance(view, ClassView) else None


@cache
def _scale() -> NDArray[np.uint8]:
    """Return the (256, 3) colours of the scale: matplotlib's viridis."""
    from matplotlib import colormaps  # imported here, because it takes long

    colors = colormaps["viridis"](np.arange(256))[:, :3]
    return np.asarray((colors * 255).round(), np.uint8)
