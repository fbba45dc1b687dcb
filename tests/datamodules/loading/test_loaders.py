"""A run that is killed inside an epoch and resumed sees the batches of one that was not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

RUN = [
    "fit",
    "--model.network=tiny.TinyNet",
    "--model.lr=0.01",
    "--data.image_size=[32,40]",
    "--data.crop_size=24",
    "--data.train_size=20",
    "--data.val_size=2",
    "--data.labeled=1/4",
    "--data.batch_size=2",
    "--data.unlabeled_batch_size=3",
    "--data.labeled_real_batch_size=1",
    "--data.iterations_per_epoch=4",
    "--data.strong_augmentation=strong",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.logger=false",
    "--trainer.max_steps=11",
    "--trainer.callbacks=tiny.RecordBatches",
]


def command(folder: Path, *words: str, killed: bool = False) -> None:
    folder.mkdir(exist_ok=True)
    own = [
        f"--trainer.default_root_dir={folder}",
        f"--data.splits_dir={folder}/splits",
        f"--trainer.callbacks.folder={folder}",
    ]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), *RUN, *own, *words],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode == -9) if killed else (done.returncode == 0), done.stdout + done.stderr


def seen(folder: Path, rank: int = 0) -> list[dict]:
    return [json.loads(line) for line in (folder / f"rank{rank}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_inside_an_epoch(tmp_path: Path, workers: int) -> None:
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    command(straight, "--data.num_workers=0")
    loading = f"--data.num_workers={workers}"
    command(cut, loading, "--trainer.callbacks.kill_at=6", killed=True)
    assert len(seen(cut)) == 6
    command(cut, loading, f"--ckpt_path={cut / 'killed.ckpt'}")
    assert seen(cut) == seen(straight)
    assert len(seen(cut)) == 11
    assert (cut / "split/unlabeled.txt").read_text().count("\n") == 15


def test_two_processes_stopped_inside_an_epoch(tmp_path: Path) -> None:
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.num_workers=0"]
    command(straight, *two)
    saving = "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint"
    folder, name = f"--trainer.callbacks.dirpath={cut}", "--trainer.callbacks.filename=stopped"
    command(cut, *two, saving, folder, name, "--trainer.max_steps=6")
    command(cut, *two, f"--ckpt_path={cut / 'stopped.ckpt'}")
    for rank in (0, 1):
        assert seen(cut, rank) == seen(straight, rank)
    names = [
        [name for line in seen(straight, rank) for name in line["unlabeled"][0]] for rank in (0, 1)
    ]
    whole = [name for pair in zip(*names, strict=True) for name in pair]
    for begin in range(0, 60, 15):  # fifteen unlabelled images, dealt out to two
        assert len(set(whole[begin : begin + 15])) == 15
