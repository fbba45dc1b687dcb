"""Sharded weights train, validate, save and resume as DDP does; activations computed again."""

from __future__ import annotations

import lightning as L
import pytest
import sharded
import torch
from adversaries import QUIET
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.utils.data import DataLoader
from two_processes import meeting_place, run_two

from lightning_seg import CrossEntropyModule, SetupError, ShardedStrategy
from lightning_seg.networks import FCN
from lightning_seg.training.sharding import require_strategy

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("sharded")
    run_two([sharded.__file__, str(folder)], meeting_place(), timeout=600)
    return torch.load(folder / "rank0.pt")


@pytest.mark.parametrize("case", [*sharded.CASES, "resumed"])
def test_sharded_weights_train_as_whole_ones(found: dict, case: str) -> None:
    ours: dict[str, Tensor] = found[case, "sharded"]
    theirs: dict[str, Tensor] = found[case, "ddp"]
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        # the penalty of colorization is added up in another order
        torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-7)


def test_a_validation_uses_the_statistics_of_the_first_process(found: dict) -> None:
    ours, theirs = found["validated", "sharded"], found["validated", "ddp"]
    assert ours.keys() == theirs.keys()
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_vision_transformer_is_sharded(found: dict) -> None:
    for ours, theirs in zip(found["vit", "sharded"], found["vit", "ddp"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_two_players_refuse(found: dict) -> None:
    assert "ASMLModule runs on one device or with DDP" in found["refused"]["two players"]


@pytest.mark.parametrize("given", [ModelParallelStrategy(), "fsdp", "fsdp_cpu_offload"])
def test_other_strategies_that_shard_are_refused(given: Strategy | str) -> None:
    with pytest.raises(SetupError, match="ShardedStrategy"):
        require_strategy(given)


@pytest.mark.parametrize("given", [ShardedStrategy(), "auto", "ddp"])
def test_strategies_that_work(given: Strategy | str) -> None:
    require_strategy(given)


def network(checkpoint: bool, **options) -> CrossEntropyModule:
    torch.manual_seed(0)
    settings = {"freeze_batch_norm": "encoder", "optimizer": torch.optim.SGD, "lr": 0.1, **options}
    return CrossEntropyModule(
        FCN(3, encoder="test_resnet", output_stride=8),
        num_classes=3,
        checkpoint_activations=checkpoint,
        **settings,
    )


def trained(ours: CrossEntropyModule, calls: list[nn.Module]) -> dict[str, Tensor]:
    convs = [part for part in ours.network.encoder.modules() if isinstance(part, nn.Conv2d)]
    last = convs[-4]  # timm keeps the activations of the last block
    last.register_forward_hook(lambda layer, *_: calls.append(layer))
    generator = torch.Generator().manual_seed(1)
    batch = {
        "image": torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8, generator=generator),
        "mask": torch.randint(3, (2, 64, 64), generator=generator),
        "id": ["a", "b"],
    }
    torch.manual_seed(2)  # of dropout
    L.Trainer(**QUIET, max_steps=2).fit(ours, DataLoader([batch] * 2, batch_size=None))
    return ours.state_dict()


def test_activations_computed_again_change_nothing() -> None:
    once, twice = list[nn.Module](), list[nn.Module]()
    kept, again = trained(network(False), once), trained(network(True), twice)
    for name, value in again.items():
        torch.testing.assert_close(value, kept[name], rtol=1e-5, atol=1e-7)
    assert (len(once), len(twice)) == (2, 4)  # each of two steps computes the last block twice


def test_activations_of_batch_norms_in_training_are_refused() -> None:
    with pytest.raises(SetupError, match="count every batch twice"):
        network(True, freeze_batch_norm="none")
    with pytest.raises(SetupError, match="has none"):
        CrossEntropyModule(nn.Conv2d(3, 2, 1), num_classes=2, checkpoint_activations=True)
