"""What an installed copy holds, and that it works where no checkout is."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from documents import own_images
from PIL import Image
from places import ROOT

import lightning_seg

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "cli.py", "lightning_seg", "datamodules")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in (*SOURCES, "configs"):
        (source / name).symlink_to(ROOT / name)
    command = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(folder)]
    done = subprocess.run(
        [sys.executable, *command, str(source)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment with the wheel and the packages it needs."""
    home = tmp_path_factory.mktemp("installed") / "env"
    venv.create(home, symlinks=True)
    paths = {"base": str(home), "platbase": str(home)}
    packages = Path(sysconfig.get_path("purelib", "venv", paths))
    # torch and the like are not copied; a path in a .pth file brings no other .pth files with it,
    # so an editable install of this checkout does not come along
    (packages / "needed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    pip = ["-m", "pip", "--python", str(home), "install", "--no-deps", "--no-index", "-q"]
    subprocess.run([sys.executable, *pip, str(wheel)], check=True, timeout=300)
    return home / "bin"


def test_the_wheel_holds_the_packages_the_pieces_and_its_licence(wheel: Path) -> None:
    assert wheel.name.startswith(f"lightning_seg-{lightning_seg.__version__}-")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = f"lightning_seg-{lightning_seg.__version__}.dist-info"
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
    modules = {
        path.relative_to(ROOT).as_posix()
        for package in ("lightning_seg", "datamodules")
        for path in (ROOT / package).rglob("*.py")
    }
    assert modules <= names
    pieces = {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.*")}
    assert {f"lightning_seg/{piece}" for piece in pieces} <= names
    for page in ("app_page", "report_page"):
        folder = ROOT / "lightning_seg/commands" / page
        assert {path.relative_to(ROOT).as_posix() for path in folder.iterdir()} <= names
    assert {"cli.py", "lightning_seg/py.typed", "datamodules/py.typed"} <= names
    assert f"{info}/licenses/LICENSE" in names
    assert "lightning-seg = cli:run" in entry_points
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "docs"))]


def test_the_readmes_commands_run_from_the_wheel_in_an_empty_folder(
    installed: Path, write_dataset, tmp_path: Path
) -> None:
    root = write_dataset({"train": 4, "val": 2}, size=(64, 80), values=(0, 1, 2, 3, 4))
    photos, empty = tmp_path / "new images", tmp_path / "empty"
    photos.mkdir()
    empty.mkdir()
    Image.effect_noise((70, 50), 40).save(photos / "photo.jpg")
    script, report = own_images(root, photos), "lightning-seg report runs/mine"
    pieces = "lightning-seg configs\nlightning-seg configs --copy configs/cluster"
    done = subprocess.run(
        [
            "bash",
            "-euo",
            "pipefail",
            "-c",
            f"{pieces}\n{script}\n{report}",
        ],
        cwd=empty,
        env={"PATH": f"{installed}:/usr/bin:/bin", "OMP_NUM_THREADS": "2", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "configs/data/camvid.yaml" in done.stdout
    template = empty / "configs/cluster/slurm.sbatch"
    assert template.read_text() == (ROOT / "configs/cluster/slurm.sbatch").read_text()
    # each verb ends with what it wrote and the command that comes next, and that one works
    last = [line for line in done.stderr.splitlines() if line.startswith("written: ")]
    assert len(last) == 3
    assert last[1] == f"written: the scores, in runs/mine/test; next: {report}"
    assert "<h1" in (empty / "runs/mine/report.html").read_text(encoding="utf-8")
    best = "runs/mine/checkpoints/best.ckpt"
    assert last[0].endswith(f"lightning-seg test -c runs/mine/config.yaml --ckpt_path {best}")
    assert last[2] == (
        "written: 1 prediction in runs/mine/predictions; next: open runs/mine/predictions/overlays"
    )
    assert Image.open(empty / "runs/mine/predictions/masks/photo.png").size == (70, 50)
    assert (empty / "runs/mine/predictions/overlays/photo.jpg").exists()
    # nothing on the way is about something else than this run
    assert "Warning" not in done.stderr
    assert "Tip" not in done.stderr
    assert done.stdout.count("│ miou") == 2  # a table after fit and one after test


def test_constraints_pin_what_the_package_needs() -> None:
    """Every requirement has its tested version, the compromised Lightning releases never."""
    extras = PROJECT["project"]["optional-dependencies"]
    lists = [PROJECT["project"]["dependencies"], *extras.values()]
    needed = {re.split(r"[\[>=<,; ]", each)[0] for names in lists for each in names}
    pins = dict(
        re.findall(r"^([a-z0-9-]+)==([^;\s]+)", (ROOT / "constraints.txt").read_text(), re.M)
    )
    free = {"lightning-seg", "pyyaml", "types-pyyaml", "build", "setuptools"}
    assert {name.lower() for name in needed} - set(pins) - free == set()
    assert pins["lightning"] not in ("2.6.2", "2.6.3")
