"""Low-rank adapters of an encoder."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_seg import SetupError
from lightning_seg.networks import DPT, LoRA, TimmEncoder, UNet
from lightning_seg.networks.lora import merged

peft = pytest.importorskip("peft")
VIT = "vit_tiny_patch16_224"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def adapted(**sizes) -> TimmEncoder:
    """An encoder whose adapters are no longer zero."""
    encoder = TimmEncoder(VIT, lora=LoRA(**sizes)).eval()
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    return encoder


def test_only_the_adapters_of_the_encoder_learn() -> None:
    network = DPT(3, VIT, widths=(8, 8, 8, 8), fusion=8, lora=LoRA(rank=4))
    learning = {name for name, each in network.encoder.named_parameters() if each.requires_grad}
    assert len(learning) == 2 * 12
    assert all(".attn.qkv.lora_" in name for name in learning)
    # queries, keys and values of 192 channels: (192 + 576) x 4 in each of 12 blocks
    assert sum(network.get_parameter(f"encoder.{name}").numel() for name in learning) == 36864
    assert all(each.requires_grad for each in network.head.parameters())


def test_adapters_begin_as_nothing() -> None:
    plain = TimmEncoder(VIT).eval()
    torch.manual_seed(0)
    ours = TimmEncoder(VIT, lora=LoRA(rank=2)).eval()
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        for one, other in zip(plain(image), ours(image), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize(
    "sizes", [{"rank": 3, "alpha": 12}, {"rank": 2, "targets": ["attn.proj", "fc1"]}]
)
def test_a_merged_encoder_computes_the_same(sizes: dict) -> None:
    ours = adapted(**sizes)
    plain = TimmEncoder(VIT).eval()
    found = ours.plain(ours.bare.state_dict())
    assert found.keys() == plain.bare.state_dict().keys()
    plain.bare.load_state_dict(found)
    image = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        for one, other in zip(plain(image), ours(image), strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_merging_is_what_peft_does() -> None:
    ours = adapted(rank=3, alpha=6)
    expected = ours.bare.state_dict()
    found = merged(expected, LoRA(rank=3, alpha=6))
    for name, layer in ours.bare.named_modules():
        if isinstance(layer, peft.tuners.lora.LoraLayer):
            layer.merge()
            torch.testing.assert_close(
                found[f"{name}.weight"], layer.get_base_layer().weight.detach()
            )


def test_a_worked_merge() -> None:
    tensors = {
        "a.base_layer.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        "a.base_layer.bias": torch.tensor([5.0, 6.0]),
        "a.lora_A.default.weight": torch.tensor([[1.0, 10.0]]),
        "a.lora_B.default.weight": torch.tensor([[2.0], [0.0]]),
        "norm.weight": torch.tensor([7.0]),
    }
    found = merged(tensors, LoRA(rank=1, alpha=3))
    # W + 3 B A = [[1, 2], [3, 4]] + 3 [[2, 20], [0, 0]]
    assert found["a.weight"].tolist() == [[7, 62], [3, 4]]
    assert found["a.bias"].tolist() == [5, 6]
    assert found.keys() == {"a.weight", "a.bias", "norm.weight"}


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        (VIT, {"targets": ["qkvv"]}, r"no linear layer qkvv: .* end in fc1, fc2, proj, qkv"),
        (VIT, {"targets": ["qkv", "fc9"]}, "no linear layer fc9"),
        ("resnet18", {}, "it has no linear layers"),
        (VIT, {"rank": 0}, "rank must be at least 1"),
        (VIT, {"alpha": 0}, "alpha must be above 0"),
        (VIT, {"dropout": 1.0}, "dropout must be in"),
    ],
)
def test_impossible_adapters_are_one_sentence(name: str, sizes: dict, message: str) -> None:
    with pytest.raises(SetupError, match=message):
        TimmEncoder(name, lora=LoRA(**sizes))


def test_a_layer_whose_weight_is_read_without_a_call_is_refused() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.proj = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, image):
            return self.proj(nn.functional.linear(image, self.qkv.weight))

    from lightning_seg.networks.lora import add_adapters

    model = Reads()
    with pytest.raises(SetupError, match="reads the weight of qkv without calling"):
        add_adapters(model, LoRA(), lambda: model(torch.zeros(1, 2)))


def test_every_head_takes_adapters() -> None:
    network = UNet(3, "swin_tiny_patch4_window7_224", lora=LoRA(rank=2))
    network(torch.randn(2, 3, 64, 64))["out"].sum().backward()
    given = {name for name, each in network.encoder.named_parameters() if each.grad is not None}
    assert given
    assert all("lora_" in name for name in given)


def test_the_layers_of_an_adapted_encoder_are_those_of_the_plain_one() -> None:
    plain, ours = TimmEncoder(VIT), TimmEncoder(VIT, lora=LoRA(rank=2))
    assert len(ours.layers()) == len(plain.layers()) == 13
    names = {id(each): name for name, each in ours.bare.named_parameters()}
    for number, layer in enumerate(ours.layers()[1:]):
        assert all(names[id(each)].startswith(f"blocks.{number}.") for each in layer)
