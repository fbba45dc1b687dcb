"""The page on performance shows the CSVs, and the measurements in turn are what they say."""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys

import pytest
from benchmark_scripts import script
from places import ROOT

in_turn = script("in_turn")
growth = script("growth")
page = script("performance_page")


def test_the_page_shows_the_numbers_as_they_are() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.written(text) == text, "run: python benchmarks/performance_page.py"


def test_runs_alternate_and_the_first_round_does_not_count() -> None:
    seen, ticks = [], itertools.count()
    runs = {name: lambda name=name: seen.append(name) for name in "ab"}
    times = in_turn.in_turn(runs, 3, clock=lambda: float(next(ticks)))
    assert seen == list("abababab")
    assert times == {"a": [1.0] * 3, "b": [1.0] * 3}
    assert in_turn.in_turn({"own": lambda: 7.0}, 2) == {"own": [7.0, 7.0]}


def test_a_ratio_is_the_median_of_the_ratios_of_rounds() -> None:
    """Load that slows a whole round down changes no ratio."""
    times = {"slow": [2.0, 20.0, 3.0], "base": [1.0, 10.0, 2.0]}
    slow, base = in_turn.rows("t", times, "base", 1, {"slow": 5.4})
    assert (slow["ratio"], base["ratio"], slow["ms"], slow["mib"]) == (
        "2.00",
        "1.00",
        "3000.0",
        "5",
    )
    assert float(slow["low"]) == pytest.approx(statistics.quantiles([2, 2, 1.5], n=4)[0], abs=0.01)
    assert set(slow) == set(in_turn.FIELDS)


def test_the_scripts_explain_themselves() -> None:
    names = ("performance_page", "startup", "step", "methods", "predict", "growth", "metrics")
    code = """
import contextlib, runpy, sys
sys.path.insert(0, "benchmarks")
names, sys.argv = sys.argv[1:], ["x", "--help"]
for name in names:
    with contextlib.suppress(SystemExit):
        runpy.run_path(f"benchmarks/{name}.py", run_name="__main__")
"""
    words = [sys.executable, "-c", code, *names]
    found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("usage:") == len(names)


def test_the_exponent_of_growth_is_that_of_the_last_doubling() -> None:
    rows = [
        {"table": "a", "name": "x", "size": size, "ms": ms}
        for size, ms in (("10", "1"), ("20", "3"), ("40", "24"))
    ]
    head, (line,) = growth.table(rows, "a")
    assert head == ["ms", "10", "20", "40", "exponent"]
    assert line == ["x", "1.0", "3.0", "24.0", "3.0"]  # eight times the time for twice the size
