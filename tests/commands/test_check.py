"""`python cli.py check`, as a user types it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from places import ROOT

import cli
from lightning_seg import SetupError
from lightning_seg.commands.check import _OTHER_PARTS
from lightning_seg.pictures import color_table, contact_sheet, share_chart

FILES = ["class_shares.png", "contact_sheet.jpg", "report.json"]
SCENES = ["--data.train_size=4", "--data.val_size=2", "--data.test_size=2"]
SCENES += ["--data.image_size=[32,48]", "--workers=0"]


def check(output: Path, *words: str) -> int:
    """Run the command, return its exit code."""
    code = cli.main(["check", *words, f"--output={output}"])
    assert isinstance(code, int)
    return code


def folder_words(root: Path) -> list[str]:
    return ["--data=FolderDataModule", f"--data.root={root}", "--data.num_classes=3"]


def test_a_clean_dataset(write_dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_dataset({"train": 30, "val": 4}, size=(48, 64))
    output = tmp_path / "out"
    assert check(output, *folder_words(root)) == 0
    assert sorted(path.name for path in output.iterdir()) == FILES
    report = json.loads((output / "report.json").read_text())
    assert report["defects"] == []
    assert report["data"]["init_args"]["root"] == str(root)
    assert report["class_names"] == ["class_0", "class_1", "class_2"]
    assert report["splits"]["train"]["images"] == 30
    assert sum(report["splits"]["val"]["pixels"]) == 4 * 48 * 64
    printed = capsys.readouterr().out
    for part in ("class_1", "64x48", "no defects in 34 images", str(output)):
        assert part in printed
    with Image.open(output / "class_shares.png") as chart:
        assert chart.size[0] > 600
        assert chart.size[1] > 150
    with Image.open(output / "contact_sheet.jpg") as sheet:
        assert sheet.size[0] > 1500
        assert 600 < sheet.size[1] < 2000


def test_defects_are_printed_and_the_exit_code_is_1(write_dataset, tmp_path: Path) -> None:
    root = write_dataset({"train": 3, "val": 3})
    bad = root / "masks/val/val_1.png"
    Image.fromarray(np.full((24, 32), 77, np.uint8)).save(bad)
    (root / "masks/train/train_0.png").unlink()
    output = tmp_path / "out"
    words = [*folder_words(root), f"--output={output}", "--workers=1"]
    run = subprocess.run(
        [sys.executable, "cli.py", "check", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    assert f"val: mask {bad} holds 77" in run.stdout
    assert f"train: {root}/images/train/train_0.png has no mask" in run.stdout
    assert run.stdout.splitlines()[-1].startswith("2 defects in 5 images")
    defects = json.loads((output / "report.json").read_text())["defects"]
    assert [(each["split"], each["id"]) for each in defects] == [("train", None), ("val", "val_1")]


def test_a_folder_that_is_missing_is_one_message(tmp_path: Path) -> None:
    words = ["--data=CamVidDataModule", "--data.root=/nowhere", f"--output={tmp_path}"]
    (tmp_path / "report.json").write_text("of an earlier check")
    run = subprocess.run(
        [sys.executable, "cli.py", "check", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 1
    assert run.stderr.startswith("error: ")
    assert "/nowhere" in run.stderr
    assert "Traceback" not in run.stderr
    assert not list(tmp_path.iterdir())


def test_nothing_of_an_earlier_report_stays(write_dataset, tmp_path: Path) -> None:
    root, output = write_dataset({"train": 2, "val": 1}), tmp_path / "out"
    assert check(output, *folder_words(root), "--workers=0") == 0
    (output / "mine.txt").write_text("not of the report")
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    assert check(output, *folder_words(root), "--workers=0") == 1
    assert sorted(path.name for path in output.iterdir()) == ["mine.txt", "report.json"]
    assert len(json.loads((output / "report.json").read_text())["defects"]) == 6


def test_the_configuration_of_a_run_is_accepted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("fit", "validate", "test", "predict"):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            cli.main([verb, "-c", f"{ROOT}/configs/demo.yaml", "--print_config"])
        saved = tmp_path / f"{verb}.yaml"
        saved.write_text(capsys.readouterr().out)
        assert set(yaml.safe_load(saved.read_text())) - {"data"} <= set(_OTHER_PARTS)
        assert check(tmp_path / "out", "-c", str(saved), *SCENES) == 0


def test_a_runs_own_words_need_only_another_verb(tmp_path: Path) -> None:
    words = ["-c", f"{ROOT}/configs/network/unet.yaml", "-c", f"{ROOT}/configs/trainer/gpu.yaml"]
    words += ["--model.network.encoder=resnet18", "--model.lr=0.1", "--trainer.max_epochs=2"]
    assert check(tmp_path / "out", *words, *SCENES) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data.rot=x"], "'rot' is not accepted"),
        (["--workers=-1"], "workers"),
        (["--wrokers=1"], "unrecognized arguments: --wrokers=1"),
        (["-c", "nowhere.yaml"], "nowhere.yaml"),
        (["--data=NoDataModule"], "NoDataModule"),
    ],
)
def test_a_wrong_option_is_one_message(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        check(tmp_path / "out", *words)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert said in message
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_is_told_before_the_dataset_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match=r"file cannot be written to.*\(option: output=\)"):
        cli.main(["check", *SCENES, f"--output={tmp_path / 'file'}"])


def test_help_names_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    for words, parts in (
        (["--help"], ["check ", "Read the whole dataset once"]),
        (["check", "--help"], ["--config", "--output", "--workers", "--data.help", "check"]),
        (["check", "--data.help", "VOCDataModule"], ["--data.root"]),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        assert stop.value.code == 0
        printed = capsys.readouterr().out
        assert all(part in printed for part in parts)
    assert "--trainer" not in printed


@pytest.mark.parametrize("count", [1, 2, 61, 182])
def test_the_chart_takes_any_number_of_classes(count: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shares = {name: rng.random(count) / count for name in ("train", "val", "test")}
    shares["train"][0] = 0
    names = [f"$class_{index}^$ 类" for index in range(count)]
    share_chart(tmp_path / "chart.png", names, shares, color_table(count))
    with Image.open(tmp_path / "chart.png") as chart:
        assert 150 < chart.size[1] < 2000
        assert np.asarray(chart.convert("RGB")).std() > 5


@pytest.mark.parametrize("present", [[], [0.5], [0.5, 0.001]])
def test_a_chart_of_classes_that_never_occur(present: list[float], tmp_path: Path) -> None:
    shares = np.zeros(150)
    shares[: len(present)] = present
    names = [str(index) for index in range(150)]
    values = {"train": shares, "val": np.zeros(150)}
    share_chart(tmp_path / "chart.png", names, values, color_table(150))
    assert (tmp_path / "chart.png").stat().st_size > 1000


def test_bars_have_the_colours_of_the_classes(tmp_path: Path) -> None:
    table = color_table(2, [[10, 200, 30], [200, 10, 220]])
    share_chart(tmp_path / "chart.png", ["a", "b"], {"train": np.array([0.6, 0.4])}, table)
    with Image.open(tmp_path / "chart.png") as chart:
        pixels = np.asarray(chart.convert("RGB"))
    areas = [(pixels == color).all(-1).sum() for color in table[:2]]
    assert areas[0] / areas[1] == pytest.approx(1.5, rel=0.05)


def test_the_sheet_shows_image_and_overlay_side_by_side() -> None:
    table = color_table(2, [[250, 0, 0], [0, 0, 250]])
    image = np.full((30, 40, 3), 100, np.uint8)
    mask = np.zeros((30, 40), np.uint8)
    mask[:, 20:] = 1
    sheet = np.asarray(contact_sheet({"train": [("an id", image, mask)]}, ["a", "b"], table))
    for color in ([100, 100, 100], [190, 40, 40], [40, 40, 190]):
        assert (sheet == color).all(-1).sum() > 1000


def test_the_sheet_takes_images_without_labels_of_any_shape() -> None:
    shapes = [(1, 300), (300, 1), (7, 9)]
    pictures = [("x" * 200, np.zeros((*shape, 3), np.uint8), None) for shape in shapes]
    assert contact_sheet({"unlabeled": pictures}, ["a"], color_table(1)).size[0] > 1500
