"""What an installed copy holds."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

from places import ROOT

import lightning_seg


def test_the_wheel_holds_the_packages_the_command_and_its_licence(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in (
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "cli.py",
        "lightning_seg",
        "datamodules",
    ):
        (source / name).symlink_to(ROOT / name)
    command = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *command, str(source)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"lightning_seg-{lightning_seg.__version__}-")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = f"lightning_seg-{lightning_seg.__version__}.dist-info"
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "lightning_seg").rglob("*.py")}
    assert modules <= names
    assert {"cli.py", "lightning_seg/py.typed", "datamodules/py.typed"} <= names
    assert f"{info}/licenses/LICENSE" in names
    assert "lightning-seg = cli:run" in entry_points
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "docs"))]


def test_constraints_pin_what_the_package_needs() -> None:
    """Every requirement has its tested version, the compromised Lightning releases never."""
    needed = re.findall(r'^    "([a-z0-9-]+)[\[>=]', (ROOT / "pyproject.toml").read_text(), re.M)
    pins = dict(
        re.findall(r"^([a-z0-9-]+)==([^;\s]+)", (ROOT / "constraints.txt").read_text(), re.M)
    )
    unpinned = set(needed) - set(pins) - {"lightning-seg", "pyyaml", "build", "setuptools"}
    assert unpinned == set()
    assert pins["lightning"] not in ("2.6.2", "2.6.3")


def test_no_tracked_file_names_a_registrys_host() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    hosts = re.compile("|".join(["py" + "pi.org", "python" + "hosted", "npm" + "js"]))
    guilty = [
        name
        for name in listed.stdout.splitlines()
        if (ROOT / name).suffix not in (".png",) and hosts.search((ROOT / name).read_text())
    ]
    assert guilty == []
