"""What networks return: logits as tensors, in dicts, and in the outputs of other libraries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_seg.errors import SetupError
from lightning_seg.numerics import resize


def read_outputs(found: Any, network: str, size: Sequence[int]) -> dict[str, list[Tensor]]:
    """Return the logits in what a network has returned.

    Args:
        found: Logits (B, C, H, W); or a dict with the logits `out` and perhaps `aux`, one tensor or
            a list; or an output of HuggingFace with (B, C, h, w) `logits`, which are resized.
        network: The name of the network, for the error.
        size: Height and width of the image in pixels.

    Returns:
        One tensor `out`, and any number of tensors `aux`.

    Raises:
        SetupError: There are no logits in it.
    """
    if isinstance(found, Tensor):
        return {"out": [found], "aux": []}
    if not isinstance(found, Mapping) or not {"out", "logits"} & found.keys():
        holds = f" of {', '.join(map(str, found))}" if isinstance(found, Mapping) else ""
        raise SetupError(
            f"{network} returned a {type(found).__name__}{holds}; expected logits (B, C, H, W), or "
            "a dict with the logits `out`",
            option="network",
        )
    if "out" not in found:
        logits = found["logits"]
        return {"out": [resize(logits, size) if logits.ndim == 4 else logits], "aux": []}
    aux = found.get("aux", [])
    return {"out": [found["out"]], "aux": [aux] if isinstance(aux, Tensor) else list(aux)}


def require_logits(
    outputs: Mapping[str, Sequence[Tensor]],
    network: str,
    num_classes: int,
    size: Sequence[int],
    full_size: bool = True,
) -> None:
    """Raise `SetupError` for logits of another number of classes, or not of the image's size.

    Args:
        outputs: Logits by name.
        network: The name of the network, for the error.
        num_classes: Number of classes of the data.
        size: Height and width of the image in pixels.
        full_size: False accepts logits that are smaller.
    """
    for logits in (each for found in outputs.values() for each in found):
        if logits.ndim != 4 or logits.shape[1] != num_classes:
            raise SetupError(
                f"{network} returns {tuple(logits.shape)} for {num_classes} classes; expected "
                f"logits (B, {num_classes}, H, W)",
                option="network",
            )
        if full_size and tuple(logits.shape[-2:]) != tuple(size):
            raise SetupError(
                f"{network} returns logits of {logits.shape[-2]}x{logits.shape[-1]} pixels for an "
                f"image of {size[0]}x{size[1]}: resize them in its forward, such as with "
                "lightning_seg.numerics.resize",
                option="network",
            )
