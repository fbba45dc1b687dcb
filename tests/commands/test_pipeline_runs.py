"""The pipeline as a user runs it: through to the end, and killed on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image
from places import ROOT

import cli
from lightning_seg.commands.pipeline import pipeline as pipeline_verb

WORDS = [
    "--data.image_size=[32,48]",
    "--data.train_size=8",
    "--data.val_size=2",
    "--data.batch_size=2",
    "--data.crop_size=32",
    "--data.num_workers=0",
    "--data.seed=0",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=2",
    "--trainer.logger=false",
    "--trainer.enable_model_summary=false",
    "--trainer.enable_progress_bar=false",
    "--encoder=test_resnet",
    "--stage=1",
    "--model.locations=16",
    "--stage=2",
    "--trainer.max_steps=-1",
    "--trainer.callbacks+=tiny.KillAt",
    "--data.patches.patches_per_image=4",
    "--data.patches.patch_size=[8,16]",
    "--data.patches.out_size=32",
    "--stage=3",
    "--model.network.output_stride=32",
]


def pipeline(out: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    stages = sorted(map(str, (ROOT / "configs/mix_match").glob("*.yaml")))
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests/support")])
    return subprocess.run(
        [sys.executable, "cli.py", "pipeline", "--stages", *stages, f"--out={out}", *WORDS],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


def encoder(stage: Path) -> dict[str, torch.Tensor]:
    return torch.load(stage / "encoder.pt", weights_only=True)["state_dict"]


def test_a_killed_pipeline_finishes_with_the_same_result(tmp_path: Path) -> None:
    whole = pipeline(tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    # every stage starts where the one before ended, and says so
    for before, stage in (("1_proxy", "2_match"), ("2_match", "3_finetune")):
        assert f"tensors from {tmp_path}/whole/{before}/encoder.pt" in whole.stderr
        first, second = encoder(tmp_path / "whole" / before), encoder(tmp_path / "whole" / stage)
        assert first.keys() == second.keys()
        assert any(not torch.equal(first[name], second[name]) for name in first)

    killed = pipeline(tmp_path / "cut", KILL_AT="6")  # of 8 steps of stage 2: in its second epoch
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "cut/1_proxy/done").exists()
    assert not (tmp_path / "cut/2_match/done").exists()
    assert not (tmp_path / "cut/3_finetune").exists()
    made = (tmp_path / "cut/1_proxy/encoder.pt").stat().st_mtime_ns

    again = pipeline(tmp_path / "cut")
    assert again.returncode == 0, again.stderr
    assert "1_proxy, done before" in again.stderr
    assert "2_match, goes on from" in again.stderr
    assert (tmp_path / "cut/1_proxy/encoder.pt").stat().st_mtime_ns == made
    for stage in ("2_match", "3_finetune"):
        wanted, found = encoder(tmp_path / "whole" / stage), encoder(tmp_path / "cut" / stage)
        assert wanted.keys() == found.keys()
        assert all(torch.equal(found[name], value) for name, value in wanted.items())
    last = [
        torch.load(tmp_path / run / "3_finetune/checkpoints/last.ckpt") for run in ("whole", "cut")
    ]
    assert all(
        torch.equal(value, last[1]["state_dict"][name])
        for name, value in last[0]["state_dict"].items()
    )

    third = pipeline(tmp_path / "cut")
    assert third.returncode == 0
    assert third.stderr.count("done before") == 3


def test_a_student_trains_on_labels_and_on_the_teachers_predictions(
    write_dataset, tmp_path: Path, monkeypatch
) -> None:
    root = write_dataset({"train": 4, "val": 2}, size=(40, 40))
    (tmp_path / "more").mkdir()
    for name in ("a.png", "b.png"):
        Image.effect_noise((48, 40), 80).convert("RGB").save(tmp_path / "more" / name)
    stages = sorted(map(str, (ROOT / "configs/self_training").glob("*.yaml")))
    words = [
        *("--data=FolderDataModule", f"--data.root={root}", "--data.num_classes=3"),
        *(f"--data.predict={tmp_path}/more", "--data.batch_size=2", "--data.crop_size=32"),
        *(word for word in WORDS if word.startswith("--trainer") and "callbacks" not in word),
        *("--data.num_workers=0", "--trainer.max_steps=3", "--trainer.val_check_interval=3"),
        *("--model.network=lightning_seg.networks.LRASPP", "--encoder=test_resnet"),
        *("--stage=2", "--autolabel.keep=0.9"),
    ]
    runs = []

    def command(words: list[str]) -> None:
        runs.append(cli.main(words))

    assert pipeline_verb(["--stages", *stages, f"--out={tmp_path}/out", *words], command) == 0
    teacher, labels, student = runs
    assert [run.subcommand for run in runs] == ["fit", "autolabel", "fit"]
    assert sorted(teacher.datamodule.split_ids("train")) == [f"train_{n}" for n in range(4)]
    names = ["a", "b", *(f"train_{number}" for number in range(4))]
    assert sorted(student.datamodule.split_ids("train")) == names
    assert student.datamodule.crop_size == (32, 32)
    assert student.trainer.global_step == 3
    before, after = teacher.model.state_dict(), labels.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    report = json.loads((tmp_path / "out/2_autolabel/data/autolabel.json").read_text())
    assert report["keep"] == 0.9
    assert Path(report["checkpoint"]).name == "best.ckpt"
    assert pipeline_verb(["--stages", *stages, f"--out={tmp_path}/out", *words], command) == 0
    assert len(runs) == 3
