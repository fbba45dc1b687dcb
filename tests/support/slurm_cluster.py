"""A SLURM of its own on this machine: all of it in one folder, and stopped at the end."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from places import ROOT

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
PLACES = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
NODES = 2
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=30
MinJobAge=3600
SlurmdTimeout=600
"""


def missing() -> str:
    """Return what keeps a SLURM from being started here; an empty text where nothing does."""
    lacking = [name for name in PROGRAMS if shutil.which(name, path=PLACES) is None]
    if lacking:
        return f"{', '.join(lacking)} missing: Debian's packages slurm-wlm and munge have them"
    return "" if os.geteuid() == 0 else "SLURM's daemons are started as root"


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def wait_until(holds: Callable[[], object], what: str, patience: float = 240.0) -> None:
    """Poll until something holds; say what was waited for where it never does."""
    limit = time.monotonic() + patience
    while not holds():
        if time.monotonic() > limit:
            raise TimeoutError(f"waited {patience:.0f} s until {what}")
        time.sleep(0.1)


class Slurm:
    """The commands of a running SLURM."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        paths = [str(Path(sys.executable).parent), PLACES]
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("SLURM")},
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": os.pathsep.join(paths),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")]),
            "OMP_NUM_THREADS": "1",
        }

    def __call__(self, *words: str, **environment: str) -> str:
        """Run a command such as `sbatch` and return what it prints."""
        done = subprocess.run(
            words,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """Return what `scontrol show job` says of a job, or of one task of an array."""
        words = self("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.partition("=")[::2] for word in words if "=" in word)

    def wait(self, number: str, *states: str, patience: float = 400.0) -> dict[str, str]:
        """Wait until a job is in one of some states; let a requeued one start at once."""

        hurried: set[str] = set()

        def reached() -> bool:
            found = self.job(number)
            waits = found["JobState"] == "PENDING" and found.get("Reason") == "BeginTime"
            if waits and found["Restarts"] not in hurried:
                # within a second slurmd still refuses the job: "Job credential revoked"
                with suppress(AssertionError):  # it may still be completing
                    self("scontrol", "update", f"jobid={number}", "StartTime=now+4")
                    hurried.add(found["Restarts"])
            if found["JobState"] not in states:
                return False
            time.sleep(2)  # a job that is being requeued can show the end of its first run
            return self.job(number)["JobState"] in states

        wait_until(reached, f"job {number} is {' or '.join(states)}", patience)
        return self.job(number)


def processes_in(folder: Path) -> list[int]:
    """Return the processes whose environment or command names the folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            text = (place / "cmdline").read_bytes() + (place / "environ").read_bytes()
            if str(folder).encode() in text and int(place.name) != os.getpid():
                found.append(int(place.name))
    return found


def _stop(daemons: list[subprocess.Popen], folder: Path) -> None:
    for each in reversed(daemons):
        each.terminate()
    for each in reversed(daemons):
        with suppress(subprocess.TimeoutExpired):
            each.wait(20)
        each.kill()
    for number in processes_in(folder):  # what a job may have left
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


@contextmanager
def slurm(folder: Path) -> Iterator[Slurm]:
    """Start a SLURM with nodes that are all this machine; stop all of it at the end."""
    for name in ("state", *(f"spool.n{number}" for number in range(NODES))):
        (folder / name).mkdir(parents=True)
    ports = free_ports(1 + NODES)
    host = socket.gethostname().partition(".")[0]
    text = CONFIGURATION.format(folder=folder, ports=ports, host=host)
    for number in range(NODES):
        text += (
            f"NodeName=n{number} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1 + number]} "
            "CPUs=4 RealMemory=8000 State=UNKNOWN\n"
        )
    shared = "Nodes=ALL MaxTime=INFINITE State=UP"
    text += (
        f"PartitionName=low {shared} Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60\n"
    )
    text += f"PartitionName=high {shared} PriorityTier=2 PreemptMode=OFF\n"
    (folder / "slurm.conf").write_text(text)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    commands = Slurm(folder)
    daemons: list[subprocess.Popen] = []

    def start(*words: str) -> None:
        with (folder / f"{words[0]}.out").open("a") as out:
            daemons.append(
                subprocess.Popen(words, env=commands.environment, stdout=out, stderr=out)
            )

    try:
        files = {"socket": "munge.socket", "pid-file": "munge.pid", "seed-file": "munge.seed"}
        options = [f"--{name}={folder / file}" for name, file in files.items()]
        start("munged", "--foreground", "--force", f"--key-file={key}", *options)
        wait_until((folder / "munge.socket").exists, "munged has a socket", 60)
        start("slurmctld", "-D")
        for number in range(NODES):
            start("slurmd", "-D", "-N", f"n{number}")

        def idle() -> bool:
            with suppress(AssertionError):
                return (
                    commands("sinfo", "-h", "-N", "-p", "low", "-o", "%t").split()
                    == ["idle"] * NODES
                )
            return False

        wait_until(idle, f"all nodes are idle ({folder})", 120)
        yield commands
    finally:
        with suppress(AssertionError, subprocess.TimeoutExpired):
            commands("scancel", "--full", "--signal=KILL", "--partition=low")
        _stop(daemons, folder)
