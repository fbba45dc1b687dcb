"""The README's commands, as they stand there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.cli import LightningCLI
from PIL import Image
from places import ROOT
from small_runs import fit
from tiny import TinyNet

from datamodules import SegmentationDataModule, SyntheticScenesDataModule, UnlabeledShards
from datamodules.augmenting.steps import PRESETS
from lightning_seg import SegmentationModule

README = (ROOT / "README.md").read_text()


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def bash(script: str, folder: Path) -> None:
    """Run a script in a folder that looks like the repository."""
    for name in ("cli.py", "configs", "datamodules", "lightning_seg"):
        (folder / name).symlink_to(ROOT / name)
    python = shlex.quote(sys.executable)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f'python() {{ {python} "$@"; }}\n{script}'],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_own_images_in_five_lines(write_dataset, tmp_path: Path) -> None:
    (script,) = (each for each in blocks("sh") if "seg()" in each)
    assert len(script.strip().splitlines()) == 5
    root = write_dataset({"train": 4, "val": 2}, size=(64, 80), values=(0, 1, 2, 3, 4))
    photos = tmp_path / "new images"
    photos.mkdir()
    Image.effect_noise((70, 50), 40).save(photos / "photo.jpg")
    changes = {
        "/where/it/is": str(root),
        "/new/images": str(photos),
        "--data.crop_size 256": "--data.crop_size 64 --data.batch_size 2 --data.num_workers 0",
        "--trainer.max_epochs 20": "--trainer.max_epochs 1",
    }
    for old, new in changes.items():
        assert old in script
        script = script.replace(old, new)
    bash(script, tmp_path)
    assert Image.open(tmp_path / "runs/mine/predictions/masks/photo.png").size == (70, 50)
    assert (tmp_path / "runs/mine/predictions/overlays/photo.jpg").exists()


def test_the_composition_parses(tmp_path: Path) -> None:
    (script,) = (each for each in blocks("sh") if "deeplab_v3.yaml" in each)
    bash(f"{script.rstrip()} --print_config > out.yaml", tmp_path)
    text = (tmp_path / "out.yaml").read_text()
    for part in ("/where/camvid/is", "DeepLabV3", "pretrained: true", "WandbLogger", "bf16-mixed"):
        assert part in text


def test_the_check_of_ones_own_images(write_dataset, tmp_path: Path) -> None:
    (script,) = (each for each in blocks("sh") if "cli.py check" in each)
    root = write_dataset({"train": 4, "val": 2}, values=(0, 1, 2, 3, 4))
    bash(script.replace("/where/it/is", str(root)), tmp_path)
    assert {path.name for path in (tmp_path / "runs/check").iterdir()} == {
        "report.json",
        "class_shares.png",
        "contact_sheet.jpg",
    }


def test_the_semi_supervised_command_parses(tmp_path: Path) -> None:
    (script,) = (each for each in blocks("sh") if "voc.yaml" in each)
    bash(f"{script.rstrip()} --print_config > out.yaml", tmp_path)
    data = yaml.safe_load((tmp_path / "out.yaml").read_text())["data"]["init_args"]
    assert (data["labeled"], data["train"], data["unlabeled_batch_size"]) == ("1/8", "trainaug", 10)


def test_the_yaml_examples_are_what_they_say(tmp_path: Path) -> None:
    shards, deeplab = (yaml.safe_load(each)["data"]["init_args"] for each in blocks("yaml"))
    assert deeplab["augmentation"] == PRESETS["deeplab"]
    for name in ("0000", "0999"):
        (tmp_path / f"{name}.tar").touch()
    urls = shards["unlabeled_shards"]["init_args"]["urls"]
    assert urls.endswith("{0000..0999}.tar")
    shards["unlabeled_shards"]["init_args"]["urls"] = str(tmp_path / "{0000,0999}.tar")
    (tmp_path / "piece.yaml").write_text(yaml.safe_dump({"data": {"init_args": shards}}))
    cli = LightningCLI(
        SegmentationModule,
        SegmentationDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        run=False,
        args=[
            "--model=CrossEntropyModule",
            "--model.num_classes=8",
            "--data=SyntheticScenesDataModule",
            f"--config={tmp_path / 'piece.yaml'}",
        ],
    )
    assert isinstance(cli.datamodule.shards, UnlabeledShards)
    assert len(cli.datamodule.shards.urls) == 2


@pytest.mark.parametrize("page", sorted((ROOT / "docs/methods").glob("*.md")), ids=lambda p: p.stem)
def test_the_commands_of_a_methods_page_parse(page: Path, tmp_path: Path) -> None:
    scripts = blocks("sh", page.read_text())
    assert scripts
    for number, script in enumerate(scripts):
        folder = tmp_path / str(number)
        folder.mkdir()
        bash(f"{script.rstrip()} --print_config > out.yaml", folder)
        assert "Module" in (folder / "out.yaml").read_text()
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs/methods").glob("*.md")), ids=lambda p: p.stem)
def test_the_python_of_a_methods_page_runs(page: Path, tmp_path: Path) -> None:
    for script in blocks("python", page.read_text()):
        names: dict = {}
        exec(compile(script, str(page), "exec"), names)
        if "FoolingModule" in names:
            data = SyntheticScenesDataModule(train_size=4, crop_size=64, batch_size=2)
            ours = names["FoolingModule"](TinyNet(8), num_classes=8, lr=0.01)
            fit(ours, tmp_path, data, max_steps=2)
            assert ours.trainer.global_step == 2
        if "match" in names:
            assert 0 <= names["match"] <= 8


def test_the_python_example_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (script,) = blocks("python")
    short = script.replace(
        "max_epochs=1", "max_epochs=1, limit_train_batches=1, limit_val_batches=1"
    )
    assert short != script
    monkeypatch.chdir(tmp_path)
    exec(compile(short, "README.md", "exec"), {})


def test_every_piece_stands_in_the_readme() -> None:
    pieces = [path.stem for path in (ROOT / "configs").glob("*/*.yaml")]
    assert [piece for piece in pieces if f"`{piece}`" not in README] == []


def test_the_readmes_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert [link for link in links if not (ROOT / link).exists()] == []
