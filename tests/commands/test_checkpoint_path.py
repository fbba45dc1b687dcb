"""From which checkpoint a run starts, and that no run overwrites another one's."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from small_runs import SMALL_WORDS

import cli
from lightning_seg import SetupError

KEEP = [
    "--trainer.callbacks=ModelCheckpoint",
    "--trainer.callbacks.filename=best",
    "--trainer.callbacks.monitor=val/miou",
    "--trainer.callbacks.mode=max",
    "--trainer.callbacks.save_last=true",
    "--trainer.callbacks.enable_version_counter=false",
]


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    folder = f"--trainer.default_root_dir={tmp_path}"
    return [*SMALL_WORDS, *KEEP, folder, "--trainer.max_epochs=1", "--model.lr=0.01"]


def fit(words: list[str], *more: str):
    return cli.main(["fit", *words, *more])


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_a_verb_that_needs_a_checkpoint_says_so(verb: str, words: list[str]) -> None:
    with pytest.raises(SetupError, match=rf"`{verb}` needs a checkpoint.*ckpt_path=untrained"):
        cli.main([verb, *words])


def test_an_untrained_network_is_used_where_that_is_asked_for(words: list[str]) -> None:
    run = cli.main(["validate", *words, "--ckpt_path=untrained"])
    assert 0 <= run.trainer.callback_metrics["val/miou"] <= 1


def test_best_and_last_are_found_in_the_runs_folder(words: list[str], tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"no checkpoint best\*\.ckpt in .*there are no check"):
        cli.main(["test", *words, "--ckpt_path=best"])
    trained = fit(words)
    for name in ("best", "last"):
        run = cli.main(["test", *words, f"--ckpt_path={name}"])
        assert Path(run.trainer.ckpt_path) == tmp_path / "checkpoints" / f"{name}.ckpt"
        weights = trained.model.network.state_dict()
        for key, value in run.model.network.state_dict().items():
            assert torch.equal(value.cpu(), weights[key])
    (tmp_path / "checkpoints" / "best.ckpt").rename(tmp_path / "checkpoints" / "other.ckpt")
    with pytest.raises(SetupError, match=r"there are .*last\.ckpt, .*other\.ckpt"):
        cli.main(["test", *words, "--ckpt_path=best"])


def test_a_second_training_in_the_same_folder_is_refused_and_nothing_is_touched(
    words: list[str], tmp_path: Path
) -> None:
    fit(words)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert tmp_path / "config.yaml" in before
    with pytest.raises(SetupError, match=r"earlier run \(best\.ckpt, last\.ckpt\).*ckpt_path=last"):
        fit(words, "--model.lr=0.5")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_training_goes_on_from_its_last_checkpoint(words: list[str]) -> None:
    assert fit(words, "--ckpt_path=auto").trainer.global_step == 2  # there is none: it starts
    longer = ["--trainer.max_epochs=2"]
    assert fit(words, *longer, "--ckpt_path=auto").trainer.global_step == 4
    longer = ["--trainer.max_epochs=3"]
    assert fit(words, *longer, "--ckpt_path=last").trainer.global_step == 6


def test_a_damaged_last_checkpoint_is_passed_over(words: list[str], tmp_path: Path) -> None:
    fit(words)
    (tmp_path / "checkpoints" / "last-broken.ckpt").write_bytes(b"half")
    assert fit(words, "--trainer.max_epochs=2", "--ckpt_path=auto").trainer.global_step == 4


def test_a_requeued_job_goes_on_by_itself(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(words)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert fit(words, "--trainer.max_epochs=2").trainer.global_step == 4


def test_a_start_that_fails_leaves_the_configuration_of_the_earlier_run(
    words: list[str], tmp_path: Path
) -> None:
    fit(words)
    before = (tmp_path / "config.yaml").read_text()
    other = ["--model.network.aux=true", "--ckpt_path=last"]
    with pytest.raises(SetupError, match="another network or method"):
        fit(words, *other)
    assert (tmp_path / "config.yaml").read_text() == before


def test_a_resumed_training_keeps_the_rows_of_its_metrics(words: list[str], tmp_path: Path) -> None:
    logger = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path}"]
    logger += ["--trainer.logger.version=0", "--trainer.log_every_n_steps=1"]
    words = [word for word in words if not word.startswith("--trainer.logger")]

    def steps() -> list[int]:
        with next(tmp_path.rglob("metrics.csv")).open() as file:
            return [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]

    fit(words, *logger)
    assert steps() == [0, 1]
    fit(words, *logger, "--trainer.max_epochs=2", "--ckpt_path=last")
    assert steps() == [0, 1, 2, 3]


@pytest.mark.filterwarnings("ignore:.*could not find the monitored key")
def test_a_training_without_a_validation_names_its_last_checkpoint(
    words: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short = ["--data.train_size=8", "--trainer.max_steps=1"]
    fit(words, *short)
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert f"written: {last}; next: " in caplog.text


def test_the_last_checkpoint_is_the_last_one_where_the_score_does_not_improve(
    words: list[str], tmp_path: Path
) -> None:
    worse = ["--trainer.callbacks.monitor=step", "--trainer.callbacks.mode=min"]
    fit(words, *worse, "--trainer.max_epochs=3")
    steps = {
        path.stem: torch.load(path, weights_only=True)["global_step"]
        for path in (tmp_path / "checkpoints").glob("*.ckpt")
    }
    assert steps == {"best": 2, "last": 6}
