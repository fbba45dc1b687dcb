"""Draws the diagram in docs/architecture.md from the imports of the code.

python docs/make_diagram.py
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- made by docs/make_diagram.py -->\n", "<!-- end -->\n"
PACKAGES = ("lightning_seg", "datamodules")
GROUND = (
    "errors",
    "files",
    "label_selection",
    "numerics",
    "pictures",
    "processes",
    "provenance",
    "run_folder",
    "scores",
    "signatures",
    "slurm_job",
    "statistics",
    "tensor_files",
    "version",
    "views",
)
"""Modules that import nothing of the project but each other."""


def imports() -> dict[str, set[str]]:
    """Return the modules that each module imports when it runs, by their dotted names."""
    files = [ROOT / "cli.py", *(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))]
    names = {_name(path) for path in files}
    found: dict[str, set[str]] = {}
    for path in files:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {name for node in _running(tree) for name in _imported(node)}
        found[_name(path)] = {_module(name, names) for name in imported} - {_name(path), ""}
    return found


def room(module: str) -> str:
    """Return the box of the diagram in which a module stands."""
    package, _, rest = module.partition(".")
    folder = rest.partition(".")[0]
    if package == "cli" or not rest:
        return package
    if folder in GROUND:
        return "ground"
    if package == "datamodules":
        inside = (ROOT / package / folder).is_dir()
        return f"datamodules/{folder}" if inside else "datamodules"
    return f"lightning_seg/{folder}"


def diagram() -> str:
    """Return the boxes and arrows in Mermaid's language."""
    arrows = {
        (room(module), room(target))
        for module, targets in imports().items()
        for target in targets
        if module not in PACKAGES  # a package's own list of names
    }
    arrows = {(a, b) for a, b in arrows if a != b and b not in ("ground", "lightning_seg")}
    # an arrow that follows from others is left out
    paths = _closure(arrows)
    kept = {
        (a, b)
        for a, b in arrows
        if not any((a, c) in paths and (c, b) in paths for c, _ in arrows if c not in (a, b))
    }
    rooms = sorted({each for pair in kept for each in pair})
    names = {each: f"n{number}" for number, each in enumerate(rooms)}
    lines = ["flowchart TD"]
    lines += [f'    {names[each]}["{_label(each)}"]' for each in rooms]
    lines += [f"    {names[a]} --> {names[b]}" for a, b in sorted(kept)]
    return "\n".join(["```mermaid", *lines, "```", ""])


def written(page: str) -> str:
    """Return the page with the diagram as the code is now."""
    head, _, rest = page.partition(BEGIN)
    return f"{head}{BEGIN}{diagram()}{END}{rest.partition(END)[2]}"


def _closure(arrows: set[tuple[str, str]]) -> set[tuple[str, str]]:
    found = set(arrows)
    while more := {(a, d) for a, b in found for c, d in found if b == c} - found:
        found |= more
    return found


def _label(room_: str) -> str:
    return "cli.py" if room_ == "cli" else f"{room_}/"


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """Walk a tree, but not into blocks that only type checkers read."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from _running(child)


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [each.name for each in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [f"{node.module}.{each.name}" for each in node.names]
    return []


def _module(name: str, names: set[str]) -> str:
    """Return the project's module that an imported name belongs to; empty for others."""
    while name and name not in names:
        name = name.rpartition(".")[0]
    return name


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
