"""Pictures of class ids: colour tables, overlays, charts, scatter plots and contact sheets.

Images are RGB arrays of (H, W, 3) uint8. Class ids are (H, W) uint8 arrays with 255 for void.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Picture = tuple[str, NDArray[np.uint8], NDArray[np.uint8] | None]
"""An id, an (H, W, 3) RGB image, and its (H, W) class ids, or None for an image without labels."""


def color_table(
    num_classes: int, palette: Sequence[Sequence[int]] | None = None
) -> NDArray[np.uint8]:
    """Return the RGB colours of all class ids.

    Without a palette the colours are those of PASCAL VOC, which spreads the bits of the class id
    over the high bits of red, green and blue. Void (255) is white.

    Args:
        num_classes: Number of classes, 1 to 255.
        palette: One RGB colour in 0..255 per class; None takes the colours of PASCAL VOC.

    Returns:
        (256, 3) uint8; the rows of other ids than classes and void are black.

    Examples:
        >>> color_table(3)[[1, 2, 255]].tolist()
        [[128, 0, 0], [0, 128, 0], [255, 255, 255]]
    """
    table = np.zeros((256, 3), np.uint8)
    if palette is not None:
        table[:num_classes] = palette
    else:
        for index in range(num_classes):
            for bit in range(8):
                for channel in range(3):
                    table[index, channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
    table[255] = 255
    return table


def palette_picture(labels: NDArray[np.uint8], table: NDArray[np.uint8]) -> Image.Image:
    """Return class ids as a picture that stores them, and shows the colours of the classes.

    Args:
        labels: (H, W) class ids, 255 for void.
        table: (256, 3) colours from `color_table`.

    Examples:
        >>> picture = palette_picture(np.array([[2]], np.uint8), color_table(3))
        >>> picture.getpixel((0, 0)), picture.convert("RGB").getpixel((0, 0))
        (2, (0, 128, 0))
    """
    picture = Image.fromarray(labels)
    picture.putpalette(table.tobytes())
    return picture


def overlay(
    image: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    table: NDArray[np.uint8],
    opacity: float = 0.5,
) -> NDArray[np.uint8]:
    """Blend the colours of classes over an image; void pixels keep the image.

    Args:
        image: (H, W, 3) RGB.
        labels: (H, W) class ids, 255 for void.
        table: (256, 3) colours from `color_table`.
        opacity: Share of the class colours, in [0, 1].

    Returns:
        (H, W, 3) RGB.
    """
    blended = _blends(table.tobytes(), opacity)
    found = np.empty_like(image)
    first = labels.astype(np.int32) * 768  # (H, W), the place of a class among its three channels
    for channel in range(3):
        # (H, W) values -> (H, W) blended values
        found[..., channel] = blended[first + 256 * channel + image[..., channel]]
    return found


@lru_cache(maxsize=8)
def _blends(table: bytes, opacity: float) -> NDArray[np.uint8]:
    """Return every value of a channel blended with every class, (256 classes * 3 * 256 values)."""
    values = np.arange(256)
    colors = np.frombuffer(table, np.uint8).reshape(256, 3)
    mixed = (values * (1 - opacity) + colors[..., None] * opacity).round()
    mixed[255] = values  # void
    return mixed.astype(np.uint8).ravel()


def share_chart(
    path: Path,
    class_names: Sequence[str],
    shares: Mapping[str, NDArray[np.float64]],
    table: NDArray[np.uint8],
) -> None:
    """Draw the shares of the pixels of all classes as a bar chart, the largest first.

    The first split gets bars in the colours of the classes, each further split one kind of marker.
    The axis is logarithmic where shares differ by more than a factor of 100.

    Args:
        path: The PNG file to write.
        class_names: One name per class.
        shares: (C,) shares in [0, 1] by the name of the split; 0 for absent classes.
        table: (256, 3) colours from `color_table`.
    """
    # Imported here, because it takes long. Unlike pyplot, Figure has no global state.
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    values = {name: 100 * np.asarray(each) for name, each in shares.items()}
    first, *others = values
    order = np.argsort(-values[first], kind="stable")
    panels = -(-len(order) // 60)  # side by side, of at most 60 classes each
    rows = -(-len(order) // panels)
    positive = np.concatenate([each[each > 0] for each in values.values()])
    low, high = (positive.min(), positive.max()) if len(positive) else (1, 1)
    logarithmic = bool(high > 100 * low)
    limits = (10 ** np.floor(np.log10(low / 1.5)), 1.4 * high) if logarithmic else (0, 1.05 * high)
    width = 8 if panels == 1 else 5.6 * panels
    figure = Figure(figsize=(width, 0.21 * rows + 1.4), dpi=110, layout="constrained")
    marks: list[Any] = []
    for panel, axes in enumerate(figure.subplots(1, panels, squeeze=False)[0]):
        chosen = order[panel * rows : (panel + 1) * rows]
        places = np.arange(len(chosen))
        bars = values[first][chosen]
        # An outline keeps white classes visible.
        axes.barh(places, bars, 0.72, color=table[chosen] / 255, edgecolor="0.35", linewidth=0.5)
        marks = [
            axes.plot(values[name][chosen], places, mark, color="k", mfc="w", ms=4.5, label=name)[0]
            for name, mark in zip(others, "o^sD", strict=False)
        ]
        # The limits are set before the scale, which finds none in a panel of absent classes.
        axes.set(xlim=limits, xscale="log" if logarithmic else "linear", ylim=(rows - 0.4, -0.6))
        axes.set_yticks(places, [class_names[index] for index in chosen], parse_math=False)
        axes.tick_params(axis="y", length=0, labelsize=9)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel("% of the pixels")
        axes.set_axisbelow(True)
        axes.grid(axis="x", color="0.88")
        axes.spines[["top", "right"]].set_visible(False)
        for place, share in zip(places, bars, strict=True):
            number = f"{share:.3g}" if share > 0 else "absent"
            beside = axes.get_yaxis_transform()  # x relative to the frame, y in bars
            axes.text(1.01, place, number, transform=beside, va="center", fontsize=8, color="0.25")
    if others:
        handles = [
            Patch(facecolor="0.7", edgecolor="0.35", label=f"{first} (bars, numbers)"),
            *marks,
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), frameon=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # names in a script that the font lacks
        figure.savefig(path, format="png")


def scatter_plot(
    points: NDArray[np.floating[Any]],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    table: NDArray[np.uint8],
    title: str = "",
) -> NDArray[np.uint8]:
    """Draw points in the colours of their classes, with a legend beside them.

    Args:
        points: (N, 2) coordinates.
        labels: (N,) class ids.
        class_names: One name per class.
        table: (256, 3) colours from `color_table`.
        title: The title above the plot.

    Returns:
        (H, W, 3) RGB. The legend lists the classes that have points, with their numbers of points.
    """
    # Imported here, because it takes long.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), dpi=100, layout="constrained")
    canvas: Any = FigureCanvasAgg(figure)
    axes = figure.subplots()
    for label in np.unique(labels):
        chosen = points[labels == label]
        name = f"{_legend_name(class_names, label)} ({len(chosen)})"
        # An outline keeps white classes visible.
        x, y = chosen.T
        axes.scatter(
            x, y, s=18, color=table[label] / 255, edgecolor="0.35", linewidth=0.4, label=name
        )
    axes.set_title(title, fontsize=10)
    axes.set_aspect("equal", "datalim")
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    columns = 1 + len(np.unique(labels)) // 28
    figure.legend(loc="outside right upper", frameon=False, fontsize=8, ncols=columns)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # names in a script that the font lacks
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _legend_name(class_names: Sequence[str], label: int) -> str:
    """Return the name of a class as matplotlib prints it unchanged.

    `$` would begin a formula, and entries with a leading `_` are left out of legends.
    """
    return class_names[label].replace("$", r"\$").lstrip("_")


def contact_sheet(
    groups: Mapping[str, Sequence[Picture]],
    class_names: Sequence[str],
    table: NDArray[np.uint8],
    columns: int = 4,
) -> Image.Image:
    """Lay out images beside their overlays, grouped under headings, with a legend at the bottom.

    Args:
        groups: Pictures by heading; at least one picture in all.
        class_names: One name per class.
        table: (256, 3) colours from `color_table`.
        columns: Number of pictures in a row, at least 1.

    Returns:
        An RGB picture, 1796 pixels wide with four columns.
    """
    shown = [picture for pictures in groups.values() for picture in pictures]
    # The cells have the median aspect ratio of the images, within limits.
    aspect = np.median([image.shape[0] / image.shape[1] for _, image, _ in shown])
    width, gap = 216, 12
    height = round(width * float(np.clip(aspect, 0.4, 1.6)))
    step_x, step_y = 2 * width + 2 + gap, height + 18 + gap
    font, bold = font_of("DejaVuSans.ttf", 12), font_of("DejaVuSans-Bold.ttf", 15)
    legend = class_legend(shown, class_names)
    legend_columns = max(1, (columns * step_x - gap) // 200)
    rows = sum(-(-len(pictures) // columns) for pictures in groups.values())
    total = 30 * len(groups) + rows * step_y + 18 * -(-len(legend) // legend_columns) + 24
    sheet = Image.new("RGB", (columns * step_x + gap, total + 2 * gap), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    top = gap
    for heading, pictures in groups.items():
        draw.text((gap, top), heading, (0, 0, 0), bold)
        top += 30
        for number, (name, image, labels) in enumerate(pictures):
            x, y = gap + number % columns * step_x, top + number // columns * step_y
            halves = [image] if labels is None else [image, overlay(image, labels, table, 0.6)]
            for half, picture in enumerate(halves):
                fitted = _fit(picture, (width, height))
                sheet.paste(fitted, (x + half * (width + 2), y))
            draw.text((x, y + height + 2), shortened(name, font, 2 * width), (60, 60, 60), font)
        top += -(-len(pictures) // columns) * step_y
    for number, (index, name) in enumerate(legend):
        x, y = gap + number % legend_columns * 200, top + number // legend_columns * 18
        if index is not None:
            color = tuple(table[index].tolist())
            draw.rectangle((x, y + 2, x + 20, y + 13), color, (90, 90, 90))
        draw.text((x + 26, y), shortened(name, font, 168), (0, 0, 0), font)
    return sheet


def class_legend(
    shown: Sequence[Picture], class_names: Sequence[str], at_most: int = 80
) -> list[tuple[int | None, str]]:
    """Return the entries of the legend: all classes, or the most frequent ones of many.

    Args:
        shown: The pictures of the sheet.
        class_names: One name per class.
        at_most: Largest number of classes in the legend.

    Returns:
        Pairs of class id and name. Entries without a colour have None for an id; there is none at
        all where no picture has labels.
    """
    counts = np.zeros(256, np.int64)
    for _, _, labels in shown:
        if labels is not None:
            counts += np.bincount(labels.ravel(), minlength=256)
    if not counts.any():
        return []
    indices = list(range(len(class_names)))
    if len(indices) > at_most:
        kept = np.argsort(-counts[: len(indices)], kind="stable")[:at_most]
        indices = sorted(index for index in kept.tolist() if counts[index])
    legend: list[tuple[int | None, str]] = [(index, class_names[index]) for index in indices]
    if counts[255]:
        legend.append((None, "void: not tinted"))
    if (left := int((counts[: len(class_names)] > 0).sum()) - len(indices)) > 0:
        legend.append((None, f"and {left} more classes"))
    return legend


def _fit(picture: NDArray[np.uint8], box: tuple[int, int]) -> Image.Image:
    """Scale a picture to fit into a box of (width, height); the rest of the box is grey."""
    scale = min(box[0] / picture.shape[1], box[1] / picture.shape[0])
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    smooth = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    fitted = Image.new("RGB", box, (225, 225, 225))
    place = ((box[0] - size[0]) // 2, (box[1] - size[1]) // 2)
    fitted.paste(Image.fromarray(picture).resize(size, smooth), place)
    return fitted


@cache
def font_of(name: str, size: int) -> Any:
    """Load one of matplotlib's fonts, which have Greek and Cyrillic letters too."""
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path(), "fonts/ttf", name)), size)


def shortened(text: str, font: Any, width: int) -> str:
    """Cut the beginning of a text wider than `width` pixels; ids mostly differ at their ends."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"…{text}") > width:
        text = text[1:]
    return f"…{text}"
