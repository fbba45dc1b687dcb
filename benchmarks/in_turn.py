"""Measurements in turn: runs alternate in one process, and their ratios are kept with the place.

The scripts `step.py`, `methods.py`, `metrics.py`, `predict.py` and `startup.py` use this module.
The ratio of two runs is the median over rounds of the ratios within a round, so that other load on
the machine slows down both. The interval beside it holds the middle half of the rounds.
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FIELDS = (
    *("table", "name", "beside", "ms", "ratio", "low", "high", "mib"),
    *("threads", "rounds", "date", "commit", "machine"),
)


def parser(text: str | None, rounds: int) -> argparse.ArgumentParser:
    """Return a parser with the options of all scripts.

    Args:
        text: The description.
        rounds: Default number of rounds.
    """
    found = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--rounds", type=int, default=rounds, help="rounds, each with every run")
    found.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    found.add_argument("--keep", action="store_true", help="write benchmarks/results/*.csv")
    return found


def in_turn(
    runs: Mapping[str, Callable[[], float | None]],
    rounds: int,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, list[float]]:
    """Return the seconds of every run in every round, after a round that is not counted.

    Args:
        runs: Functions by name. One may return its own seconds, such as those of the inner steps.
        rounds: Number of rounds.
        clock: Returns the time in seconds. The processor's time is robust against other load, but
            adds up the threads of a process.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            begin = clock()
            own = run()
            if number:
                times[name].append(clock() - begin if own is None else own)
    return times


def rows(
    table: str,
    times: Mapping[str, Sequence[float]],
    beside: str,
    threads: int,
    mib: Mapping[str, float] | None = None,
) -> list[dict[str, str]]:
    """Return a row per run, as it goes to the CSV.

    Args:
        table: Title of the table.
        times: Seconds by run and round.
        beside: The run that the others are compared with.
        threads: Number of threads.
        mib: Peak memory of the runs in MiB, where it was measured.
    """
    found = []
    for name, taken in times.items():
        ratios = [a / b for a, b in zip(taken, times[beside], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        found.append(
            {
                "table": table,
                "name": name,
                "beside": beside,
                "ms": f"{1000 * statistics.median(taken):.1f}",
                "ratio": f"{statistics.median(ratios):.2f}",
                "low": f"{low:.2f}",
                "high": f"{high:.2f}",
                "mib": f"{mib[name]:.0f}" if mib and name in mib else "",
                "threads": str(threads),
                "rounds": str(len(taken)),
                **place(),
            }
        )
    return found


def place() -> dict[str, str]:
    """Return date, commit and machine of a measurement."""
    words = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
    return {"date": f"{datetime.now(UTC):%Y-%m-%d}", "commit": commit, "machine": processor()}


def processor() -> str:
    """Return the name of the processor and the instructions that matter for speed."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    known = dict(line.split(":", 1) for line in lines if ":" in line)
    known = {name.strip(): value.strip() for name, value in known.items()}
    extra = [each for each in ("avx2", "avx512f", "amx_bf16") if each in known.get("flags", "")]
    return " ".join([known.get("model name", platform.machine()), *extra]).replace(",", "")


def show(found: Sequence[Mapping[str, str]]) -> None:
    """Print one table per title."""
    for title in dict.fromkeys(row["table"] for row in found):
        table = Table(title=title)
        for name in ("run", "ms", "ratio", "middle half", "MiB"):
            table.add_column(name, justify="left" if name == "run" else "right", no_wrap=True)
        for row in (each for each in found if each["table"] == title):
            spread = f"{row['low']}-{row['high']}"
            table.add_row(row["name"], row["ms"], row["ratio"], spread, row["mib"])
        Console().print(table)


def finish(script: str, found: Sequence[Mapping[str, str]], keep: bool) -> None:
    """Print the tables and, where it was asked for, write them.

    Args:
        script: Name of the script, without suffix; the file is `performance_<script>.csv`.
        found: The rows.
        keep: Whether the file is written.
    """
    show(found)
    if not keep:
        return
    with (RESULTS / f"performance_{script}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
