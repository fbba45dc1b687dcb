"""Two processes with unequal labels train as one process with the batches of both."""

from __future__ import annotations

import parity
import pytest
import torch
from torch import Tensor
from two_processes import meeting_place, run_two

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
ALIKE = {"jigsaw", "mix_match, one graph", "asml, mean over all places"}
"""Cases whose means, or some of them, are over equal numbers in any process."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("parity")
    run_two([parity.__file__, str(folder)], meeting_place(), timeout=400)
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


def vector(weights: dict[str, Tensor], start: dict[str, Tensor]) -> Tensor:
    """The way that all weights have gone."""
    return torch.cat([(value - start[name]).flatten() for name, value in weights.items()])


@pytest.mark.parametrize("case", parity.CASES)
def test_two_processes_train_as_one_with_twice_the_batch(found: list[dict], case: str) -> None:
    start = {name: value.double() for name, value in parity.weights(parity.module(case)).items()}
    expected = vector(parity.alone(case), start)
    first, second = (vector(each[case, True], start) for each in found)
    assert torch.equal(first, second)
    assert expected.norm() > 1e-3
    assert (first - expected).norm() <= 1e-9 * expected.norm()
    apart = vector(found[0][case, False], start)
    if case not in ALIKE:  # or the case would show nothing
        assert (apart - expected).norm() > 0.02 * expected.norm()
