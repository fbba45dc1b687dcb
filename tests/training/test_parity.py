"""Two processes with batches of B train and score as one with 2 B, through the command.

The pieces are those of configs/method as they are shipped, optimizers and schedules included, on
images of which some have no labels. Float64 makes the comparison sharp: AdamW divides a gradient by
its own size, and turns the float32 rounding of a gradient that is zero, such as that of a bias
before a batch norm, into steps of the full learning rate.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from cases import TWO, in_processes
from methods import FOR_ENCODERS, PIECES, TWO_PLAYERS, tiny_words

STEPS = 10
LIGHT = "lraspp"  # cross-entropy on a MobileNet, whose batch norms hold its activations
NORMS = {
    "synchronised": ["--trainer.sync_batchnorm=true"],
    "frozen": ["--model.freeze_batch_norm=all"],
}


class Case(NamedTuple):
    method: str
    norms: str
    accumulate: int = 1
    clip: bool = False


CASES = [
    Case(*each, *more)
    for each in [(a, b) for a in PIECES for b in NORMS]
    for more in [(), (2, True)]
]
CASES += [Case(LIGHT, "synchronised")]
SOME = [Case("semi_adv", "synchronised", 2, True), Case(LIGHT, "synchronised")]


def words(case: Case, processes: int, precision: str = "64-true") -> list[str]:
    method = "cross_entropy" if case.method == LIGHT else case.method
    found = ["fit", *tiny_words(method), *NORMS[case.norms], "--data.train_size=32"]
    found = [word for word in found if not word.startswith("--model.lr=")]  # the piece's own
    found += [f"--trainer.precision={precision}", f"--trainer.max_steps={STEPS}"]
    found += ["--trainer.log_every_n_steps=1", "--trainer.limit_val_batches=0"]
    found += ["--trainer.enable_checkpointing=false", *(TWO if processes == 2 else [])]
    # the patches of one image a process, because a graph depends on the order of patches
    size = (1 if method == "mix_match" else 2) * (3 - processes)
    groups = ["", "unlabeled_", "labeled_real_"] if method == "semi_adv" else [""]
    found += [f"--data.{group}batch_size={size}" for group in groups]
    without_noise = {
        "colorization": ["--model.dropout=0"],
        "mix_match": ["--model.graph_scope=global"],
    }
    found += without_noise.get(
        method, [] if method in FOR_ENCODERS else ["--model.network.dropout=0"]
    )
    if case.method == LIGHT:
        found = [word for word in found if "network" not in word]
        found += ["--model.network=lightning_seg.networks.LRASPP"]
        found += ["--model.network.encoder=mobilenetv3_small_050"]
    player = "model" if method in TWO_PLAYERS else "trainer"
    if case.clip:
        found += [f"--{player}.gradient_clip_val=0.05"]
        found += ["--model.opponent_gradient_clip_val=0.05"] * (method in TWO_PLAYERS)
    if case.accumulate > 1:
        found += [f"--{player}.accumulate_grad_batches={case.accumulate}"]
    return found


def train(cases: list[Case], folder: Path, precision: str = "64-true") -> dict[Case, list[dict]]:
    """Return what one process found, and then what each of two found, by the case."""
    found: list[list[dict]] = []
    for processes in (1, 2):
        ran = {
            str(number): {
                "words": words(case, processes, precision),
                "alike": True,
                "cut_labels": True,
            }
            for number, case in enumerate(cases)
        }
        found += in_processes(processes, folder / f"of {processes}", ran, timeout=1800)
    return {case: [each[str(number)] for each in found] for number, case in enumerate(cases)}


def largest(one: dict, other: dict) -> float:
    return max(float((value - other[name]).abs().max()) for name, value in one.items())


def check(case: Case, alone: dict, first: dict, second: dict) -> None:
    assert set(alone["steps"].values()) == {STEPS}
    pairs = zip(first["ids"], second["ids"], strict=True)
    assert [sorted(one + other) for one, other in pairs] == alone["ids"]  # the same images a step
    if case.method != "mix_match":  # whose labels are those of patches
        assert first["labelled"] != second["labelled"]
    # weights, and the statistics of batch norms
    assert largest(first["weights"], second["weights"]) == 0
    assert largest(alone["weights"], alone["start"]) > 1e-3
    assert largest(alone["weights"], first["weights"]) < 1e-7
    for rows in zip(alone["logged"], first["logged"], second["logged"], strict=True):
        for name, value in rows[0].items():
            if case.method == "lmp" and name != "train/loss":
                continue  # the weights of the first process, as docs/dashboards.md says
            for row in rows[1:]:
                # puzzles and tiles are float32 in any precision
                assert row[name] == pytest.approx(value, rel=1e-6, abs=1e-6), name


Trained = dict[Case, list[dict]]


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(SOME, tmp_path_factory.mktemp("some"))


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(CASES, tmp_path_factory.mktemp("every"))


def name_of(case: Case) -> str:
    return "-".join(map(str, case))


@pytest.mark.parametrize("case", SOME, ids=name_of)
def test_some_pieces_train_alike(case: Case, some: Trained) -> None:
    check(case, *some[case])


@pytest.mark.matrix
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_every_piece_trains_alike(case: Case, every: Trained) -> None:
    check(case, *every[case])


SCORED = ("lmp", "jigsaw", "colorization", "mix_match")
WAYS = [(1, 3), (2, 1)]  # processes, images of a batch


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int, int], dict]:
    folder = tmp_path_factory.mktemp("scores")
    ways = [(1, 2), *WAYS]

    def cases(processes: int) -> dict[str, dict]:
        common = ["--data.val_size=5", "--ckpt_path=untrained", *(TWO if processes == 2 else [])]
        return {
            f"{method} {size}": {
                "words": [
                    "validate",
                    *tiny_words(method),
                    *common,
                    f"--data.val_batch_size={size}",
                    f"--trainer.default_root_dir={folder}",
                ]
            }
            for method in SCORED
            for count, size in ways
            if count == processes
        }

    found = {count: in_processes(count, folder / str(count), cases(count)) for count in (1, 2)}
    return lambda method, count, size: found[count][0][f"{method} {size}"]["scores"]


@pytest.mark.parametrize("method", SCORED)
def test_scores_do_not_depend_on_processes_and_batches(method: str, scores) -> None:
    expected = scores(method, 1, 2)
    assert len(expected) >= (2 if method != "colorization" else 1)
    for way in WAYS:
        found = scores(method, *way)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            # sums of float32 in another order; the others are quotients of whole numbers
            summed = name.endswith(("loss", "ece", "d_ap", "d_an"))
            close = 1e-6 if summed else 0
            assert found[name] == pytest.approx(value, rel=close, abs=close, nan_ok=True), (
                way,
                name,
            )
