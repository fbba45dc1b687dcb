"""One graph over two processes: the gradients of one process with all patches."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from places import ROOT, SUPPORT
from two_processes import run_two

SCRIPT = """
import json, os, sys
from pathlib import Path
import torch
from torch.utils.data import DataLoader
sys.path.insert(0, os.environ["TESTS"])
from small_runs import quiet_trainer
from tiny import DumpWeights
from lightning_seg import MixMatchModule
from lightning_seg.networks import TimmEncoder

folder, processes, scope = sys.argv[1], int(sys.argv[2]), sys.argv[3]
rank = int(os.environ.get("RANK", 0))
batches = torch.load(f"{folder}/batches.pt")  # of two processes
if processes == 2:
    mine = [pair[rank] for pair in batches]
else:
    mine = [{"image": torch.cat([a["image"], b["image"]]), "label": torch.cat([a["label"],
             b["label"]]), "id": ["x"]} for a, b in batches]
torch.manual_seed(0)
torch.set_num_threads(1)
ours = MixMatchModule(TimmEncoder("test_resnet"), num_classes=8, graph_scope=scope,
                      freeze_batch_norm="all", optimizer=torch.optim.SGD, lr=0.1)
trainer = quiet_trainer(
    folder, devices=processes, strategy="ddp" if processes == 2 else "auto", max_epochs=1,
    use_distributed_sampler=False, callbacks=[DumpWeights(f"{folder}/{scope}{processes}")],
)
loader = DataLoader(mine, batch_size=None)
trainer.fit(ours, loader, loader)
scores = {name: value.item() for name, value in trainer.callback_metrics.items()}
Path(folder, f"{scope}{processes}", f"scores{rank}.json").write_text(json.dumps(scores))
"""


def patches(labels: list[int], seed: int) -> dict:
    drawn = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (len(labels), 3, 32, 32), generator=drawn).to(torch.uint8)
    return {"image": image, "label": torch.tensor(labels), "id": ["x"]}


def trained(folder: Path, processes: int, scope: str) -> tuple[list[dict], list[dict]]:
    found = folder / f"{scope}{processes}"
    found.mkdir()
    words = ["-c", SCRIPT, str(folder), str(processes), scope]
    common = {"TESTS": str(SUPPORT)}
    if processes == 2:
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port()), "WORLD_SIZE": "2"}
        run_two(words, {**common, **where}, timeout=240)
    else:
        paths = os.pathsep.join([str(ROOT), common["TESTS"]])
        subprocess.run(
            [sys.executable, *words],
            env={**os.environ, **common, "PYTHONPATH": paths},
            check=True,
            capture_output=True,
            timeout=240,
        )
    ranks = range(processes)
    weights = [torch.load(found / f"rank{rank}.pt") for rank in ranks]
    return weights, [json.loads((found / f"scores{rank}.json").read_text()) for rank in ranks]


def port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def test_two_processes_share_one_graph(tmp_path: Path) -> None:
    """The third batch is of one class on either process; the last of one on both: no triplets."""
    labels = [
        ([0, 0, 1, 2], [2, 1, 1, 3]),
        ([4, 0, 0, 4], [4, 4, 5, 5]),
        ([6, 6, 6, 6], [7, 7, 7, 7]),
        ([1, 1, 1, 1], [1, 1, 1, 1]),
    ]
    pairs = [
        tuple(patches(each, 2 * step + rank) for rank, each in enumerate(pair))
        for step, pair in enumerate(labels)
    ]
    torch.save(pairs, tmp_path / "batches.pt")
    (alone,), (scores,) = trained(tmp_path, 1, "global")
    both, both_scores = trained(tmp_path, 2, "global")
    for name, value in alone.items():
        assert torch.equal(both[0][name], both[1][name]), name
        torch.testing.assert_close(both[0][name], value, rtol=1e-5, atol=1e-6, msg=name)
    # validation gathers all patches, here in another order: what does not depend on the draw
    for each in both_scores:
        for key in ("val/recall_at_1", "val/classes", "val/singleton_share"):
            assert each[key] == pytest.approx(scores[key])
    local, _ = trained(tmp_path, 2, "local")
    assert all(torch.equal(local[0][name], local[1][name]) for name in local[0])
    assert any(not torch.allclose(local[0][name], alone[name], atol=1e-6) for name in alone)
