"""The shipped template under a real SLURM, which this file starts on this machine as root."""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from offline_runs import offline_runs
from places import ROOT
from slurm_cluster import Slurm, missing, slurm, wait_until

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(missing()), reason=missing() or "SLURM is here"),
]

TEMPLATE = ROOT / "configs" / "cluster" / "slurm.sbatch"
COMMAND = f"{sys.executable} {ROOT / 'cli.py'}"
SCENES = [
    "--data.image_size=[32,40]",
    "--data.crop_size=24",
    "--data.val_size=3",
    "--data.batch_size=2",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.log_every_n_steps=1",
]
FIT = [*SCENES, "--data.train_size=12", "--model.network=tiny.TinyNet", "--model.lr=0.01"]
EPOCHS, STEPS = ["--trainer.max_epochs=3"], list(range(18))
KEEP = [
    "--trainer.callbacks=ModelCheckpoint",
    "--trainer.callbacks.save_last=true",
    "--trainer.callbacks.monitor=val/miou",
    "--trainer.callbacks.filename=best",
    "--trainer.callbacks.enable_version_counter=false",
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory):
    with slurm(tmp_path_factory.mktemp("slurm")) as commands:
        yield commands


class Job:
    """A job of the shipped template in a folder of its own."""

    def __init__(self, cluster: Slurm, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        folder.mkdir(parents=True, exist_ok=True)

    def submit(self, *words: str, options: tuple[str, ...] = (), **environment: str) -> str:
        environment = {"COMMAND": COMMAND, "WAIT_IN": str(self.folder), **environment}
        sbatch = ["sbatch", "--parsable", f"--chdir={self.folder}", "--time=30", *options]
        self.number = self.cluster(*sbatch, str(TEMPLATE), *words, **environment)
        return self.number

    def wait_for_mark(self, count: int = 1) -> None:
        def there() -> bool:
            state = self.cluster.job(self.number)["JobState"]
            assert state in ("PENDING", "RUNNING", "CONFIGURING"), self.output()
            return len(list(self.folder.glob("waiting.*"))) == count

        wait_until(there, f"the run waits\n{self.output()}", 400)

    def wait(self, state: str = "COMPLETED", number: str = "") -> dict[str, str]:
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
        found = self.cluster.wait(number or self.number, *ended)
        assert found["JobState"] == state, self.output()
        return found

    def output(self) -> str:
        return "\n".join(file.read_text()[-6000:] for file in self.folder.glob("slurm-*.out"))


def loggers(folder: Path) -> list[str]:
    """A piece with three loggers, without a version, in one folder."""
    kinds = {"CSVLogger": {"name": "csv"}, "TensorBoardLogger": {"name": "tb"}}
    pieces = [
        {
            "class_path": f"lightning.pytorch.loggers.{kind}",
            "init_args": {"save_dir": str(folder), **options},
        }
        for kind, options in {**kinds, "WandbLogger": {"project": "p"}}.items()
    ]
    piece = folder / "loggers.yaml"
    piece.parent.mkdir(parents=True, exist_ok=True)
    piece.write_text(json.dumps({"trainer": {"logger": pieces}}))
    return ["-c", str(piece)]


def waits(step: int, fails: bool = False) -> list[str]:
    return [
        "--trainer.callbacks+=interruptions.WaitsAt",
        f"--trainer.callbacks.step={step}",
        f"--trainer.callbacks.fails={str(fails).lower()}",
    ]


def weights(folder: Path, name: str = "last.ckpt") -> dict[str, torch.Tensor]:
    (file,) = folder.rglob(name)
    return torch.load(file, weights_only=True)["state_dict"]


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(second[key], value), key


def csv_steps(folder: Path, key: str) -> list[int]:
    (file,) = folder.rglob("metrics.csv")
    with file.open() as lines:
        return [int(row["step"]) for row in csv.DictReader(lines) if row.get(key)]


def tensorboard_steps(folder: Path, key: str) -> list[int]:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    files = sorted(folder.rglob("events.out.tfevents.*"))
    assert len({file.parent for file in files}) == 1
    events = [event for file in files for event in EventFileLoader(str(file)).Load()]
    return [e.step for e in events for value in e.summary.value if value.tag == key]


def wandb_steps(folder: Path, key: str) -> list[int]:
    runs = offline_runs(folder)
    # a file of which nothing was written before the job was killed has no id yet
    assert len({run.id for run in runs} - {""}) == 1
    return [step for run in runs for step, _ in run.values(key)]


def assert_each_step_once(folder: Path) -> None:
    for read in (csv_steps, tensorboard_steps, wandb_steps):
        assert read(folder, "train/loss") == STEPS, read
        assert read(folder, "val/miou") == [5, 11, 17], read


@pytest.fixture(scope="module")
def undisturbed(cluster: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody interrupts, with loader processes."""
    job = Job(cluster, tmp_path_factory.mktemp("undisturbed") / "run")
    job.submit("fit", *loggers(job.folder), *FIT, *EPOCHS, *KEEP, "--data.num_workers=0")
    found = job.wait()
    assert found["Restarts"] == "0"
    assert_each_step_once(job.folder)
    return job.folder


def interrupt(job: Job, how: str) -> None:
    if how == "preemption":
        high = ["--parsable", "-p", "high", "--exclusive", "-N2", "--time=1", "--output=/dev/null"]
        job.cluster("sbatch", *high, "--wrap", "sleep 1")
    elif how == "time limit":
        # the template asks for the signal 120 seconds before, and the resolution is a minute
        job.cluster("scontrol", "update", f"jobid={job.number}", "TimeLimit=3")
    elif how == "killed node":
        job.cluster("scontrol", "requeue", job.number)
    else:
        job.cluster("scancel", f"--signal={how}", job.number)


@pytest.mark.parametrize(
    ("how", "step"),
    [("USR1", 11), ("time limit", 8), ("preemption", 8), ("killed node", 8)],
)
def test_an_interrupted_job_goes_on_without_a_flag_to_the_same_result(
    how: str, step: int, cluster: Slurm, undisturbed: Path, tmp_path: Path
) -> None:
    """An epoch has 6 steps. Step 11 is the last one of an epoch, before its validation."""
    job = Job(cluster, tmp_path / "run")
    words = [*FIT, *EPOCHS, *KEEP, *waits(step), "--data.num_workers=2"]
    job.submit("fit", *loggers(job.folder), *words)
    job.wait_for_mark()
    interrupt(job, how)
    assert job.wait()["Restarts"] == "1", job.output()
    assert "the training goes on from" in job.output()
    assert_equal(weights(undisturbed), weights(job.folder))
    assert_each_step_once(job.folder)


def test_a_requeue_before_the_first_checkpoint_starts_again_in_the_same_runs(
    cluster: Slurm, undisturbed: Path, tmp_path: Path
) -> None:
    job = Job(cluster, tmp_path / "run")
    job.submit("fit", *loggers(job.folder), *FIT, *EPOCHS, *KEEP, *waits(3))
    job.wait_for_mark()
    interrupt(job, "killed node")  # SLURM ends all processes at once
    assert job.wait()["Restarts"] == "1", job.output()
    assert_equal(weights(undisturbed), weights(job.folder))
    assert_each_step_once(job.folder)


def test_an_array_of_seeds_gives_a_folder_each_and_a_requeued_task_takes_its_own_checkpoint(
    cluster: Slurm, tmp_path: Path
) -> None:
    job = Job(cluster, tmp_path / "run")
    csv_in_one_folder = ["-c", "configs/logger/csv.yaml"]
    words = [*csv_in_one_folder, *FIT, "--trainer.max_epochs=2", *KEEP, *waits(8)]
    job.submit("fit", *words, options=("--array=0-2",))
    job.wait_for_mark(3)
    task = next(
        number for number in (f"{job.number}_1",) if cluster.job(number)["JobState"] == "RUNNING"
    )
    cluster("scancel", "--signal=USR1", task)
    (job.folder / "go").touch()
    for number in range(3):
        found = job.wait(number=f"{job.number}_{number}")
        assert found["Restarts"] == str(int(number == 1))
    folders = sorted(job.folder.glob("runs/csv/*"))
    assert [each.name for each in folders] == [f"job_{job.number}_{task}" for task in range(3)]
    first, second, third = (weights(each) for each in folders)
    key = "network.head.1.weight"
    assert not torch.equal(first[key], second[key])
    assert not torch.equal(third[key], second[key])
    for each in folders:
        assert Counter(csv_steps(each, "train/loss")) == Counter(range(12))


def test_a_job_that_fails_ends_failed(cluster: Slurm, tmp_path: Path) -> None:
    job = Job(cluster, tmp_path / "run")
    job.submit("fit", *FIT, *EPOCHS, *KEEP, *waits(1, fails=True), options=("--ntasks-per-node=2",),
               MASTER_ADDR="127.0.0.1")  # fmt: skip
    found = job.wait("FAILED")
    assert found["ExitCode"] != "0:0"
    assert "broken on purpose" in job.output()
    assert found["Restarts"] == "0"


def test_a_pipeline_is_requeued_and_goes_on_in_its_stage(cluster: Slurm, tmp_path: Path) -> None:
    """Two tasks on one node. The second stage is interrupted; the first one is not repeated."""
    stages = []
    for number in (1, 2):
        piece = tmp_path / f"{number}_stage.yaml"
        piece.write_text(json.dumps({"trainer": {"max_epochs": 2}}))
        stages.append(str(piece))
    words = [
        "--stages",
        *stages,
        *SCENES,
        "--data.train_size=12",
        "--data.crop_size=32",
        "--model.network=lightning_seg.networks.FCN",
        "--model.network.encoder=resnet10t",
        "--model.lr=0.01",
        "--trainer.strategy=ddp",
        *KEEP,
    ]
    two = ("--ntasks-per-node=2",)
    whole, cut = (Job(cluster, tmp_path / name) for name in ("whole", "cut"))
    for job, more in ((whole, []), (cut, waits(4))):  # an epoch has 3 steps
        csv_logger = ["-c", "configs/logger/csv.yaml"]
        job.submit("pipeline", *csv_logger, *words, *more, options=two, MASTER_ADDR="127.0.0.1")
    whole.wait()
    # both processes wait in both stages, and the first stage may go on
    cut.wait_for_mark(2)
    for mark in cut.folder.glob("waiting.1_stage*"):
        assert mark.exists()
    (cut.folder / "go").touch()
    wait_until(lambda: len(list(cut.folder.glob("runs/*/1_stage/done"))) == 1, "stage 1 is done")
    (cut.folder / "go").unlink()
    cut.wait_for_mark(4)
    cluster("scancel", "--signal=USR1", cut.number)
    assert cut.wait()["Restarts"] == "1", cut.output()
    assert "1_stage, done before" in cut.output()
    assert "2_stage, goes on from" in cut.output()
    for stage in ("1_stage", "2_stage"):
        (first,), (second,) = (list(each.folder.glob(f"runs/*/{stage}")) for each in (whole, cut))
        assert_equal(weights(first), weights(second))
        assert csv_steps(second, "train/loss") == [0, 1, 2, 3, 4, 5]


def test_two_nodes_and_the_number_of_processes(cluster: Slurm, tmp_path: Path) -> None:
    job = Job(cluster, tmp_path / "two")
    words = [*FIT, "--trainer.max_epochs=1", *KEEP, "--trainer.strategy=ddp"]
    dump = ["--trainer.callbacks+=tiny.DumpWeights", f"--trainer.callbacks.folder={job.folder}"]
    job.submit("fit", *words, *dump, options=("--nodes=2",), MASTER_ADDR="127.0.0.1")
    job.wait()
    first, second = (torch.load(job.folder / f"rank{rank}.pt") for rank in range(2))
    for key, value in first.items():
        if "running_" not in key:  # each process has batch statistics of its own
            assert torch.equal(second[key], value), key
    wrong = Job(cluster, tmp_path / "wrong")
    wrong.submit("fit", *words, "--trainer.devices=1", options=("--ntasks-per-node=2",))
    assert wrong.wait("FAILED")["Restarts"] == "0"
    assert "expects 1 processes (devices 1 x num_nodes 1), and 2 were started" in wrong.output()
