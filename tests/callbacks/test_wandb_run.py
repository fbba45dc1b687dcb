"""A W&B run over several trainings: one id, every step once, and an end."""

from __future__ import annotations

import json
import time
from pathlib import Path

import lightning as L
import pytest
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from offline_runs import offline_runs
from small_runs import SMALL_WORDS, quiet_trainer, scenes, tiny

import cli
from lightning_seg import CrossEntropyModule
from lightning_seg.callbacks import RunMonitor, wandb_run
from lightning_seg.callbacks.wandb_files import rows_of_run
from lightning_seg.run_folder import run_folder


class Breaks(L.Callback):
    """Fails at a step, as a bug would; and keeps a checkpoint of an earlier one."""

    def __init__(self, folder: str, keep: int, fail: int) -> None:
        self.folder, self.keep, self.fail = Path(folder), keep, fail

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == self.keep:
            trainer.save_checkpoint(self.folder / "kept.ckpt")
        if trainer.global_step == self.fail:
            raise RuntimeError("broken")


def words(folder, *more):
    logger = {
        "class_path": "lightning.pytorch.loggers.WandbLogger",
        "init_args": {"save_dir": str(folder), "project": "p"},
    }
    piece = folder / "logger.yaml"
    piece.write_text(yaml.safe_dump({"trainer": {"logger": logger}}))
    small = [word for word in SMALL_WORDS if "logger" not in word]
    return [
        "fit",
        *small,
        f"--config={piece}",
        "--trainer.log_every_n_steps=1",
        f"--trainer.default_root_dir={folder}",
        "--monitor.speed=false",
        *more,
    ]


def test_a_resumed_training_goes_on_in_its_run(tmp_path):
    first = cli.main(words(tmp_path, "--trainer.max_epochs=2", "--model.lr=0.01"))
    folder = run_folder(first.trainer)
    assert folder.parent == tmp_path / "p"
    assert {each.name for each in folder.iterdir()} == {"config.yaml", "checkpoints", "pictures"}
    kept = json.loads((folder / "checkpoints" / "wandb_run.json").read_text())
    assert kept == {"id": folder.name, "project": "p", "job": None}
    lines = (folder / "checkpoints" / "wandb_rows.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])[0] == 3
    (checkpoint,) = folder.rglob("*.ckpt")
    again = cli.main(
        words(tmp_path, "--trainer.max_epochs=3", "--model.lr=0.01", f"--ckpt_path={checkpoint}")
    )
    assert run_folder(again.trainer) == folder
    runs = offline_runs(tmp_path)
    assert [run.id for run in runs] == [folder.name] * 2
    assert [run.exit_code for run in runs] == [0, 0]
    assert runs[0].config["config"]["trainer"]["max_epochs"] == 2
    for key, steps in {
        "train/loss": [0, 1, 2, 3, 4, 5],
        "lr/network": [0, 1, 2, 3, 4, 5],
        "gradient/network": [0, 1, 2, 3, 4, 5],
        "val/miou": [1, 3, 5],
    }.items():
        assert [step for run in runs for step, _ in run.values(key)] == steps
    rows = [row["trainer/global_step"] for run in runs for row in run.history]
    assert rows == sorted(rows)


def test_steps_after_the_checkpoint_are_not_logged_twice_and_a_failure_is_marked(tmp_path):
    def fit(checkpoint=None, fail=0):
        logger = WandbLogger(save_dir=tmp_path, project="p")
        callbacks = [RunMonitor(speed=False), Breaks(str(tmp_path), 2, fail)]
        options = {"max_steps": 7, "limit_val_batches": 0, "logger": logger}
        trainer = quiet_trainer(tmp_path, callbacks=callbacks, **options)
        if checkpoint:
            wandb_run.go_on(trainer, checkpoint)
        code = 1
        try:
            trainer.fit(tiny(CrossEntropyModule), scenes(), ckpt_path=checkpoint)
            code = 0
        finally:
            wandb_run.finish(trainer, code)
        return logger.version

    with pytest.raises(RuntimeError, match="broken"):
        fit(fail=5)
    (record,) = tmp_path.rglob("wandb_run.json")
    (tmp_path / "wandb_run.json").write_bytes(record.read_bytes())  # beside the checkpoint
    assert fit(str(tmp_path / "kept.ckpt")) == json.loads(record.read_text())["id"]
    runs = offline_runs(tmp_path)
    assert len({run.id for run in runs}) == 1
    assert [run.exit_code for run in runs] == [1, 0]
    steps = [[step for step, _ in run.values("train/loss")] for run in runs]
    assert steps == [[0, 1, 2, 3], [4, 5, 6]]  # the step that failed is not logged


@pytest.mark.parametrize("content", [None, "", "{}", '{"id": "", "last_step": 1}', "[1]"])
def test_a_missing_or_damaged_record_starts_a_new_run(tmp_path, content):
    if content is not None:
        (tmp_path / "wandb_run.json").write_text(content)
    logger = WandbLogger(save_dir=tmp_path, project="p")
    trainer = quiet_trainer(tmp_path, logger=logger)
    wandb_run.go_on(trainer, tmp_path / "a.ckpt")
    assert logger.version is None


def test_a_run_that_the_user_names_keeps_its_name(tmp_path):
    record = {"id": "other", "project": "p", "last_step": 3}
    (tmp_path / "wandb_run.json").write_text(json.dumps(record))
    logger = WandbLogger(save_dir=tmp_path, project="p", version="mine")
    wandb_run.go_on(quiet_trainer(tmp_path, logger=logger), tmp_path / "a.ckpt")
    assert logger.version == "mine"


def test_rows_that_w_and_b_lost_are_logged_when_the_training_goes_on(tmp_path):
    """W&B's own process writes blocks; where it is killed, its file lacks the last rows."""

    def fit(steps, checkpoint=None):
        logger = WandbLogger(save_dir=tmp_path, project="p")
        keeper = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1)
        options = {"max_steps": steps, "limit_val_batches": 0, "enable_checkpointing": True}
        callbacks = [RunMonitor(speed=False), keeper]
        trainer = quiet_trainer(tmp_path, logger=logger, callbacks=callbacks, **options)
        if checkpoint:
            wandb_run.go_on(trainer, checkpoint)
        trainer.fit(tiny(CrossEntropyModule), scenes(), ckpt_path=checkpoint)
        wandb_run.finish(trainer, 0)

    fit(4)
    (run,) = offline_runs(tmp_path)  # waits until all of the file is there
    (file,) = run.folder.glob("*.wandb")
    content = file.read_bytes()
    cut = content.rindex(b"train/loss", 0, content.rindex(b"train/loss"))
    file.write_bytes(content[:cut])
    assert 0 < len(rows_of_run(tmp_path, run.id)) < 4
    time.sleep(1.1)  # W&B names its folders by the second
    fit(6, str(tmp_path / "last.ckpt"))
    limit = time.monotonic() + 30  # another process writes the file
    while (rows := rows_of_run(tmp_path, run.id))[-1][0] < 5 and time.monotonic() < limit:
        time.sleep(0.1)
    assert [step for step, row in rows if "train/loss" in row] == [0, 1, 2, 3, 4, 5]
    assert [step for step, row in rows if "gradient/network" in row] == [0, 1, 2, 3, 4, 5]
