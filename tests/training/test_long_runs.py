"""Memory, open files and threads stay what they are after the warm-up, the first fifth of a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import long_runs
import pytest
from methods import TWO_PLAYERS
from places import ROOT, SUPPORT

from lightning_seg.training.discriminator_watch import WINDOW


def run(folder: Path, method: str, steps: int, workers: int) -> None:
    """Train in a process of its own, and compare the second fifth of the run with the last one."""
    words = [long_runs.__file__, str(folder), method, str(steps), str(workers)]
    path = os.pathsep.join([str(ROOT), str(SUPPORT)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((folder / "holdings.json").read_text())
    assert len(rows) == long_runs.SAMPLES
    assert rows[-1]["loaders"] == (0 if workers == 0 else rows[0]["loaders"])
    assert (rows[-1]["loaders"] > 0) == (workers > 0)
    for name, (early, late) in long_runs.growth(rows).items():
        # of 500 steps, one object a step would be 300 more; files and threads are few
        more = {"memory": 0.01 * early, "objects": WINDOW}.get(name.split()[-1], 0)
        assert late <= early + more, name


@pytest.mark.parametrize("method", TWO_PLAYERS)
def test_two_players_hold_no_more_after_500_steps(method: str, tmp_path: Path) -> None:
    run(tmp_path, method, steps=500, workers=0)


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("method", TWO_PLAYERS)
def test_two_players_hold_no_more_after_5000_steps(
    method: str, workers: int, tmp_path: Path
) -> None:
    run(tmp_path, method, steps=5000, workers=workers)


def test_growth_is_that_from_the_second_fifth_to_the_last_one() -> None:
    rows = [{"step": step, "memory": 100 + 2 * step, "files": 6} for step in range(100)]
    rows[70]["files"] = 99  # for a moment
    assert long_runs.growth(rows) == {"memory": (159, 279), "files": (6, 6)}
