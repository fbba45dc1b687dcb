"""What a training step exchanges and computes, and how a cluster of GPUs scales with it.

    python benchmarks/scaling.py measure     # two processes on this machine, without a network
    python benchmarks/scaling.py ids         # lists, splits and samplers of 1,000 to 1,000,000 ids
    python benchmarks/scaling.py page        # the tables of docs/scaling.md

`measure` trains each method in two processes that exchange nothing, and then with DDP (gloo). It
writes the seconds per step of both, the bytes and the number of exchanges, and the floating-point
operations of a step. `page` adds a model of the step time on GPUs; the page names its assumptions.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
STEPS, EXCHANGES, WORK, IDS = (
    RESULTS / f"scaling_{name}.csv" for name in ("steps", "exchanges", "work", "ids")
)
LIGHT, HEAVY = "mobilenetv3_large_100", "resnet50"
SIDE, CLASSES, IMAGES = 129, 21, 2
ROUNDS, WARM = 20, 3


def methods(encoder: str = LIGHT) -> dict[str, Callable[[], Any]]:
    """Return every method by its name, as a function that makes a module.

    Args:
        encoder: `LIGHT` takes LR-ASPP, `HEAVY` DeepLabV3.
    """
    import torch

    from lightning_seg import (
        ASMLModule,
        CPGModule,
        CrossEntropyModule,
        LMPModule,
        MixMatchModule,
        SemiAdvModule,
    )
    from lightning_seg.networks import LRASPP, DeepLabV3, TimmEncoder

    shared: dict[str, Any] = {"num_classes": CLASSES, "lr": 0.01, "optimizer": torch.optim.SGD}
    network = partial(LRASPP if encoder == LIGHT else DeepLabV3, encoder=encoder)
    pieces: dict[str, tuple[Any, dict[str, Any]]] = {
        "cross-entropy": (CrossEntropyModule, {}),
        "LMP": (LMPModule, {}),
        "LMP, one pool of all processes": (LMPModule, {"per_image": False}),
        "CPG": (CPGModule, {"false_edges": 1.0}),
        "ASM": (ASMLModule, {}),
        "SemiAdv": (SemiAdvModule, {"semi_start": 0}),
    }
    found = {
        name: partial(kind, network, **shared, **more) for name, (kind, more) in pieces.items()
    }
    for scope in ("local", "global"):
        options = {"graph_scope": scope, "flatten": "gap", **shared}
        found[f"mix-and-match, {scope} graph"] = partial(
            lambda options: MixMatchModule(TimmEncoder(encoder), **options), options
        )
    return found


def batch(name: str, rank: int) -> dict[str, Any]:
    """Return a batch for a method: images with blobs of classes, or patches."""
    import torch

    draw = torch.Generator().manual_seed(rank)
    if name.startswith("mix"):
        image = torch.randint(256, (20, 3, 64, 64), dtype=torch.uint8, generator=draw)
        return {"image": image, "label": torch.arange(20) % 6, "id": ["x"] * 20}

    def group() -> dict[str, Any]:
        shape = (IMAGES, 3, SIDE, SIDE)
        coarse = torch.randint(CLASSES, (IMAGES, 9, 9), generator=draw)
        mask = coarse.repeat_interleave(15, 1).repeat_interleave(15, 2)[:, :SIDE, :SIDE]
        image = torch.randint(256, shape, dtype=torch.uint8, generator=draw)
        valid = torch.ones(IMAGES, SIDE, SIDE, dtype=torch.bool)
        return {"image": image, "mask": mask, "valid": valid, "id": ["x"] * IMAGES}

    return {key: group() for key in ("labeled", "unlabeled", "labeled_real")}


class Traffic:
    """Counts what a process exchanges itself, other than the gradients that DDP averages."""

    def __init__(self) -> None:
        self.calls, self.bytes = 0, 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        import torch.distributed as dist

        def spy(name: str) -> Any:
            original = getattr(dist, name)

            def call(*args: Any, **kwargs: Any) -> Any:
                tensors = [each for each in args if hasattr(each, "element_size")]
                self.calls += 1
                self.bytes += sum(each.numel() * each.element_size() for each in tensors[-1:])
                return original(*args, **kwargs)

            return patch.object(dist, name, call)

        with spy("all_reduce"), spy("all_gather"), spy("all_gather_into_tensor"):
            yield


def train(module: Any, name: str, rank: int, strategy: Any, callback: Any, steps: int) -> None:
    """Train a module for some steps on the same batch."""
    import lightning as L
    from torch.utils.data import DataLoader

    trainer = L.Trainer(
        accelerator="cpu",
        devices=1 if strategy == "auto" else 2,
        strategy=strategy,
        max_steps=steps,
        log_every_n_steps=1000,
        use_distributed_sampler=False,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(module, DataLoader([batch(name, rank)] * steps, batch_size=None))


def step_seconds(name: str, rank: int, strategy: Any) -> dict[str, Any]:
    """Train a method for some steps; return its seconds per step and what it exchanged."""
    import lightning as L
    import torch

    class Clock(L.Callback):
        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.traffic: list[tuple[int, int]] = []

        def on_train_batch_start(self, *_: Any) -> None:
            traffic.calls = traffic.bytes = 0
            self.began = time.perf_counter()

        def on_train_batch_end(self, *_: Any) -> None:
            self.seconds.append(time.perf_counter() - self.began)
            self.traffic.append((traffic.calls, traffic.bytes))

    torch.manual_seed(0)
    module, clock, traffic = methods()[name](), Clock(), Traffic()
    with traffic.counted():
        train(module, name, rank, strategy, clock, WARM + ROUNDS)
    weights = [each for each in module.network.parameters() if each.requires_grad]
    return {
        "seconds": min(clock.seconds[WARM:]),  # other load on the machine only adds
        "calls": clock.traffic[-1][0],
        "bytes": clock.traffic[-1][1],
        "network_bytes": 4 * sum(each.numel() for each in weights),
    }


def work(name: str) -> dict[str, Any]:
    """Return the operations of a step on DeepLabV3, per image, and the sizes of the gradients."""
    import lightning as L
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    class Counter(L.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            self.mode = FlopCounterMode(display=False)
            self.mode.__enter__()

        def on_train_batch_end(self, *_: Any) -> None:
            self.mode.__exit__(None, None, None)

    torch.manual_seed(0)
    module, counter = methods(HEAVY)[name](), Counter()
    train(module, name, 0, "auto", counter, 1)
    opponent = getattr(module, "opponent", None)
    sizes = {
        key: 0 if part is None else 4 * sum(each.numel() for each in part.parameters())
        for key, part in (("network_bytes", module.network), ("opponent_bytes", opponent))
    }
    image = batch(name, 0).get("image", batch(name, 0).get("labeled", {}).get("image"))
    pixels = image.numel() // 3
    flops = counter.mode.get_total_flops()
    return {"method": name, "flops_per_pixel": flops / pixels, "pixels": pixels, **sizes}


def process(folder: Path) -> None:
    """Be one of two processes: measure all methods without and with the other one."""
    import torch
    import torch.distributed as dist
    from lightning.pytorch.strategies import DDPStrategy

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    rows = []
    address = {key: os.environ.pop(key) for key in ("TORCHELASTIC_RUN_ID", "WORLD_SIZE")}
    alone = {name: step_seconds(name, rank, "auto") for name in methods()}
    os.environ |= address
    for name in methods():
        both = step_seconds(name, rank, DDPStrategy(process_group_backend="gloo"))
        rows.append({"method": name, "alone": alone[name]["seconds"], **both})
    sizes = {}
    for size in (4, 2**20, 2**22):
        tensor, times = torch.zeros(size), []
        for _ in range(9):
            begin = time.perf_counter()
            dist.all_reduce(tensor)
            times.append(time.perf_counter() - begin)
        sizes[4 * size] = min(times)
    if rank == 0:
        (folder / "rows.json").write_text(json.dumps({"rows": rows, "sizes": sizes}))
    dist.barrier()


def measure() -> None:
    """Start the two processes; write what they measured."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        shared = {
            **os.environ,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free.getsockname()[1]),
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "GROUP_RANK": "0",
            "TORCHELASTIC_RUN_ID": "scaling",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        free.close()
        words = [sys.executable, __file__, "process", "--folder", folder]
        runs = [
            subprocess.Popen(words, env={**shared, "RANK": each, "LOCAL_RANK": each})
            for each in ("0", "1")
        ]
        codes = [run.wait() for run in runs]
        if any(codes):
            raise SystemExit("a process failed")
        found = json.loads((Path(folder) / "rows.json").read_text())
    write(STEPS, found["rows"])
    write(WORK, [work(name) for name in methods()])
    write(EXCHANGES, [{"bytes": k, "seconds": v} for k, v in found["sizes"].items()])


