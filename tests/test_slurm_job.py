"""The name of a job of SLURM, and what a run of the command does with it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from small_runs import SMALL_WORDS, quiet_trainer

import cli
from lightning_seg import SetupError
from lightning_seg.commands.job import require_all_processes
from lightning_seg.slurm_job import is_preempted, job_name, requeue, was_requeued


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "7"}, None),  # in a script, but not started by srun
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}, "job_7"),
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "2"}, "job_7_step_2"),
        (
            {
                "SLURM_JOB_ID": "9",
                "SLURM_STEP_ID": "0",
                "SLURM_ARRAY_JOB_ID": "7",
                "SLURM_ARRAY_TASK_ID": "2",
            },
            "job_7_2",
        ),
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "bash"}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PTY_PORT": "1"}, None),
    ],
)
def test_a_step_of_a_job_has_a_name(
    variables: dict[str, str], name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in [each for each in os.environ if each.startswith("SLURM")]:
        monkeypatch.delenv(key)
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    assert job_name() == name
    assert not was_requeued()


@pytest.mark.parametrize(
    ("says", "code", "requeued", "preempted"),
    [
        ("JobState=RUNNING X=1 PreemptTime=2026-11-26T02:26:10 ", 0, "is requeued", True),
        ("JobState=RUNNING X=1 PreemptTime=None ", 0, "is requeued", False),
        ("JobState=CANCELLED X=1 PreemptTime=2026-11-26 ", 1, "is not requeued: ", False),
    ],
)
def test_scontrol_is_asked_for_a_requeue_and_for_a_preemption(
    says: str, code: int, requeued: str, preempted: bool, tmp_path: Path, monkeypatch
) -> None:
    program = tmp_path / "scontrol"
    program.write_text(f"#!/bin/sh\necho '   {says}'\nexit {code}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert requeued in requeue()
    assert is_preempted() == preempted
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert requeue() == "the job 7 is not requeued, because the program scontrol is missing"
    assert not is_preempted()


def test_another_number_of_processes_is_an_error(tmp_path: Path, monkeypatch) -> None:
    trainer = quiet_trainer(tmp_path)
    require_all_processes(trainer)  # one process, which nobody else has started
    environment = TorchElasticEnvironment()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(trainer._accelerator_connector, "cluster_environment", environment)
    with pytest.raises(SetupError, match=r"expects 1 processes .*, and 2 were started.*devices"):
        require_all_processes(trainer)


def test_a_requeued_job_takes_its_own_checkpoint_and_folder(tmp_path: Path, monkeypatch) -> None:
    """Another job has trained longer, in the same folder of logs."""

    def fit(job: str, epochs: int, restarts: str = "0"):
        for key, value in (("JOB_ID", job), ("STEP_ID", "0"), ("RESTART_COUNT", restarts)):
            monkeypatch.setenv(f"SLURM_{key}", value)
        logger = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path}"]
        keep = ["--trainer.callbacks=ModelCheckpoint", "--trainer.callbacks.save_last=true"]
        words = [word for word in SMALL_WORDS if "logger" not in word]
        where = f"--trainer.default_root_dir={tmp_path}"
        options = [*logger, *keep, where, f"--trainer.max_epochs={epochs}"]
        return cli.main(["fit", *words, *options, "--trainer.log_every_n_steps=1"])

    first = fit("1", 1)
    assert Path(first.trainer.log_dir).name == "job_1"
    fit("2", 3)
    again = fit("1", 2, restarts="1")
    assert Path(again.trainer.ckpt_path) == Path(first.trainer.log_dir, "checkpoints/last.ckpt")
    assert again.trainer.global_step == 4
    lines = Path(again.trainer.log_dir, "metrics.csv").read_text().splitlines()
    place = lines[0].split(",").index("step")
    loss = lines[0].split(",").index("train/loss")
    rows = [line.split(",") for line in lines[1:]]
    assert [row[place] for row in rows if row[loss]] == ["0", "1", "2", "3"]
