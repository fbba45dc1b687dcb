"""What plain loops of two players share: their optimizers, in float64, and how to compare."""

from __future__ import annotations

from copy import deepcopy
from functools import partial

import pytest
import torch
from small_runs import fit
from torch import nn

SGD = partial(torch.optim.SGD, lr=0.02, momentum=0.9)
# eps as large as typical gradients: rounding must not decide the sign of a step
ADAM = partial(torch.optim.Adam, lr=0.002, betas=(0.9, 0.99), eps=1e-3)
THREE = {"max_steps": 3, "max_epochs": -1}
# rounded to float32, as images are: with inputs alike to the last bit no threshold is missed
MEAN = torch.tensor((0.485, 0.456, 0.406)).double().view(1, 3, 1, 1)
STD = torch.tensor((0.229, 0.224, 0.225)).double().view(1, 3, 1, 1)


class Player:
    """A network in float64 with its optimizer."""

    def __init__(self, network: nn.Module, optimizer) -> None:
        self.network = deepcopy(network).double()
        self.parameters = list(self.network.parameters())
        self.optimizer = optimizer(self.parameters)

    def gradients(self, loss):
        return torch.autograd.grad(loss, self.parameters, allow_unused=True, retain_graph=True)

    def step(self, gradients, optimizer=None) -> None:
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        (optimizer or self.optimizer).step()


def of_images(network: nn.Module, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """The outputs of a float64 network for raw images."""
    found = network(((image.float() / 255).double() - MEAN) / STD)
    return found if isinstance(found, dict) else {"out": found}


def same_weights(found: nn.Module, expected: nn.Module, close: float = 1e-6) -> None:
    for name, value in expected.state_dict().items():
        difference = (found.state_dict()[name].double() - value.double()).abs().max().item()
        assert difference <= close, (name, difference)


def compare(ours, reference, folder, data=None, change=None, close=1e-6, **options) -> None:
    """Train, let the reference do every step's batch; rows of logs and all weights agree.

    The reference has `step(batch)`, which returns what is to be logged, `network`, `opponent`.
    """
    seen, kept = fit(ours, folder, data, change, **THREE, **options)
    assert len(seen.seen) == 3
    for step, (batch, _) in enumerate(seen.seen):
        expected = reference.step(batch)
        for name, value in expected.items():
            found = kept.rows[step][f"train/{name}"]
            assert found == pytest.approx(value, rel=1e-5, abs=1e-7), (step, name)
        terms = {name.removeprefix("train/") for name in kept.rows[step] if "train/loss" in name}
        assert terms - {"loss_main", "loss_aux"} == {name for name in expected if "loss" in name}
    same_weights(ours.network, reference.network, close)
    same_weights(ours.opponent, reference.opponent, close)


def moved(ours, folder, *args, **options) -> list[bool]:
    """Which of the two players a training changes, the segmenter first."""
    before = deepcopy((ours.network, ours.opponent))
    fit(ours, folder, *args, **options)
    return [
        any(not torch.equal(a, b) for a, b in zip(x.parameters(), y.parameters(), strict=True))
        for x, y in zip(before, (ours.network, ours.opponent), strict=True)
    ]
