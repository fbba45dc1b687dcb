"""Low-rank adapters of an encoder's linear layers, which are trained instead of its weights.

E. Hu, Y. Shen, P. Wallis, Z. Allen-Zhu, Y. Li, S. Wang, L. Wang, W. Chen: LoRA: Low-Rank Adaptation
of Large Language Models (ICLR 2022, arXiv 2106.09685). The adapters are those of the package peft.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from lightning_seg.errors import SetupError, require_range

ATTENTION = ("qkv", "q_proj", "k_proj", "v_proj", "query", "key", "value", "q", "kv")
"""The names that timm's models give to the layers of queries, keys and values."""

_A, _B, _BASE = ".lora_A.default", ".lora_B.default", ".base_layer"


@dataclass
class LoRA:
    """The sizes of low-rank adapters: a layer W x becomes W x + (alpha / rank) B A x.

    Args:
        rank: Rows of A and columns of B, at least 1.
        alpha: Numerator of the factor alpha / rank, above 0; None takes the rank, a factor of 1.
        targets: Ends of the names of the linear layers that get adapters, such as `qkv` or
            `attn.proj`. None takes the layers of queries, keys and values (default chosen here; the
            paper adapts queries and values).
        dropout: Share of an adapter's inputs that is dropped in training, in [0, 0.99].
    """

    rank: int = 8
    alpha: float | None = None
    targets: list[str] | None = None
    dropout: float = 0.0

    @property
    def factor(self) -> float:
        """The factor alpha / rank."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


def add_adapters(model: nn.Module, lora: LoRA, run: Callable[[], object]) -> None:
    """Freeze a model, and add trainable adapters, which begin as zeros, to its linear layers.

    Args:
        model: The model; it is changed in place.
        lora: The sizes.
        run: Passes an image through the model.

    Raises:
        SetupError: The package is missing, a size is out of range, or a target is no linear layer
            of the model, or one that the model does not call.
    """
    require_range(1, math.inf, rank=lora.rank)
    require_range(0, 0.99, dropout=lora.dropout)
    if lora.alpha is not None and not 0 < lora.alpha < math.inf:
        raise SetupError(f"alpha must be above 0 and finite, not {lora.alpha}", option="alpha")
    chosen = _chosen(model, lora.targets)
    _require_called(model, chosen, run)
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise SetupError(
            "LoRA needs the package peft: pip install 'lightning-seg[lora]'", option="lora null"
        ) from error
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.rank * lora.factor,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=chosen,
    )
    inject_adapter_in_model(config, model)


def _chosen(model: nn.Module, targets: list[str] | None) -> list[str]:
    """Return the names of the layers that get adapters."""
    linear = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    wanted = list(ATTENTION) if targets is None else targets
    found = {
        target: [name for name in linear if name == target or name.endswith(f".{target}")]
        for target in wanted
    }
    missing = [target for target, names in found.items() if not names]
    if missing and (targets is not None or len(missing) == len(wanted)):
        ends = sorted({name.rpartition(".")[2] for name in linear if not name.isdecimal()})
        there = f"its linear layers end in {', '.join(ends)}" if ends else "it has no linear layers"
        raise SetupError(
            f"{type(model).__name__} has no linear layer {' or '.join(missing)}: {there}",
            option="targets" if ends else "lora null",
        )
    names = {name for each in found.values() for name in each}
    return [name for name in linear if name in names]


def _require_called(model: nn.Module, names: list[str], run: Callable[[], object]) -> None:
    """Raise for layers whose weight a model reads without calling the layer: adapters are lost."""
    called: set[str] = set()
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: called.add(name))
        for name in names
    ]
    run()
    for hook in hooks:
        hook.remove()
    if unused := [name for name in names if name not in called]:
        raise SetupError(
            f"{type(model).__name__} reads the weight of {unused[0]} without calling the layer, so "
            "that an adapter would have no effect: choose other targets, such as attn.proj, fc1 "
            "and fc2",
            option="targets [attn.proj,fc1,fc2]",
        )


def plain_name(name: str) -> str:
    """Return the name that a tensor of an adapted layer, or its adapter, has in the plain model."""
    for part in (_A, _B, _BASE):
        name = name.replace(part, "")
    return name


def merged(tensors: Mapping[str, Tensor], lora: LoRA) -> dict[str, Tensor]:
    """Return the tensors of the plain model that computes what the adapted one computes.

    Args:
        tensors: The state dict of a model with adapters.
        lora: Their sizes.

    Returns:
        W + (alpha / rank) B A for the adapted layers, summed in float32 or finer, in the dtype of
        W; the other tensors as they are.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if _A in name or _B in name:
            continue
        start, base, _ = name.rpartition(_BASE)
        if base and name.endswith(".weight"):
            left, right = (tensors[f"{start}{part}.weight"].float() for part in (_B, _A))
            tensor = (tensor.float() + lora.factor * left @ right).to(tensor.dtype)
        found[plain_name(name)] = tensor
    return found
