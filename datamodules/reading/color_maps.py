"""Colour maps: the names of classes, and the colour or value by which masks store each of them."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datamodules.errors import DataError, some
from datamodules.reading.files import read_lines

Codes = dict[str, tuple[int, ...]]
"""By the name of a class three numbers of a colour, or one stored value."""

_HEX = re.compile(r"#([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})")
_NUMBERS = re.compile(r"[\d\s]+")
_NUMBER = re.compile(r"[+-]?\d+(\.0*)?")
_CVAT = re.compile(r"(.+):(\d+),(\d+),(\d+):[^:]*:[^:]*")  # name:r,g,b:parts:actions


def read_color_map(source: str | Path | Mapping[Any, Sequence[int]]) -> Codes:
    """Return RGB colours, or stored values, by class name, in the order of a mapping or a file.

    Args:
        source: Mapping of names to three numbers in 0..255, or the path of a file. A `.json` or
            `.yaml` file holds such a mapping. Any other file has a class in every line, with or
            without a header before them: a name and a colour, `road,128,64,128`, in either order
            and with commas, semicolons, tabs or spaces between them; `name:r,g,b:parts:actions`,
            CVAT's `labelmap.txt`; or a stored value and a name, Roboflow's `_classes.csv`.

    Raises:
        DataError: The file is missing, a name is empty or comes twice, or a colour is not three
            numbers in 0..255.
    """
    if isinstance(source, Mapping):
        return _checked(source.items(), "of the configuration")
    path = Path(source).expanduser()
    if not path.is_file():
        raise DataError(f"colour map {path} does not exist", option="color_map")
    if path.suffix in (".json", ".yaml", ".yml"):
        return _checked(_pairs(path), path)
    lines = [line for line in read_lines(path) if not line.startswith(("#", "//")) or _is_row(line)]
    rows = [_row(line) for line in lines]
    if rows and rows[0] is None and not any(cell.isdigit() for cell in _cells(lines[0])):
        rows, lines = rows[1:], lines[1:]  # a header
    for line, row in zip(lines, rows, strict=True):
        if row is None:
            raise DataError(
                f"colour map {path}: the line {line!r} names no class and its colour of three "
                "numbers in 0..255, such as road,128,64,128",
                option="color_map",
            )
    return _checked([row for row in rows if row is not None], path)


def _is_row(line: str) -> bool:
    return _row(line) is not None


def _cells(line: str) -> list[str]:
    """Return the parts of a line between its separators; numbers are parted by spaces too."""
    separator = next((each for each in (",", ";", "\t") if each in line), None)
    if separator is None:
        return line.split()
    [parts] = csv.reader([line], delimiter=separator, skipinitialspace=True)
    cells: list[str] = []
    for part in parts:
        text = part.strip().strip("()[]")
        cells += text.split() if _NUMBERS.fullmatch(text) else [text]
    return cells


def _row(line: str) -> tuple[str, tuple[int, ...]] | None:
    """Return name and colour, or name and value, of a line; None for a line of another form."""
    if match := _CVAT.fullmatch(line):
        name, *color = match.groups()
        return name, tuple(map(int, color))
    cells = _cells(line)
    for place, cell in enumerate(cells):
        if match := _HEX.fullmatch(cell):
            return _name(cells[:place] + cells[place + 1 :]), _channels(match)
    is_number = [_NUMBER.fullmatch(cell) is not None for cell in cells]
    if len(cells) == 2 and sum(is_number) == 1:
        place = is_number.index(True)
        return cells[1 - place], (int(float(cells[place])),)
    named = [place for place, number in enumerate(is_number) if not number]
    before, after = (named[0], named[-1] + 1) if named else (len(cells), len(cells))
    color = cells[after:] or cells[:before][-3:]
    if len(color) == 4 and color[3] == "255":  # opaque
        color = color[:3]
    if len(color) != 3 or len(cells) < 4 or not all(map(_NUMBER.fullmatch, color)):
        return None
    name = cells[:after] if cells[after:] else cells[before:]
    return _name(name or cells[:1]), tuple(int(float(cell)) for cell in color)


def _name(cells: list[str]) -> str:
    """Return the name in a row, without an index before it."""
    return " ".join([cell for cell in cells if not _NUMBER.fullmatch(cell)] or cells)


def _channels(match: re.Match[str]) -> tuple[int, ...]:
    return tuple(int(part, 16) for part in match.groups())


def _pairs(path: Path) -> list[tuple[Any, Any]]:
    """Return the names and colours of a JSON or YAML file, also of names that come twice."""
    import yaml

    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            content = json.loads(text, object_pairs_hook=list)
        else:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
            loader = yaml.SafeLoader("")
            pairs = node.value if isinstance(node, yaml.MappingNode) else []
            content = [
                [loader.construct_object(each, deep=True) for each in pair] for pair in pairs
            ]
    except (ValueError, yaml.YAMLError) as error:
        raise DataError(f"colour map {path} cannot be read: {error}", option="color_map") from error
    if (
        not isinstance(content, list)
        or not content
        or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in content)
    ):
        raise DataError(f"colour map {path} must map class names to [r, g, b]", option="color_map")
    return [(name, code) for name, code in content]


def _checked(pairs: Iterable[tuple[Any, Any]], origin: object) -> Codes:
    """Return names and codes, or raise an error that names class and origin."""
    listed = list(pairs)
    names = class_names([name for name, _ in listed], "color_map", f"colour map {origin}")
    codes = {name: _code(name, code, origin) for name, (_, code) in zip(names, listed, strict=True)}
    if len({len(code) for code in codes.values()}) > 1:
        raise DataError(
            f"colour map {origin} must hold a colour for every class, or a value for every class",
            option="color_map",
        )
    return codes


def _code(name: str, code: Any, origin: object) -> tuple[int, ...]:
    """Return a colour as three numbers, or a stored value as one."""
    if isinstance(code, str) and (match := _HEX.fullmatch(code)):
        return _channels(match)
    if isinstance(code, int) and not isinstance(code, bool):
        code = (code,)
    try:
        channels = tuple(int(channel) for channel in code)
    except (TypeError, ValueError):
        channels = ()
    if len(channels) == 1:
        return channels
    if len(channels) != 3 or not all(0 <= channel <= 255 for channel in channels):
        raise DataError(
            f"colour map {origin}: colour of {name!r} must be three numbers in 0..255, not {code}",
            option="color_map",
        )
    return channels


def class_names(names: Sequence[Any], option: str, origin: str = "") -> list[str]:
    """Return the names of classes, or raise an error for names that cannot be told apart.

    Args:
        names: One name per class.
        option: Name of the option that gave them, for errors.
        origin: Name of the file or mapping that has them; empty for the option itself.

    Raises:
        DataError: A name is empty, comes twice, or is no text.
    """
    where = origin or option
    for name in names:
        if isinstance(name, bool) or name is None:
            raise DataError(
                f"{where} has the class name {name}: YAML reads no, off, yes, on, true, false and "
                "null as values, so that such a name needs quotes",
                option=option,
            )
    texts = [str(name).strip() for name in names]
    if "" in texts:
        raise DataError(f"{where} has an empty class name", option=option)
    if twice := [name for name, times in Counter(texts).items() if times > 1]:
        raise DataError(f"{where} names {some(twice)} more than once", option=option)
    return texts
