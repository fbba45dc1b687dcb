"""How often `compare` is wrong, and how often it finds a difference, on simulated runs.

python benchmarks/comparisons.py [repetitions] writes benchmarks/results/comparisons.csv. Its
columns are shares of comparisons: in which a percentile bootstrap over images alone would show a
difference of mIoU, in which `compare` shows one, and in which it shows one anywhere, classes
included. Without a planted difference these are false alarms, and 5 % are allowed.
"""

from __future__ import annotations

import csv
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/support")]

from simulated_scores import KINDS, simulated_sides  # noqa: E402

from lightning_seg.statistics import paired_differences  # noqa: E402

POINT = 0.06
"""What makes +1 point of mIoU, added to the log odds of a pixel's being right."""


def settings() -> Iterator[dict]:
    """Yield the arguments of `simulated_sides`."""
    for images, kind in itertools.product((10, 30, 200), KINDS):
        yield {"images": images, "kind": kind}
    for runs in (2, 3, 4, 5):
        yield {"images": 60, "kind": "even", "runs": runs, "seed_scatter": 0.15}
    for images, runs in itertools.product((100, 200, 500), (1, 3, 5)):
        scatter = 0.02 * (runs > 1)
        yield {
            "images": images,
            "kind": "even",
            "runs": runs,
            "image_scatter": 0.3,
            "seed_scatter": scatter,
            "planted": POINT,
        }


def shares(repetitions: int, options: dict) -> list[float]:
    """Return the shares of comparisons in which a difference is shown, by three rules."""
    rng = np.random.default_rng(0)
    counts = np.zeros(3)
    for seed in range(repetitions):
        found = paired_differences(*simulated_sides(rng, **options), samples=500, seed=seed)
        bootstrap = found.bootstrap_low[0] > 0 or found.bootstrap_high[0] < 0
        counts += [bootstrap, found.shown[0], found.shown.any()]
    return (counts / repetitions).tolist()


def main() -> None:
    """Write and print the table."""
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 4000
    columns = ["images", "kind", "runs", "image_scatter", "seed_scatter", "planted"]
    usual = {"runs": 1, "image_scatter": 0.5, "seed_scatter": 0.0, "planted": 0.0}
    path = ROOT / "benchmarks/results/comparisons.csv"
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*columns, "repetitions", "bootstrap_alone", "compare", "compare_anywhere"])
        for options in settings():
            row = [(usual | options)[name] for name in columns]
            row += [repetitions, *(f"{share:.4f}" for share in shares(repetitions, options))]
            writer.writerow(row)
            print(*row, flush=True)


if __name__ == "__main__":
    main()
