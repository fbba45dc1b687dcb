"""A run that is asked to end: exit code, checkpoint, and how it goes on."""

from __future__ import annotations

import csv
import signal
from pathlib import Path

import pytest
import torch
from places import ROOT
from small_runs import SMALL_WORDS
from two_processes import meeting_place, run_two

import cli

KEEP = ["--trainer.callbacks=ModelCheckpoint", "--trainer.callbacks.save_top_k=0"]


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    folder = f"--trainer.default_root_dir={tmp_path}"
    return [*SMALL_WORDS, folder, "--data.train_size=12", "--trainer.max_epochs=2"]


def send(number: int, batch: int, hook: str = "train") -> list[str]:
    return [
        "--trainer.callbacks+=tiny.SignalAt",
        f"--trainer.callbacks.number={int(number)}",
        f"--trainer.callbacks.batch={batch}",
        f"--trainer.callbacks.hook={hook}",
    ]


@pytest.mark.parametrize(
    ("number", "code", "name"), [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "SIGINT")]
)
def test_a_training_writes_a_checkpoint_and_goes_on_to_the_same_result(
    number: int, code: int, name: str, words: list[str], tmp_path: Path, caplog
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    whole = cli.main(["fit", *words, f"--trainer.default_root_dir={tmp_path}/whole"])
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", *words, *KEEP, *send(number, 3)])
    assert stop.value.code == code
    assert signal.getsignal(signal.SIGTERM) == before
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert last.is_file()
    assert f"ended by {name} after" in caplog.text
    assert f"--ckpt_path {last}" in caplog.text
    resumed = cli.main(["fit", *words, f"--ckpt_path={last}"])
    assert resumed.trainer.global_step == whole.trainer.global_step == 12
    for key, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], value), key


ACCUMULATING = {
    "one player": ["--trainer.accumulate_grad_batches=4"],
    "two players": ["--model=ASMLModule", "--model.accumulate_grad_batches=4"],
}


@pytest.mark.parametrize("batch", [2, 5])  # of six batches an epoch, in steps of four and of two
@pytest.mark.parametrize("players", ACCUMULATING)
def test_a_signal_between_two_steps_waits_for_the_gradients_of_the_next_one(
    players: str, batch: int, words: list[str], tmp_path: Path
) -> None:
    words = [*ACCUMULATING[players], *words, "--data.crop_size=32", "--model.lr=0.01"]
    whole = cli.main(["fit", *words, f"--trainer.default_root_dir={tmp_path}/whole"])
    with pytest.raises(SystemExit):
        cli.main(["fit", *words, *KEEP, *send(signal.SIGTERM, batch)])
    resumed = cli.main(["fit", *words, "--ckpt_path=last"])
    assert resumed.trainer.global_step == whole.trainer.global_step == 4
    for key, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], value), key


@pytest.mark.parametrize("batch", [6, 12])
def test_a_signal_in_the_last_batch_of_an_epoch_skips_no_validation(
    batch: int, words: list[str], tmp_path: Path
) -> None:
    """Batch 6 ends the first epoch: the run ends in the validation. Batch 12 ends the training."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", *words, *KEEP, *send(signal.SIGTERM, batch)])
    assert stop.value.code == 143
    if batch == 6:
        resumed = cli.main(["fit", *words, "--ckpt_path=last"])
        assert resumed.trainer.global_step == 12
        assert "val/miou" in resumed.trainer.callback_metrics


@pytest.mark.parametrize(("verb", "hook"), [("predict", "predict"), ("test", "test")])
def test_other_verbs_end_too(verb: str, hook: str, words: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, *words, "--ckpt_path=untrained", *send(signal.SIGTERM, 1, hook),
                  "--data.test_size=3", "--data.val_batch_size=1"])  # fmt: skip
    assert stop.value.code == 143
    assert len(list((tmp_path / "predictions").rglob("*.png"))) <= 1


def test_a_signal_in_a_validation_within_a_training(words: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", *words, *KEEP, *send(signal.SIGTERM, 1, "validation")])
    assert stop.value.code == 143
    assert cli.main(["fit", *words, "--ckpt_path=last"]).trainer.global_step == 12


TWO = """
import os, sys
sys.path[:0] = [os.environ["ROOT"], os.environ["ROOT"] + "/tests/support"]
import torch, cli
torch.set_num_threads(1)
try:
    cli.main(sys.argv[1:])
    code = 0
except SystemExit as stop:
    code = stop.code
print("code", code)
os._exit(0 if code == int(os.environ["WANTED"]) else 1)
"""


def test_a_signal_to_one_process_ends_both_and_they_go_on(words: list[str], tmp_path: Path) -> None:
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.train_size=24"]
    stop = [*KEEP, *send(signal.SIGTERM, 2), "--trainer.callbacks.rank=1"]
    environment = {"ROOT": str(ROOT), "WANTED": "143"}
    run_two(["-c", TWO, "fit", *words, *two, *stop], {**meeting_place(), **environment}, 120)
    found = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert 2 <= found["global_step"] <= 5
    assert len(found["random_state"]) == 2


@pytest.mark.parametrize(("hook", "batch"), [("train", 6), ("validation", 1), ("validation", 3)])
def test_the_interrupted_validation_is_logged_when_the_training_goes_on(
    hook: str, batch: int, words: list[str], tmp_path: Path
) -> None:
    """Signals in the last batch of the first epoch, and in the first and last of its validation."""
    logger = [
        "--trainer.logger=CSVLogger",
        f"--trainer.logger.save_dir={tmp_path}",
        "--trainer.logger.version=0",
        "--trainer.log_every_n_steps=1",
        "--data.val_size=3",
        "--data.val_batch_size=1",
    ]
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", *words, *logger, *KEEP, *send(signal.SIGTERM, batch, hook)])
    assert stop.value.code == 143
    cli.main(["fit", *words, *logger, "--ckpt_path=last"])
    (file,) = tmp_path.rglob("metrics.csv")
    with file.open() as lines:
        rows = list(csv.DictReader(lines))
    assert [int(row["step"]) for row in rows if row["val/miou"]] == [5, 11]
    assert [int(row["step"]) for row in rows if row["train/loss"]] == list(range(12))
