"""Two gloo processes through the command: equal weights, and scores of one process."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from places import ROOT

from lightning_seg.scores import read_scores

TINY = ["--model.network", "tiny.TinyNet", "--model.network.aux", "true", "--model.lr", "0.01"]
SCENES = [
    "--data.image_size=[32,40]",
    "--data.crop_size=24",
    "--data.batch_size=2",
    "--data.val_batch_size=2",
    "--data.num_workers=0",
    "--data.train_size=12",
    "--data.val_size=7",  # odd: one process gets a copy that must not count
]
QUIET = [
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


def command(*words: str) -> None:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "cli.py", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def last_row(folder: Path) -> dict[str, float]:
    with (folder / "csv" / "version_0" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("val/miou")]
    return {name: float(value) for name, value in rows[-1].items() if value}


@pytest.fixture
def logged(tmp_path: Path) -> list[str]:
    return [
        f"--trainer.default_root_dir={tmp_path}",
        "--trainer.logger=CSVLogger",
        f"--trainer.logger.save_dir={tmp_path}",
        "--trainer.logger.name=csv",
    ]


def test_two_processes_agree_and_score_like_one(tmp_path: Path, logged: list[str]) -> None:
    dump = ["--trainer.callbacks=tiny.DumpWeights", f"--trainer.callbacks.folder={tmp_path}"]
    two = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    checkpoint = tmp_path / "csv/version_0/checkpoints/epoch=1-step=6.ckpt"
    command("fit", *TINY, *SCENES, *QUIET, *logged, *dump, *two, "--trainer.max_epochs=2")
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    trained = torch.load(checkpoint)["state_dict"]
    for name, value in first.items():
        assert torch.equal(second[name], value), name
        assert torch.equal(trained[f"network.{name}"], value), name

    rows, found = [], []
    for name, processes in (("alone", []), ("together", two)):
        where = [word.replace(str(tmp_path), str(tmp_path / name)) for word in logged]
        files = [f"--scores.output_dir={tmp_path / name / 'scores'}", f"--ckpt_path={checkpoint}"]
        command("validate", *TINY, *SCENES, *QUIET, *where, *processes, *files)
        rows.append(last_row(tmp_path / name))
        found.append(read_scores(tmp_path / name / "scores"))
    assert "val/loss" in rows[0]
    assert rows[1] == pytest.approx(rows[0], abs=1e-6)
    assert len(found[0].ids) == 7
    assert found[1].ids == found[0].ids
    assert (found[1].counts == found[0].counts).all()
