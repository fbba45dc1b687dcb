"""The evidence: its intervals, its page, and that its trainings can be configured."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
import yaml
from benchmark_scripts import script
from scipy import stats

import cli

script("small_copies")  # which the scripts below import, as from their own folder
evidence_table, evidence = script("evidence_table"), script("evidence")
GRID = yaml.safe_load(evidence.GRID.read_text())
ROWS = {row: name for name, setting in GRID["settings"].items() for row in setting["rows"]}


def test_intervals_are_those_of_a_paired_t_test() -> None:
    generator = np.random.default_rng(0)
    scores = {row: generator.random(5) for row in ("ce", "cpg")}
    rows = [
        {"row": row, "seed": str(seed), "miou": str(value)}
        for row, values in scores.items()
        for seed, value in enumerate(values)
    ]
    rows.append({"row": "cpg", "seed": "9", "miou": "0.1"})  # without a partner
    found = evidence_table.cell(rows[::-1], "cpg", "miou")
    test = stats.ttest_rel(100 * scores["cpg"], 100 * scores["ce"])
    low, high = test.confidence_interval(0.95)
    assert found.seeds == 5
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))
    assert evidence_table.cell(rows, "ce", "miou").mean == pytest.approx(100 * scores["ce"].mean())
    assert evidence_table.cell(rows, "cpg", "miou").shown == (test.pvalue < 0.05)


def test_the_page_shows_the_numbers_as_they_are() -> None:
    page = evidence_table.PAGE.read_text(encoding="utf-8")
    assert evidence_table.written(page) == page, "run: python benchmarks/evidence_table.py"


def test_every_row_of_the_grid_is_used() -> None:
    assert ROWS.keys() == GRID["rows"].keys()
    assert all(setting["rows"][0] == "ce" for setting in GRID["settings"].values())


@pytest.mark.parametrize("row", ROWS)
def test_every_row_can_be_configured(row: str) -> None:
    (training,) = evidence.trainings(GRID, [ROWS[row]], [row], [0])
    words = evidence.completed(training.words, 0)
    printed = io.StringIO()
    root = ["--data.root=/where"] if "copy" in GRID["settings"][ROWS[row]] else []
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
        cli.main(["fit", *words, *root, "--print_config"])
    config = yaml.safe_load(printed.getvalue())
    for key, value in GRID["rows"][row].get("options", {}).items():
        part = config
        head, *path = key.split(".")
        part = part[head]
        for name in path:
            part = part["init_args"][name]
        assert (part["class_path"] if isinstance(part, dict) else part) == value, key


@pytest.mark.parametrize("stage", GRID["stages"])
def test_every_stage_can_be_configured(stage: str) -> None:
    rows = [row for row, spec in GRID["rows"].items() if spec.get("encoder") == stage]
    assert rows, "no row starts from this stage"
    (training,) = evidence.trainings(GRID, [ROWS[rows[0]]], rows[:1], [0])
    last = training.stages[-1]
    assert last.name == stage
    printed = io.StringIO()
    words = [*evidence.completed(last.words, 3), "--data.root=/where"]
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
        cli.main(["fit", *words, "--print_config"])
    config = yaml.safe_load(printed.getvalue())
    assert config["trainer"]["max_steps"] == GRID["stages"][stage]["options"]["trainer.max_steps"]
    assert config["data"]["init_args"]["labeled"] == GRID["stages"][stage]["options"].get(
        "data.labeled", "1/8"
    )


def test_trainings_of_one_seed_share_their_stages() -> None:
    rows = ["color", "color_match", "color_match_random"]
    first, second, third = evidence.trainings(GRID, ["camvid_encoders"], rows, [0])
    assert first.stages == second.stages[:1] == third.stages[:1]
    assert second.stages[1] != third.stages[1]
    assert len({each.key for each in (first, second, third)}) == 3