def ids() -> None:
    """Measure lists, splits and samplers of ever more ids."""
    rows = [row for count in (1_000, 10_000, 100_000, 1_000_000) for row in ids_of(count)]
    write(IDS, rows)


def ids_of(count: int) -> Iterator[dict[str, Any]]:
    """Measure each part of a dataset of so many ids: its CPU seconds and its peak memory."""
    import numpy as np

    from datamodules.reading.sources import FileSource, Subset
    from datamodules.selection.label_splits import divide
    from datamodules.selection.samplers import ClassSampler, KeySampler

    images = {f"scene_{i // 1000:04}/image_{i:07}": Path(f"/d/{i}.jpg") for i in range(count)}
    presence = np.random.default_rng(0).random((count, 20)) < 0.1
    whole, labeled = FileSource(images), divide(FileSource(images), "1/8", 0, None).labeled
    with tempfile.TemporaryDirectory() as folder:
        divide(whole, "1/8", 0, Path(folder))  # writes the lists
        parts: dict[str, Callable[[], Any]] = {
            "list of files": lambda: FileSource(images),
            "split, drawn": lambda: divide(whole, "1/8", 0, None),
            "split, read from its lists": lambda: divide(whole, "1/8", 0, Path(folder)),
            "labelled part": lambda: Subset(whole, labeled),
            "sampler, first key of an epoch": lambda: _first(KeySampler(images, 0, True)),
            "sampler, key in the middle": lambda: _first(KeySampler(images, 0, True), count // 2),
            "class sampler, first key": lambda: _first(ClassSampler(images, presence, 0)),
        }
        for name, part in parts.items():
            tracemalloc.start()
            part()
            size = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            begin = time.process_time()
            part()
            seconds = time.process_time() - begin
            print(f"{name:<34}{count:>9}{seconds:>9.3f} s{size / count:>9.1f} bytes an id")
            yield {"part": name, "ids": count, "seconds": seconds, "bytes": size}


def _first(sampler: Any, skip: int = 0) -> Any:
    sampler.begin(0, skip)
    next(iter(sampler))
    return sampler


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as CSV, numbers with six digits."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    print(f"written: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["measure", "ids", "page", "process"])
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if options.what == "process":
        process(options.folder)
    elif options.what == "page":
        import scaling_page

        scaling_page.main()
    else:
        {"measure": measure, "ids": ids}[options.what]()
