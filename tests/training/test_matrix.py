"""Every method x processes x precision x accumulation x verb, through the command.

`make test-matrix` runs all of them. Two processes, or one, do all of their cases one after the
other, because a process that starts imports for seconds.
"""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from cases import TWO, in_processes
from methods import FOR_ENCODERS, PIECES, TWO_PLAYERS, tiny_words

BATCHES, EPOCHS, IMAGES = 3, 2, 3  # images: odd, so that one process gets a copy


class Case(NamedTuple):
    method: str
    processes: int
    precision: str
    accumulate: int
    verb: str

    @property
    def steps(self) -> int:
        """Optimizer steps: the last batches of an epoch step also where they are fewer."""
        return EPOCHS * math.ceil(BATCHES / self.accumulate)

    def of(self, **changes) -> Case:
        return self._replace(**changes)


CASES = [
    Case(*each)
    for each in product(
        PIECES, (1, 2), ("32-true", "bf16-mixed"), (1, 2), ("fit", "validate", "test", "predict")
    )
]
WITH_ALL_VERBS = ("semi_adv", "jigsaw")
"""One with two players, and one for encoders."""
SOME = [
    each
    for each in CASES
    if (each.precision, each.accumulate) == ("bf16-mixed", 2)
    and (each.method in WITH_ALL_VERBS or (each.processes, each.verb) == (2, "fit"))
]
Found = dict[Case, list[dict]]


def folder_of(case: Case, root: Path) -> Path:
    """The folder of a run; evaluations of two processes take the weights that one has trained."""
    return root / "_".join(map(str, case[:-1]))


def words(case: Case, root: Path) -> list[str]:
    folder = folder_of(case, root)
    found = [case.verb, *tiny_words(case.method), f"--trainer.default_root_dir={folder}"]
    found += ["--data.train_size=24", f"--data.val_size={IMAGES}"]
    found += [f"--data.test_size={IMAGES}", "--data.val_batch_size=2"]
    found += [f"--trainer.precision={case.precision}", *(TWO if case.processes == 2 else [])]
    if case.method == "semi_adv":
        found += ["--data.unlabeled_batch_size=2", "--data.labeled_real_batch_size=2"]
    if case.verb == "fit":
        found += [f"--trainer.limit_train_batches={BATCHES}", f"--trainer.max_epochs={EPOCHS}"]
        player = "model" if case.method in TWO_PLAYERS else "trainer"
        return [*found, f"--{player}.accumulate_grad_batches={case.accumulate}"]
    trained = folder_of(case.of(processes=1), root) / "checkpoints"
    found += [f"--ckpt_path={trained}/epoch={EPOCHS - 1}-step={case.steps}.ckpt"]
    if case.verb != "predict":
        found += [f"--scores.output_dir={folder}/{case.verb}"]
    return found


def run(cases: list[Case], root: Path) -> Found:
    """Run the cases of one process, and then those of two with their weights."""
    found: Found = {}
    for count in (1, 2):
        chosen = {
            "|".join(map(str, each)): each for each in cases if each.processes == count
        }  # in the order of CASES: a method is trained before it is evaluated
        ran = {name: {"words": words(each, root)} for name, each in chosen.items()}
        results = in_processes(count, root / f"of {count}", ran, timeout=1800)
        found |= {each: [rank[name] for rank in results] for name, each in chosen.items()}
    return found


def check(case: Case, found: Found, root: Path) -> None:
    results = found[case]
    assert len(results) == case.processes
    if case.verb == "predict" and case.method in FOR_ENCODERS:
        reason = "predicts no labels"
        if case.method == "mix_match":
            reason = "patches are for training an encoder, but images are predicted"
        assert all(reason in each["refused"] for each in results)
        return
    assert all("refused" not in each for each in results), results
    assert all(each["world"] == case.processes for each in results)
    if case.verb == "fit":
        check_training(case, results)
    elif case.verb == "predict":
        check_predictions(case, root)
    else:
        check_scores(case, found)


def check_training(case: Case, results: list[dict]) -> None:
    first = results[0]
    learning = {name for name in first["start"] if "running_" not in name}
    players = 2 if case.method in TWO_PLAYERS else 1
    for each in results:
        assert each["steps"] == dict.fromkeys(range(players), case.steps)
        assert each["global_step"] == case.steps
        assert each["rates"] == [0.0] * len(each["rates"])  # the schedule knows how long it is
        assert len(each["logged"]) == BATCHES * EPOCHS
        assert all(math.isfinite(row["train/loss"]) for row in each["logged"])
        assert math.isfinite(each["scores"]["val/loss"])
        for name, weight in each["weights"].items():
            assert weight.dtype == torch.float32, name
            assert weight.isfinite().all(), name
            # statistics of batch norms, too: the last validation was of those of a checkpoint
            assert torch.equal(weight, first["weights"][name]), name
    moved = {
        name for name in learning if not torch.equal(first["start"][name], first["weights"][name])
    }
    assert {name.split(".")[0] for name in moved} == {name.split(".")[0] for name in learning}
    assert len(moved) > 0.9 * len(learning)
    if case.processes == 2:
        one, other = results
        assert set(map(tuple, one["ids"])) != set(map(tuple, other["ids"]))
        assert not set(one["noise"]) & set(other["noise"])


def check_scores(case: Case, found: Found) -> None:
    stage = {"validate": "val", "test": "test"}[case.verb]
    alone = found[case.of(processes=1)][0]["scores"]
    scores = [name for name in alone if name.startswith(f"{stage}/")]
    assert math.isfinite(alone[f"{stage}/loss"])
    if case.method not in FOR_ENCODERS:
        assert {f"{stage}/{name}" for name in ("miou", "boundary_iou", "ece")} <= set(scores)
    for each in found[case]:
        for name in scores:  # float32 sums in another order, and bfloat16 in other batches
            close = 1e-6 if case.precision == "32-true" else 1e-2
            assert each["scores"][name] == pytest.approx(
                alone[name], rel=close, abs=close, nan_ok=True
            ), name


def check_predictions(case: Case, root: Path) -> None:
    written, alone = (
        {path.name: path.read_bytes() for path in folder.glob("predictions/masks/*.png")}
        for folder in (folder_of(case, root), folder_of(case.of(processes=1), root))
    )
    assert len(written) == IMAGES
    assert written.keys() == alone.keys()
    if case.precision == "32-true":
        assert written == alone


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("matrix")


@pytest.fixture(scope="module")
def some(root: Path) -> Found:
    return run(SOME, root / "some")


@pytest.fixture(scope="module")
def every(root: Path) -> Found:
    return run(CASES, root / "every")


def name_of(case: Case) -> str:
    return "-".join(map(str, case))


@pytest.mark.parametrize("case", SOME, ids=name_of)
def test_some_cases(case: Case, some: Found, root: Path) -> None:
    check(case, some, root / "some")


@pytest.mark.matrix
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_every_case(case: Case, every: Found, root: Path) -> None:
    check(case, every, root / "every")


@pytest.mark.parametrize("method", TWO_PLAYERS)
def test_two_players_refuse_the_accumulation_of_the_trainer(method: str, tmp_path: Path) -> None:
    from cases import run_all

    given = [*words(Case(method, 1, "32-true", 1, "fit"), tmp_path)]
    given += ["--trainer.accumulate_grad_batches=2"]
    found = run_all(tmp_path, {method: {"words": given}})[method]
    assert "is for one optimizer" in found["refused"]
    assert "model.accumulate_grad_batches" in found["refused"]
