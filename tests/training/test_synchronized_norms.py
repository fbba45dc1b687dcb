"""Batch norms over all processes; tests/training/test_parity.py trains with them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from timm.layers import BatchNormAct2d
from tiny import TinyNet
from torch import nn

from lightning_seg import SemiAdvModule
from lightning_seg.networks import LRASPP, FCDiscriminator
from lightning_seg.training import synchronized_norms
from lightning_seg.training.synchronized_norms import OnCPUs, OnDevices, SynchronizedNorms


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_network_computes_the_same_before_within_and_after(device: str) -> None:
    torch.manual_seed(0)
    network = LRASPP(3, "mobilenetv3_small_050").eval()
    layers = list(network.modules())
    assert any(isinstance(layer, BatchNormAct2d) for layer in layers)
    image = torch.rand(2, 3, 64, 64)
    expected, names = network(image)["out"], list(network.state_dict())
    norms = SynchronizedNorms(torch.device(device))
    norms.apply(network)
    assert torch.equal(network(image)["out"], expected)
    assert not any(type(layer) in (BatchNormAct2d, nn.BatchNorm2d) for layer in network.modules())
    assert list(network.state_dict()) == names
    with torch.no_grad():
        for buffer in network.buffers():  # as a training, or a move to another device
            buffer.add_(1)
        changed = network(image)["out"]
    norms.revert(network)
    assert list(network.modules()) == layers
    assert torch.equal(network(image)["out"], changed)


class JudgeWithNorm(FCDiscriminator):
    def __init__(self, channels: int) -> None:
        super().__init__(channels, width=4)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return super().forward(self.norm(maps))


@pytest.mark.parametrize(("device", "kind"), [("cpu", OnCPUs), ("cuda", OnDevices)])
def test_both_players_and_the_running_mean_are_converted(device: str, kind: type) -> None:
    module = SemiAdvModule(
        partial(TinyNet, aux=True),
        num_classes=3,
        discriminator=JudgeWithNorm,
        ema_decay=0.9,
        freeze_batch_norm="all",
    )
    SynchronizedNorms(torch.device(device)).apply(module)
    found = [layer for layer in module.modules() if isinstance(layer, kind)]
    assert len(found) == 3
    modes = [module.network, module.discriminator, module.teacher]
    frozen, learning, mean = (
        next(each for each in part.modules() if isinstance(each, kind)) for part in modes
    )
    assert not frozen.training
    assert learning.training
    assert not mean.training
    assert not module.train().network.encoder[1].training


@pytest.mark.parametrize("momentum", [0.1, 0.3, None])
@pytest.mark.parametrize("shape", [(4, 5), (3, 5, 7, 2)])
def test_statistics_are_those_of_a_doubled_batch(
    momentum: float | None, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process, which is not there, has the same values as this one."""
    monkeypatch.setattr(synchronized_norms, "world_size", lambda: 2)
    monkeypatch.setattr(synchronized_norms.dist, "all_reduce", lambda values: values.mul_(2))
    torch.manual_seed(0)
    kind = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    plain, ours = (kind(5, momentum=momentum).double() for _ in range(2))
    ours = OnCPUs(ours)
    for _ in range(3):
        values = torch.randn(shape, dtype=torch.float64) * 3 + 100
        expected = plain(torch.cat([values, values]))[: len(values)]
        torch.testing.assert_close(ours(values), expected, rtol=0, atol=1e-12)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), buffer, rtol=1e-12, atol=0)
    assert ours(values.bfloat16()).dtype == torch.bfloat16
