"""Measure what a training step of each method costs beside cross-entropy, in time and memory.

    python benchmarks/methods.py [--rounds 5] [--threads 1] [--keep]

The network is LR-ASPP on MobileNetV3, with 4 images of 321x321 and 21 classes. `SemiAdv` has as
many unlabelled images in addition. The row `obvious loop` is cross-entropy in plain PyTorch, as in
`step.py`. The other rows `loop` are the authors' order of operations in plain PyTorch
(`published_loops.py`). The times are the processor's time per step.
"""

from __future__ import annotations

import copy
from functools import partial

import in_turn
import torch
from step import WARM, CPUClock, loop
from two_players import (
    Batch,
    Comparison,
    Peak,
    PublishedASM,
    PublishedSemiAdv,
    Watch,
    batches,
    in_loop,
    in_trainer,
    quiet,
    sgd,
)

from lightning_seg import CPGModule, CrossEntropyModule, LMPModule


def runs(compared: Comparison) -> dict[str, object]:
    """Return the runs by name; each takes batches and a watch."""
    train = partial(partial, in_trainer)
    where = "cpu", "32-true"
    supervised = {
        "cross-entropy": (CrossEntropyModule, {}),
        "LMP": (LMPModule, {}),
        "CPG": (CPGModule, {}),
        "CPG with the term against false edges": (CPGModule, {"false_edges": 1.0}),
    }
    net = copy.deepcopy(compared.net)

    def obvious(data: list[Batch], watch: Watch) -> None:
        loop(net, [each["labeled"] for each in data], False, watch)

    found: dict[str, object] = {"cross-entropy, obvious loop": obvious}
    for name, (kind, options) in supervised.items():
        net = copy.deepcopy(compared.net)
        found[name] = train(kind(net, num_classes=21, optimizer=sgd, **options), *where)
    for order in ("analyzer_first", "simultaneous"):
        found[f"ASM, {order}"] = train(compared.asm(order, True), *where)
    found["ASM, loop"] = partial(in_loop, compared.loop(PublishedASM, compared.analyzer))
    found["SemiAdv"] = train(compared.semi_adv(True), *where)
    found["SemiAdv, loop"] = partial(
        in_loop, compared.loop(PublishedSemiAdv, compared.discriminator)
    )
    return found


def main() -> None:
    options = in_turn.parser(__doc__, rounds=5).parse_args()
    torch.set_num_threads(options.threads)
    compared = Comparison("lraspp", "cpu", "32-true")
    data = batches(compared.size, WARM + 3, "cpu")

    def seconds(run) -> float:
        clock = CPUClock()
        run(data, clock)
        return clock.seconds

    with quiet():
        times = in_turn.in_turn(
            {name: partial(seconds, run) for name, run in runs(compared).items()}, options.rounds
        )
        mib = {}
        for name, run in runs(compared).items():
            peak = Peak("cpu")
            run(data[:2], peak)
            mib[name] = peak.mib
    title = f"A step of each method, {compared.size} images of 321x321, 21 classes"
    found = in_turn.rows(title, times, "cross-entropy", options.threads, mib)
    in_turn.finish("methods", found, options.keep)


if __name__ == "__main__":
    main()
