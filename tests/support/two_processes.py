"""Two gloo processes: a script in both, or a loss, each with its half of the images."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from places import ROOT

SCRIPT = """
import os, sys, types
# losses need torch alone: without the package's __init__ a process starts in a third of the time
package = sys.modules["lightning_seg"] = types.ModuleType("lightning_seg")
package.__path__ = [sys.argv[2] + "/lightning_seg"]
import torch
import torch.distributed as dist
from lightning_seg.losses import *

rank, folder = int(os.environ["RANK"]), sys.argv[1]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
cases = torch.load(f"{folder}/cases.pt")
results = []
for logits, target, *rest in cases:
    leaf = logits[rank].clone().requires_grad_()
    labels = target[rank]
    loss = LOSS
    (gradient,) = torch.autograd.grad(loss, leaf)
    results.append((loss.detach(), gradient))
if rank == 0:  # alone: evaluation talks to nobody, or this hangs
    module = MODULE.eval()
    assert module(cases[0][0][0], cases[0][1][0]).isfinite()
torch.save(results, f"{folder}/rank{rank}.pt")
dist.barrier()
dist.destroy_process_group()
"""


def meeting_place() -> dict[str, str]:
    """Return the environment by which two processes find each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "test",
    }


def run_two(words: list[str], environment: dict[str, str], timeout: float, count: int = 2) -> None:
    """Run `python *words` twice at a time; RANK and LOCAL_RANK tell which one it is."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    shared = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment}
    runs = [
        subprocess.Popen(
            [sys.executable, *words],
            env={**shared, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")[:count]
    ]
    try:
        for run in runs:
            _, told = run.communicate(timeout=timeout)
            assert run.returncode == 0, told
    finally:
        for run in runs:
            run.kill()


def in_two_processes(cases: list, loss: str, module: str, folder: Path) -> list[list]:
    """Return the loss and the gradient of every case, for both processes.

    `cases` are tuples of (2, ...) logits, (2, ...) targets and more; `loss` is an expression of
    `leaf`, `labels` and `rest`, `module` one that makes the loss's module.
    """
    torch.save(cases, folder / "cases.pt")
    script = SCRIPT.replace("LOSS", loss).replace("MODULE", module)
    run_two(["-c", script, str(folder), str(ROOT)], {}, timeout=120)
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]
