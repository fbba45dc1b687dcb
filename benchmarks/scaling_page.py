"""The tables of docs/scaling.md, from what `scaling.py` measured."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from scaling import EXCHANGES, IDS, ROOT, STEPS, WORK

PAGE = ROOT / "docs" / "scaling.md"
MARK = "<!-- made by benchmarks/scaling.py: {} -->\n"
END = "<!-- end -->\n"

# Assumptions of the model, which the page lists
PEAK = 989e12
"""bf16 operations per second of an H100 SXM (NVIDIA's data sheet, dense)."""
USED = 0.35
"""Share of the peak that a convolutional network reaches."""
INSIDE, BETWEEN = 450e9, 50e9
"""Bytes per second and direction and GPU: NVLink inside a machine, 400 Gb/s between machines."""
EFFICIENCY = 0.8
"""Share of these rates that an all-reduce reaches."""
LATENCY = {1: 0.0, 8: 20e-6, 64: 40e-6, 512: 60e-6}
"""Seconds of an exchange of a few numbers, by the number of GPUs."""
BUCKET = 25 * 2**20
"""Bytes of DDP's last bucket, whose exchange no computation hides."""
PIXELS = 4 * 513 * 513
"""Pixels of a GPU's batch: four crops."""
GPUS_OF_A_MACHINE = 8


def all_reduce(size: float, gpus: int) -> float:
    """Return the seconds of a ring all-reduce.

    Args:
        size: Bytes.
        gpus: Number of GPUs.
    """
    rate = INSIDE if gpus <= GPUS_OF_A_MACHINE else BETWEEN
    return 2 * (gpus - 1) / gpus * size / (EFFICIENCY * rate)


def step(
    flops: float, network: float, opponent: float, calls: int, gpus: int
) -> tuple[float, float]:
    """Return the seconds of a step that compute, and those that only exchange.

    Args:
        flops: Operations of the step.
        network: Bytes of the network's gradients.
        opponent: Bytes of the opponent's gradients, which are exchanged by themselves.
        calls: Number of exchanges of a few numbers.
        gpus: Number of GPUs.
    """
    compute = flops / (PEAK * USED)
    if gpus == 1:
        return compute, 0.0
    # the gradients of DDP are exchanged during the backward pass, two thirds of the computation
    last = min(BUCKET, network)
    hidden = all_reduce(network - last, gpus)
    seen = all_reduce(last, gpus) + max(0.0, hidden - compute * 2 / 3)
    return compute, seen + all_reduce(opponent, gpus) + calls * LATENCY[gpus]


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def model() -> Iterator[str]:
    """Yield the lines of the table of the model."""
    calls = {row["method"]: row for row in _read(STEPS)}
    sizes = [gpus for gpus in LATENCY if gpus > 1]
    heads = [f"{gpus} GPUs" for gpus in sizes]
    yield f"| method | operations | network, opponent | exchanges | 1 GPU | {' | '.join(heads)} |"
    yield "|---|---|---|---|---|" + "---|" * len(heads)
    for row in _read(WORK):
        if row["method"].startswith("mix"):
            continue
        flops = float(row["flops_per_pixel"]) * PIXELS
        network, opponent = float(row["network_bytes"]), float(row["opponent_bytes"])
        small = int(calls[row["method"]]["calls"]) - (opponent > 0)
        times = [step(flops, network, opponent, small, gpus) for gpus in LATENCY]
        cells = [
            f"{1e3 * (work + wait):.1f} ms ({100 * work / (work + wait):.0f} %)"
            for work, wait in times[1:]
        ]
        alone = f"{1e3 * times[0][0]:.1f} ms"
        moved = f"{network / 1e6:.0f} MB, {opponent / 1e6:.0f} MB"
        cells = [row["method"], f"{flops / 1e12:.1f} T", moved, str(small), alone, *cells]
        yield f"| {' | '.join(cells)} |"


def check() -> Iterator[str]:
    """Yield the lines of the comparison of the model with two processes on this machine."""
    sizes = {int(row["bytes"]): float(row["seconds"]) for row in _read(EXCHANGES)}
    small, large = sizes[min(sizes)], max(sizes)
    rate = large / sizes[large]
    yield (
        f"An exchange of {min(sizes)} bytes took {1e3 * small:.2f} ms, one of {large / 1e6:.0f} MB "
        f"{1e3 * sizes[large]:.1f} ms.\n"
    )
    yield "| method | alone | exchanged | predicted | measured | measured / predicted |"
    yield "|---|---|---|---|---|---|"
    for row in _read(STEPS):
        alone, both = float(row["alone"]), float(row["seconds"])
        size = float(row["bytes"]) + float(row["network_bytes"])
        predicted = alone + size / rate + int(row["calls"]) * small
        exchanged = f"{size / 1e6:.1f} MB, {row['calls']} + DDP"
        times = f"{1e3 * predicted:.0f} ms | {1e3 * both:.0f} ms | {both / predicted:.2f}"
        yield f"| {row['method']} | {1e3 * alone:.0f} ms | {exchanged} | {times} |"


def lists() -> Iterator[str]:
    """Yield the lines of the table of ids."""
    rows = _read(IDS)
    counts = sorted({int(row["ids"]) for row in rows})
    yield f"| part | {' | '.join(f'{count:,}' for count in counts)} | bytes an id |"
    yield "|---|" + "---|" * (len(counts) + 1)
    for part in dict.fromkeys(row["part"] for row in rows):
        mine = {int(row["ids"]): row for row in rows if row["part"] == part}
        seconds = [f"{1e3 * float(mine[count]['seconds']):.1f} ms" for count in counts]
        largest = mine[counts[-1]]
        yield (f"| {part} | {' | '.join(seconds)} | {float(largest['bytes']) / counts[-1]:.0f} |")


def written(page: str) -> str:
    """Return the page with the tables of the measurements as they are now."""
    for name, lines in (("model", model()), ("check", check()), ("ids", lists())):
        mark = MARK.format(name)
        head, found, rest = page.partition(mark)
        assert found, f"{PAGE} lacks {mark}"
        table = "\n".join(lines)
        page = f"{head}{mark}\n{table}\n\n{END}{rest.partition(END)[2]}"
    return page


def main() -> None:
    """Write the tables into the page."""
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
