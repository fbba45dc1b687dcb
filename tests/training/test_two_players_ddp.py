"""Both two-player methods in two gloo processes: strategies, precisions, and one process."""

from __future__ import annotations

import adversaries
import pytest
import torch
from two_processes import meeting_place, run_two

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
Found = list[dict]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("two")
    run_two([adversaries.__file__, str(folder)], meeting_place(), timeout=400)
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


def test_processes_stay_equal_to_the_last_bit(found: Found) -> None:
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) == len(adversaries.SETTINGS) + 1
    for setting, (weights, _) in found[0].items():
        for name, value in weights.items():
            assert torch.equal(found[1][setting][0][name], value), (setting, name)
            assert value.isfinite().all(), (setting, name)


def test_every_strategy_trains_alike(found: Found) -> None:
    for method in adversaries.METHODS:
        expected, _ = found[0][method, "ddp", "32-true"]
        for strategy in adversaries.STRATEGIES:
            weights, _ = found[0][method, strategy, "32-true"]
            for name, value in weights.items():
                torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_both_players_move_in_half_precision_as_in_full(found: Found, precision: str) -> None:
    for method in adversaries.METHODS:
        start = adversaries.weights(adversaries.module(method))
        expected, _ = found[0][method, "ddp", "32-true"]
        weights, _ = found[0][method, "ddp", precision]
        for player in ("network.", "analyzer.", "discriminator."):
            names = [name for name in weights if name.startswith(player)]
            if not names:
                continue
            way, other = (
                torch.cat([(each[name] - start[name]).flatten() for name in names])
                for each in (weights, expected)
            )
            assert other.norm() > 1e-3
            assert (way - other).norm() < 0.1 * other.norm(), (method, player)


def test_iterations_are_counted_and_the_opponent_is_exchanged_once_in_each(found: Found) -> None:
    for setting in adversaries.SETTINGS:
        counts = found[0][setting][1]
        assert counts == {"steps": adversaries.STEPS, "exchanges": adversaries.STEPS}, setting


@pytest.mark.parametrize("method", ["simultaneous", "semi_adv"])
def test_two_processes_train_as_one_with_twice_the_batch(found: Found, method: str) -> None:
    """One process sees the batches of both, as two batches of an iteration."""
    ours = adversaries.module(method, accumulate_grad_batches=2)
    adversaries.train(ours, adversaries.batches(8), adversaries.STEPS, max_epochs=-1)
    expected = adversaries.weights(ours)
    for name, value in found[0][method, "ddp", "32-true"][0].items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)
