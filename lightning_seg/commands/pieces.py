"""The pieces of configuration that come with the package, and the verb `configs`.

    python cli.py configs

lists them. A piece is given as `-c configs/data/camvid.yaml`: a file of the working folder where
there is one, else the file of that name in the package.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

import lightning_seg

_PACKAGE = Path(lightning_seg.__file__).parent
SHIPPED = next(
    # inside an installed package, or beside it in a checkout
    folder
    for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs")
    if folder.is_dir()
)
"""The folder that `configs/` stands for where the working folder has no such file."""


def find_piece(name: str) -> Path | str:
    """Return the file that a word names; the word itself where there is no such file.

    Args:
        name: A path. One that begins with `configs/` may be in the package.
    """
    if "\n" in name or name.lstrip().startswith(("{", "[")):  # a configuration, not its name
        return name
    path = Path(name).expanduser()
    if path.exists() or path.parts[:1] != ("configs",):
        return path if path.exists() else name
    shipped = SHIPPED.joinpath(*path.parts[1:])
    return shipped if shipped.is_file() else name


def find_pieces(pattern: str) -> list[str]:
    """Return the files that a pattern such as `configs/mix_match/*.yaml` names, sorted.

    A shell leaves a pattern as it is where the working folder has no such files.
    """
    if "*" not in pattern:
        return [str(find_piece(pattern))]
    if matches := sorted(map(str, Path().glob(pattern))):
        return matches
    folder, _, rest = pattern.partition("/")
    shipped = SHIPPED.glob(rest) if folder == "configs" else ()
    return sorted(map(str, shipped)) or [pattern]


def configs(words: Sequence[str]) -> int:
    """Print the pieces that come with the package, each with its first line; return 0."""
    parser = argparse.ArgumentParser(
        prog=f"{Path(sys.argv[0]).name} configs",
        description="List the pieces of configuration that come with the package.",
    )
    parser.parse_args(words)
    files = sorted(SHIPPED.rglob("*.yaml"), key=lambda file: (len(file.parts), file))
    names = [f"configs/{file.relative_to(SHIPPED).as_posix()}" for file in files]
    width = max(map(len, names))
    lines = []
    for name, file in zip(names, files, strict=True):
        first = file.read_text(encoding="utf-8").partition("\n")[0]
        lines.append(f"{name:{width}}  {first.lstrip('# ')}\n")
    with contextlib.suppress(BrokenPipeError):  # a reader such as `head` has seen enough
        sys.stdout.write("".join(lines))
        sys.stdout.flush()
    return 0
