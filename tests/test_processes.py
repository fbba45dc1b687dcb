"""Processes of one run end together."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from places import ROOT

# without the package's __init__ a process starts in a third of the time
CHILD = """
import sys, time, types
package = sys.modules["lightning_seg"] = types.ModuleType("lightning_seg")
package.__path__ = [sys.argv[1] + "/lightning_seg"]
from lightning_seg.processes import end_with_parent
end_with_parent(interval=0.05)
print("ready", flush=True)
time.sleep(60)
"""
# starts a process, says its number, and waits
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[2], sys.argv[1]], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = open(f"/proc/{pid}/stat").read().split()[2]  # noqa: PTH123, SIM115
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"


@pytest.mark.parametrize(("rank", "ends"), [("1", True), ("0", False)])
def test_a_started_process_ends_when_the_one_that_started_it_is_killed(
    rank: str, ends: bool
) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(ROOT), CHILD],
        env={**os.environ, "LOCAL_RANK": rank},
        stdout=subprocess.PIPE,
        text=True,
    )
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + (20 if ends else 1)
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive(child) != ends
    if not ends:
        os.kill(child, 9)


WORKER = """
import os, signal, subprocess, time
from torch.utils.data import Dataset
from datamodules.loading.loaders import QuietLoader, set_up_worker

class Slow(Dataset):
    def __len__(self):
        return 6
    def __getitem__(self, number):
        time.sleep(0.2)
        return number

signal.signal(signal.SIGTERM, lambda *_: None)
signal.signal(signal.SIGUSR1, lambda *_: None)
signal.signal(signal.SIGINT, lambda *_: None)
loader = QuietLoader(Slow(), num_workers=2, worker_init_fn=set_up_worker, persistent_workers=True)
batches = iter(loader)
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):  # another process sends them
    subprocess.run(["sh", "-c", f"kill -{int(number)} 0"])
assert [int(batch) for batch in batches] == list(range(6))
worker = batches._workers[0]
signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch raises an error when a worker ends
worker.terminate()  # the parent may
worker.join(20)
print("done" if worker.exitcode == 0 else worker.exitcode, flush=True)
os._exit(0)
"""


def test_signals_to_all_processes_of_a_run_leave_its_loader_processes_alive() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WORKER],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        start_new_session=True,
    )
    assert done.stdout == "done\n", done.stderr
