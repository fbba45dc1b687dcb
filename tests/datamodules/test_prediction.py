"""`python cli.py predict` on folders that hold files of every kind."""

import os
from pathlib import Path

import numpy as np
import pytest
from image_files import tiff
from PIL import Image
from places import ROOT

import cli

LONG = "a" * 250


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    words = ["--data.train_size=2", "--data.val_size=1", "--data.image_size=[32,32]"]
    cli.main(["fit", *network(folder), *words, "--trainer.max_steps=1", "--data.crop_size=32"])
    return next(folder.glob("checkpoints/*.ckpt"))


def network(folder: Path) -> list[str]:
    words = ["-c", f"{ROOT}/configs/network/lraspp.yaml", "--data.num_workers=0"]
    return [*words, "--trainer.logger=false", f"--trainer.default_root_dir={folder}"]


def predict(folder: Path, checkpoint: Path, what: str, *words: str) -> int:
    """Run the command, return its exit code."""
    words = (*words, f"--ckpt_path={checkpoint}", f"--data.predict={what}")
    try:
        cli.main(["predict", *network(folder), *words])
    except SystemExit as stop:
        return int(stop.code)
    return 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "d [1]"
    place.mkdir()
    for name in (f"{LONG}.png", f"{LONG}.bmp", "b.png", "z.png"):
        Image.new("RGB", (32, 32), (9, 99, 199)).save(place / name)
    (place / "cut.png").write_bytes((place / "b.png").read_bytes()[:60])
    (place / "text.jpg").write_text("no picture")
    (place / "pages.tif").write_bytes(tiff(*np.zeros((3, 32, 32), np.uint8)))
    (place / "deep.tif").write_bytes(tiff(np.full((32, 32), 200, np.float32)))
    os.mkfifo(place / "pipe.png")
    return place


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize(("policy", "code"), [("raise", 1), ("skip", 0)])
def test_every_file_that_can_be_read_is_predicted_and_the_others_are_listed(
    folder: Path, tmp_path: Path, checkpoint: Path, policy: str, code: int, caplog
) -> None:
    words = [f"--data.on_bad_sample={policy}", "--data.val_batch_size=2"]
    assert predict(tmp_path / "run", checkpoint, str(folder), *words) == code
    masks = sorted(path.stem for path in (tmp_path / "run/predictions/masks").iterdir())
    overlays = sorted(path.stem for path in (tmp_path / "run/predictions/overlays").iterdir())
    assert masks == overlays
    assert [name[:20] for name in masks] == ["a" * 20, "a" * 20, "b", "z"]
    listed = caplog.messages[-1]
    assert listed.startswith("not predicted: 5 images")
    for name, reason in (
        ("cut", "cannot be read"),
        ("text", "no known format"),
        ("pages", "3 pages"),
        ("deep", "--data.image_range [0,255]"),
        ("pipe", "named pipe"),
    ):
        assert any(
            line.strip().startswith(f"{name}: ") and reason in line for line in listed.splitlines()
        ), (name, listed)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_glob_below_a_folder_with_brackets(
    folder: Path, tmp_path: Path, checkpoint: Path
) -> None:
    assert predict(tmp_path / "run", checkpoint, f"{folder}/[bz].png") == 0
    masks = sorted(path.name for path in (tmp_path / "run/predictions/masks").iterdir())
    assert masks == ["b.png", "z.png"]


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_where_no_image_can_be_read_nothing_is_written(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_text("no picture")
    assert predict(tmp_path / "run", checkpoint, str(tmp_path / "photos")) == 1
    assert not (tmp_path / "run/predictions").exists()
