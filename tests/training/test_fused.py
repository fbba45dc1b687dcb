"""Fused optimizers are used where PyTorch has them, unless somebody chose otherwise."""

from __future__ import annotations

from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from torch import nn
from torch.optim import SGD, Adam, AdamW, RMSprop

from lightning_seg.training.fused import prefer_fused


def trainer(strategy=None, scaler=None):
    strategy = SingleDeviceStrategy(torch.device("cpu")) if strategy is None else strategy
    return SimpleNamespace(strategy=strategy, precision_plugin=SimpleNamespace(scaler=scaler))


def fused(optimizer, where=None):
    prefer_fused(optimizer, where or trainer())
    return {group.get("fused") for group in optimizer.param_groups}


def weights(dtype=torch.float32):
    return nn.Linear(3, 2, dtype=dtype).parameters()


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_usual_optimizers_are_fused(kind, dtype) -> None:
    assert fused(kind(weights(dtype), lr=0.1)) == {True}
    assert fused(kind(weights(dtype), lr=0.1), trainer(DDPStrategy())) == {True}


@pytest.mark.parametrize("choice", [{"fused": False}, {"foreach": True}, {"differentiable": True}])
def test_a_choice_is_respected(choice) -> None:
    optimizer = Adam(weights(), lr=0.1, **choice)
    assert fused(optimizer) == {choice.get("fused")}


@pytest.mark.parametrize("where", [trainer(scaler=object()), trainer(ModelParallelStrategy())])
def test_scalers_and_sharded_weights_keep_the_usual_steps(where) -> None:
    assert fused(SGD(weights(), lr=0.1), where) == {None}


def test_other_optimizers_and_dtypes_are_left_alone() -> None:
    assert fused(RMSprop(weights(), lr=0.1)) == {None}
    assert fused(SGD(weights(torch.float16), lr=0.1)) == {None}
    optimizer = SGD(weights(), lr=0.1)
    prefer_fused(optimizer, None)
    assert optimizer.param_groups[0]["fused"] is None


KINDS = [
    (SGD, {"momentum": 0.9, "weight_decay": 0.01, "nesterov": True}),
    (Adam, {}),
    (AdamW, {"weight_decay": 0.1, "amsgrad": True}),
]


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_a_state_in_another_memory_order_meets_the_same_weights(kind, options) -> None:
    """Contiguous weights leave the checkpoint, and channels-last ones go on with it."""
    torch.manual_seed(0)
    before, usual = nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 3)
    first = kind(before.parameters(), lr=0.1, **options)
    before(torch.randn(2, 4, 8, 8)).square().sum().backward()
    first.step()
    usual.load_state_dict(before.state_dict())
    quick = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    quick.load_state_dict(before.state_dict())
    slow = kind(usual.parameters(), lr=0.1, **options)
    fast = prefer_fused(kind(quick.parameters(), lr=0.1, **options), trainer())
    image = torch.randn(2, 4, 8, 8)
    for optimizer, layer in ((slow, usual), (fast, quick)):
        optimizer.load_state_dict(deepcopy(first.state_dict()))
        optimizer.param_groups[0]["fused"] = optimizer is fast
        layer(image).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(quick.weight, usual.weight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_fused_steps_equal_the_usual_ones_and_resume(kind, options) -> None:
    torch.manual_seed(0)
    usual, quick = nn.Linear(5, 4), nn.Linear(5, 4)
    quick.load_state_dict(usual.state_dict())
    slow = kind(usual.parameters(), lr=0.1, **options)
    fast = prefer_fused(kind(quick.parameters(), lr=0.1, **options), trainer())
    for step in range(6):
        if step == 3:  # the state of a checkpoint enters a new optimizer
            again = prefer_fused(kind(quick.parameters(), lr=0.1, **options), trainer())
            again.load_state_dict(fast.state_dict())
            fast = again
        for optimizer, layer in ((slow, usual), (fast, quick)):
            optimizer.zero_grad()
            layer(torch.ones(2, 5) * (step + 1)).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(quick.weight, usual.weight, rtol=1e-6, atol=1e-6)
