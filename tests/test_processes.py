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
