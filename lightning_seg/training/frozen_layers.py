"""Which layers of a network do not learn: a frozen encoder, and frozen batch norms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_seg.errors import SetupError
from lightning_seg.networks.encoder import TimmEncoder
from lightning_seg.networks.named import NamedNetwork
from lightning_seg.training.optimization import backbone_of

FrozenNorms = Literal["none", "encoder", "all", "pretrained"]


def freeze(network: nn.Module, checkpointed: bool = False, method: str = "") -> None:
    """Let the encoder of a network get no gradients, so that no activation is kept for it.

    Args:
        network: A network with an `encoder` or `backbone`.
        checkpointed: Whether activations are to be computed again in the backward pass.
        method: The name of a method that trains an encoder; empty for other methods.

    Raises:
        SetupError: The network has no encoder, the method trains it, or two settings contradict
            each other.
    """
    if method:
        raise SetupError(
            f"{method} trains an encoder for another training, which a frozen one would be useless "
            "for",
            option="freeze_encoder false",
        )
    encoder = backbone_of(network)
    if encoder is None:
        raise SetupError(
            f"freeze_encoder is true, but {type(network).__name__} has no `encoder` or `backbone`",
            option="freeze_encoder false",
        )
    if isinstance(encoder, TimmEncoder) and encoder.lora is not None:
        raise SetupError(
            "freeze_encoder would freeze the adapters of LoRA, too, which freezes all other "
            "weights of the encoder by itself",
            option=("freeze_encoder false", "lora null"),
        )
    if checkpointed:
        raise SetupError(
            "a frozen encoder keeps no activations, so that checkpoint_activations saves nothing",
            option=("checkpoint_activations false", "freeze_encoder false"),
        )
    encoder.requires_grad_(False)


def require_norms(network: nn.Module, frozen: FrozenNorms) -> None:
    """Raise `SetupError` where the batch norms of an encoder are to be frozen and there is none."""
    if frozen in ("encoder", "pretrained") and backbone_of(network) is None:
        raise SetupError(
            f"freeze_batch_norm is {frozen}, but {type(network).__name__} has no `encoder` or "
            "`backbone`",
            option="freeze_batch_norm all",
        )


def keep_in_evaluation_mode(network: nn.Module, encoder: bool, norms: FrozenNorms) -> None:
    """Switch what is frozen to evaluation mode, after the network was switched to training.

    Args:
        network: The network.
        encoder: Whether its encoder is frozen, dropout and all norms included.
        norms: The batch norms that are frozen.
    """
    part = backbone_of(network)
    if encoder and part is not None:
        part.eval()
    pretrained = part if getattr(part, "pretrained", False) else None
    frozen = {"none": None, "encoder": part, "all": network, "pretrained": pretrained}[norms]
    for layer in frozen.modules() if frozen is not None else ():
        if isinstance(layer, _BatchNorm):
            layer.eval()


def facts(network: nn.Module, encoder: bool, norms: FrozenNorms, resumed: bool) -> Iterator[str]:
    """Yield a sentence on the size of a network, and on each thing that is frozen or is not.

    Args:
        network: The network.
        encoder: Whether its encoder is frozen.
        norms: The batch norms that are frozen.
        resumed: Whether the weights come from a checkpoint.
    """
    named = network.path.rpartition(".")[2] if isinstance(network, NamedNetwork) else None
    name, weights = named or type(network).__name__, list(network.parameters())
    count = sum(weight.numel() for weight in weights)
    learning = sum(weight.numel() for weight in weights if weight.requires_grad)
    trained = f", of which {learning:,} are trained" if learning < count else ""
    yield f"{name} has {count:,} weights{trained}"
    for part in network.modules():
        if isinstance(part, (TimmEncoder, NamedNetwork)):
            yield from filter(None, (part.origin, getattr(part, "stride_note", None)))
    pretrained = getattr(backbone_of(network), "pretrained", False)
    if encoder and not pretrained and not resumed:
        yield "the frozen encoder has random weights, which no training will change"
    if norms == "pretrained" and not pretrained:
        yield "batch norms are not frozen, because the encoder starts from random weights"
