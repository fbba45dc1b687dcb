"""The gates that keep the code a house one can live in."""

from __future__ import annotations

import ast
import importlib.util
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from places import ROOT

import lightning_seg

SPEC = importlib.util.spec_from_file_location("make_diagram", ROOT / "docs/make_diagram.py")
diagram = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(diagram)

FILES = [
    ROOT / "cli.py",
    *sorted((ROOT / "datamodules").rglob("*.py")),
    *sorted((ROOT / "lightning_seg").rglob("*.py")),
]
FLOORS = [
    ["ground"],
    ["lightning_seg/losses", "lightning_seg/networks", "lightning_seg/metrics"],
    ["lightning_seg/inference"],
    ["lightning_seg/training"],
    ["lightning_seg/methods", "lightning_seg/deployment"],
    ["lightning_seg/callbacks"],
    ["lightning_seg/commands"],
    ["cli"],
]
DATA_FLOORS = [
    ["ground"],
    ["datamodules/reading"],
    ["datamodules/selection"],
    ["datamodules/augmenting"],
    ["datamodules/loading"],
    ["datamodules"],
    ["cli"],
]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_there_is_no_import_circle() -> None:
    graph = diagram.imports()
    assert len(graph) == len(FILES)
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert set(order) == set(graph)


@pytest.mark.parametrize("floors", [FLOORS, DATA_FLOORS], ids=["lightning_seg", "datamodules"])
def test_no_module_imports_from_a_higher_floor_or_from_the_other_side(
    floors: list[list[str]],
) -> None:
    height = {room: floor for floor, rooms in enumerate(floors) for room in rooms}
    seen, wrong = set(), []
    for module, targets in diagram.imports().items():
        room = diagram.room(module)
        if room not in height or room == "cli" or module in diagram.PACKAGES:
            continue
        seen.add(room)
        allowed = {each for each in height if height[each] < height[room]} | {room}
        # the package's own module holds its version, and its name the place of its files
        targets = {diagram.room(target) for target in targets} - {"lightning_seg"}
        wrong += [(module, target) for target in targets - allowed]
    assert wrong == []
    assert seen == height.keys() - {"cli"}


def test_losses_networks_and_inference_know_no_lightning() -> None:
    for folder in ("losses", "networks", "inference"):
        for path in (ROOT / "lightning_seg" / folder).rglob("*.py"):
            assert not re.search(r"^\s*(from|import) lightning\b", path.read_text(), re.M), path


def test_no_file_has_more_than_400_lines() -> None:
    lengths = {name(path): len(path.read_text().splitlines()) for path in FILES}
    assert {path: length for path, length in lengths.items() if length > 400} == {}


def test_no_function_has_more_than_50_lines() -> None:
    long = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            body = node.body[1:] if ast.get_docstring(node) else node.body
            if body and body[-1].end_lineno - body[0].lineno >= 50:
                long.append((name(path), node.name))
    assert long == []


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if "commands" not in path.parts and path.stem != "cli"],
    ids=name,
)
def test_no_flag_stands_in_library_code(path: Path) -> None:
    """In Python an option is an argument; the command alone knows that it is a flag."""
    strings = [
        node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    flags = [each for text in strings for each in re.findall(r"(?<!\S)[`'\"(]?--[a-z]\S*", text)]
    # the one example of what the command makes of an option
    assert [each for each in flags if path.name != "errors.py"] == []


@pytest.mark.parametrize("path", [path for path in FILES if path.name == "__init__.py"], ids=name)
def test_every_folder_says_what_it_holds(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))
    folder = path.parent.relative_to(ROOT).as_posix()
    assert (
        f"`{folder}/`" in (ROOT / "docs/architecture.md").read_text() or folder == "lightning_seg"
    )


def test_the_diagram_shows_the_code_as_it_is() -> None:
    page = diagram.PAGE.read_text()
    assert "flowchart" in page
    assert diagram.written(page) == page, "run: python docs/make_diagram.py"


def test_every_part_of_the_package_is_found_from_the_package_alone() -> None:
    """Names are imported when they are used: `lightning_seg.losses` needs no import of its own."""
    parts = {path.parent.name for path in (ROOT / "lightning_seg").glob("*/__init__.py")}
    assert parts - {"commands"} <= set(lightning_seg.__all__)
    assert all(hasattr(lightning_seg, name) for name in lightning_seg.__all__)
