"""The pieces of whole runs: what they hold, and that each one starts."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from places import ROOT

import cli
from lightning_seg.callbacks import ComplementarySampling

PAPERS = ROOT / "configs/papers"


def merged(capsys: pytest.CaptureFixture[str], *pieces: str) -> dict[str, Any]:
    """The configuration of `fit` with these pieces."""
    words = [word for piece in pieces for word in ("-c", str(PAPERS / f"{piece}.yaml"))]
    with contextlib.suppress(SystemExit):
        cli.main(["fit", *words, "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("run", ["semi_adv_voc", "semi_adv_cityscapes"])
def test_the_text_of_the_semi_supervised_paper_is_a_piece(run, capsys) -> None:
    """D on labelled images only, and no term of unlabelled images for 5,000 iterations."""
    code = merged(capsys, run)
    text = merged(capsys, run, "semi_adv_text")
    before, after = code["model"]["init_args"], text["model"]["init_args"]
    assert {name: value for name, value in after.items() if before[name] != value} == {
        "train_discriminator_on_unlabeled": False,
        "semi_start_adv": 5000,
    }
    assert before["train_discriminator_on_unlabeled"] is True
    assert (before["semi_start"], after["semi_start"]) == (5000, 5000)
    assert before["semi_start_adv"] == 0
    assert code["data"] == text["data"]
    assert code["trainer"] == text["trainer"]


def write(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


def pair_of(number: int, values: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """An image and a mask of 70x90 pixels in blocks of these values."""
    rng = np.random.default_rng(number)
    mask = rng.choice(values, (7, 9)).repeat(10, 0).repeat(10, 1)
    return rng.integers(0, 256, (70, 90, 3)), mask


def write_voc(root: Path) -> None:
    home = root / "VOC2012"
    splits = {"trainaug": 16, "val": 2}
    for first, (split, count) in enumerate(splits.items()):
        ids = [f"{split}_{number}" for number in range(count)]
        for number, name in enumerate(ids):
            image, mask = pair_of(100 * first + number, [0, 1, 15, 20, 255])
            write(home / f"JPEGImages/{name}.jpg", image)
            for folder in ("SegmentationClass", "SegmentationClassAug"):
                write(home / f"{folder}/{name}.png", mask)
        for name in (split, split.removesuffix("aug")):
            path = home / f"ImageSets/Segmentation/{name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(ids) + "\n")


def write_cityscapes(root: Path) -> None:
    for split, count in (("train", 16), ("val", 2)):
        for number in range(count):
            image, mask = pair_of(number, [0, 7, 11, 24, 33])
            name = f"{split}/ulm/ulm_{number:06d}_000019"
            write(root / f"leftImg8bit/{name}_leftImg8bit.png", image)
            write(root / f"gtFine/{name}_gtFine_labelIds.png", mask)


def write_camvid(root: Path) -> None:
    for split, count in (("train", 16), ("val", 2), ("test", 1)):
        for number in range(count):
            image, mask = pair_of(number, list(range(12)))
            write(root / f"{split}/{number:03d}.png", image)
            write(root / f"{split}annot/{number:03d}.png", mask)


def write_horses(root: Path) -> None:
    for number in range(1, 329):
        image, mask = pair_of(number, [0, 255])
        write(root / f"rgb/horse{number:03d}.jpg", image)
        write(root / f"figure_ground/horse{number:03d}.jpg", mask)


WRITERS = {
    "voc": write_voc,
    "cityscapes": write_cityscapes,
    "camvid": write_camvid,
    "horse": write_horses,
}
SMALL = {
    "semi_adv_voc": [
        "--model.network.encoder=test_resnet",
        "--model.network.uniform_dilation=false",
    ],
    "semi_adv_cityscapes": [
        "--model.network.encoder=test_resnet",
        "--model.network.uniform_dilation=false",
    ],
    "semi_adv_camvid": [],
    "asml_weizmann_horse": ["--model.network.encoder=resnet18"],
    "lmp_voc": ["--model.network.encoder=resnet18"],
    "cpg_cityscapes": ["--model.network.encoder=resnet18"],
    "mix_match_voc": ["--model.encoder.name=vgg11_bn", "--data.patches.out_size=32"],
}


def test_every_paper_has_a_run() -> None:
    """A run of each method of the README's table; the other pieces change a run."""
    assert SMALL.keys() | {"semi_adv_text"} == {path.stem for path in PAPERS.glob("*.yaml")}
    methods = {name.rpartition("_")[0].replace("_weizmann", "") for name in SMALL}
    assert methods == {"lmp", "cpg", "asml", "semi_adv", "mix_match"}


@pytest.mark.parametrize("piece", SMALL)
def test_every_run_of_a_paper_starts_on_its_dataset(
    piece: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two iterations and a validation on a small dataset in the official layout."""
    (kind,) = (kind for kind in WRITERS if kind in piece)
    WRITERS[kind](tmp_path / "data")
    monkeypatch.chdir(tmp_path)  # where splits are written
    words = ["-c", str(PAPERS / f"{piece}.yaml"), f"--data.root={tmp_path / 'data'}", *SMALL[piece]]
    words += ["--data.crop_size=64", "--data.batch_size=2", "--data.num_workers=0"]
    if piece.startswith("semi_adv"):
        words += ["--data.unlabeled_batch_size=2", "--data.labeled_real_batch_size=2"]
        words += ["--model.semi_start=1"]
    words += ["--trainer.max_steps=2", "--trainer.accelerator=cpu", "--trainer.logger=false"]
    words += ["--trainer.enable_progress_bar=false", "--trainer.enable_checkpointing=false"]
    run = cli.main(["fit", *words, "--data.iterations_per_epoch=2"])
    assert run.trainer.global_step == 2
    scores = run.trainer.callback_metrics
    assert scores["val/loss"].isfinite()
    if piece == "lmp_voc":  # the classes are drawn, and weighed by the validation
        assert run.datamodule.sampling == "classes"
        assert any(isinstance(each, ComplementarySampling) for each in run.trainer.callbacks)
