"""Two hosts that train together with torchrun: network namespaces of this machine, made as root."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from network_hosts import ADDRESSES, Hosts, hosts, missing
from places import ROOT
from slurm_cluster import PLACES, processes_in, wait_until

REASON = missing()
pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(REASON), reason=REASON or "all is here")]

TEMPLATE = ROOT / "configs" / "cluster" / "torchrun.sh"
TIMEOUT = 20  # seconds
WORDS = [
    "--data.image_size=[32,40]",
    "--data.crop_size=24",
    "--data.train_size=12",
    "--data.val_size=3",
    "--data.batch_size=2",
    "--data.num_workers=0",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.logger=false",
    "--trainer.max_epochs=2",
    "--trainer.strategy=DDPStrategy",
    f"--trainer.strategy.timeout=0:00:{TIMEOUT}",
    "--trainer.callbacks=ModelCheckpoint",
    "--trainer.callbacks.save_last=true",
    "--trainer.callbacks.monitor=val/miou",
    "--trainer.callbacks.enable_version_counter=false",
    "--model.network=tiny.TinyNet",
    "--model.lr=0.01",
]


@pytest.fixture(scope="module")
def network():
    with hosts() as made:
        yield made


class Group:
    """Processes on the hosts; none is left at the end."""

    def __init__(self, network: Hosts, folder: Path) -> None:
        self.network, self.folder = network, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.runs: list[subprocess.Popen] = []

    def start(self, *words: str, count: int = 2, processes: int = 1, port: int = 29511) -> None:
        """Start the template on `count` hosts, with a number of processes on each of them."""
        self.runs = []
        for number in range(count):
            environment = {
                **os.environ,
                "PATH": os.pathsep.join([str(Path(sys.executable).parent), PLACES]),
                "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")]),
                "COMMAND": f"{sys.executable} {ROOT / 'cli.py'}",
                "HOSTS": str(count),
                "PROCESSES": str(processes),
                "MEET": f"{ADDRESSES[0]}:{port}",
                "ADDRESS": ADDRESSES[number],
                "WAIT": "120",
                "GLOO_SOCKET_IFNAME": "cable",
                "WAIT_IN": str(self.folder),
            }
            inside = ["ip", "netns", "exec", self.network.names[number], "bash", str(TEMPLATE)]
            root = f"--trainer.default_root_dir={self.folder}"
            with (self.folder / f"out.{number}").open("w") as out:
                run = subprocess.Popen(
                    [*inside, "fit", *WORDS, root, *words],
                    env=environment,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    cwd=self.folder,
                )
            self.runs.append(run)

    def output(self) -> str:
        return "\n".join(file.read_text() for file in sorted(self.folder.glob("out.*")))

    def codes(self, patience: float = 300) -> list[int]:
        """Wait until all have ended, and no process is left; return their exit codes."""
        limit = time.monotonic() + patience
        try:
            codes = [run.wait(max(1.0, limit - time.monotonic())) for run in self.runs]
            wait_until(lambda: not processes_in(self.folder), "no process is left", 30)
        except (subprocess.TimeoutExpired, TimeoutError) as error:
            raise AssertionError(self.output()) from error
        return codes

    def end(self) -> None:
        """End what is left."""
        for number in processes_in(self.folder):
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        for run in self.runs:
            run.wait()


@pytest.fixture
def group(network: Hosts, tmp_path: Path):
    made = Group(network, tmp_path / "run")
    yield made
    made.end()
    network.plug("up")


def trainings(folder: Path) -> list[int]:
    """The processes of the command itself."""
    found = {number: Path(f"/proc/{number}/cmdline") for number in processes_in(folder)}
    texts = {number: file.read_bytes() for number, file in found.items() if file.exists()}
    return [
        number for number, text in texts.items() if b"torchrun" not in text and b"cli.py" in text
    ]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.rglob("last.ckpt")
    content = torch.load(file, weights_only=True)
    assert content["global_step"] == 6
    return content["state_dict"]


@pytest.fixture(scope="module")
def one_host(network: Hosts, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights after a training with two processes on one host."""
    made = Group(network, tmp_path_factory.mktemp("one") / "run")
    try:
        made.start(count=1, processes=2)
        assert made.codes() == [0], made.output()
        return weights(made.folder)
    finally:
        made.end()


def waits(step: int, **options: str) -> list[str]:
    more = [f"--trainer.callbacks.{key}={value}" for key, value in options.items()]
    return [
        "--trainer.callbacks+=interruptions.WaitsAt",
        f"--trainer.callbacks.step={step}",
        *more,
    ]


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """Bit for bit: the sum of two processes' gradients has one order."""
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(second[key], value), key


def test_two_hosts_train_like_one_with_two_processes(group: Group, one_host: dict) -> None:
    group.start()
    assert group.codes() == [0, 0], group.output()
    assert_equal(one_host, weights(group.folder))


def test_a_host_that_is_cut_off_ends_the_others_and_a_restart_resumes(
    group: Group, one_host: dict
) -> None:
    group.start(*waits(4))  # an epoch has 3 steps
    wait_until(lambda: len(list(group.folder.glob("waiting.*"))) == 2, "both wait", 300)
    group.network.plug("down")
    (group.folder / "go").touch()
    began = time.monotonic()
    code = group.runs[0].wait(TIMEOUT + 120)
    # beside the time-out: the agent of torchrun ends its processes within 30 seconds
    assert time.monotonic() - began < TIMEOUT + 60
    assert code != 0
    text = (group.folder / "out.0").read_text()
    assert "error: another process of this training has not answered" in text
    assert "(option: --trainer.strategy.timeout)" in text
    wait_until(lambda: not trainings(group.folder), "no training process is left", 60)
    assert "error: another process" in (group.folder / "out.1").read_text()
    # torchrun's agent on the host that is cut off waits for its connection as long as TCP does
    group.end()
    group.network.plug("up")
    group.start("--ckpt_path=auto", port=29512)
    assert group.codes() == [0, 0], group.output()
    assert "the training goes on from" in group.output()
    assert_equal(one_host, weights(group.folder))


def test_a_port_in_use_is_an_error_that_names_it(group: Group) -> None:
    listen = "import socket, time; s = socket.create_server(('', 29513)); time.sleep(600)"
    inside = ["ip", "netns", "exec", group.network.names[0], sys.executable, "-c", listen]
    listener = subprocess.Popen(inside)
    try:
        time.sleep(2)
        group.start(count=1, port=29513)
        assert group.codes() == [1]
    finally:
        listener.kill()
        listener.wait()
    assert group.output() == (
        f"error: port 29513 of {ADDRESSES[0]} is in use, and MEET must name a free one\n"
    )


def test_another_number_of_processes_than_the_trainer_expects(group: Group) -> None:
    group.start("--trainer.devices=2")
    assert 0 not in group.codes(), group.output()
    assert (
        "error: the Trainer expects 4 processes (devices 2 x num_nodes 2), and 2 were started"
        in group.output()
    )
    assert "--trainer.devices, --trainer.num_nodes)" in group.output()


def test_an_error_in_one_process_ends_all(group: Group) -> None:
    group.start(*waits(1, fails="true", rank="1"))
    assert 0 not in group.codes(), group.output()
    assert "broken on purpose" in group.output()
