"""The pieces of configuration that come with the package, and the verb `configs`.

    python cli.py configs
    python cli.py configs --copy configs/cluster

The first lists them, and the second copies some into the working folder. A piece is given as
`-c configs/data/camvid.yaml`: a file of the working folder where there is one, else the file of
that name in the package.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from pathlib import Path

from jsonargparse import Namespace

import lightning_seg
from lightning_seg.errors import SetupError

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


def copy(name: str) -> None:
    """Copy a piece, or a folder of pieces, from the package to the same name in the working folder.

    Args:
        name: Such as `configs/cluster`.

    Raises:
        SetupError: There is no such piece, or a file would be overwritten.
    """
    place = SHIPPED.joinpath(*Path(name).parts[1:])
    below = [file for file in _shipped() if place in (file, *file.parents)]
    if Path(name).parts[:1] != ("configs",) or not below:
        raise SetupError(f"{name} is no file or folder of configs/", option="copy")
    targets = [Path("configs", file.relative_to(SHIPPED)) for file in below]
    if there := [str(target) for target in targets if target.exists()]:
        raise SetupError(f"{there[0]} exists, and is not overwritten", option="copy")
    for file, target in zip(below, targets, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
        print(f"written: {target}")


def _shipped() -> list[Path]:
    kinds = (".yaml", ".sbatch", ".sh")
    found = [file for file in SHIPPED.rglob("*") if file.suffix in kinds]
    return sorted(found, key=lambda file: (len(file.parts), file))


def shipped_names() -> list[str]:
    """Return the names of the pieces that come with the package, such as configs/demo.yaml."""
    return [f"configs/{file.relative_to(SHIPPED).as_posix()}" for file in _shipped()]


def configs(options: Namespace) -> int:
    """Print the pieces that come with the package, each with its first line; return 0.

    Raises:
        SetupError: A piece to copy does not exist, or a file would be overwritten.
    """
    if options.copy is not None:
        copy(options.copy)
        return 0
    files, names = _shipped(), shipped_names()
    width = max(map(len, names))
    lines = []
    for name, file in zip(names, files, strict=True):
        lines_of_file = file.read_text(encoding="utf-8").splitlines()
        first = next(line for line in lines_of_file if not line.startswith("#!"))
        lines.append(f"{name:{width}}  {first.lstrip('# ')}\n")
    with contextlib.suppress(BrokenPipeError):  # a reader such as `head` has seen enough
        sys.stdout.write("".join(lines))
        sys.stdout.flush()
    return 0
