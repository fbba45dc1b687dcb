"""Files of an encoder's weights: what this project hands over, and what others publish."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_seg.errors import SetupError

InputMode = Literal["rgb", "gray"]
"""What an encoder sees: images in colour, or the mean of their channels three times."""


class WeightFile(NamedTuple):
    """What a file of weights holds; all but the tensors is None in files of others."""

    tensors: dict[str, Tensor]
    encoder: str | None = None
    """The timm name."""
    input_mode: InputMode | None = None
    mean: Sequence[float] | None = None
    """Of the RGB input in [0, 1], by which it was normalised; likewise `std`."""
    std: Sequence[float] | None = None


class Match(NamedTuple):
    """How many of a model's tensors a file held."""

    found: int
    wanted: int
    prefix: str
    """What precedes the model's names in the file, with `_` for every dot."""

    @property
    def share(self) -> float:
        """The share that was found, in [0, 1]."""
        return self.found / max(self.wanted, 1)


def option(name: str) -> str:
    """Return where an encoder's option stands on the command line, for a message."""
    return f"--model.network.{name} or --model.encoder.{name}"


def save_encoder(path: str | Path, content: WeightFile) -> None:
    """Write a file that `read_weights` reads, complete or not at all.

    Args:
        path: Its folder is made.
        content: Tensors on any device.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu() for name, tensor in content.tensors.items()}
    kept = {
        "state_dict": state,
        "encoder": content.encoder,
        "input_mode": content.input_mode,
        "mean": None if content.mean is None else list(content.mean),
        "std": None if content.std is None else list(content.std),
    }
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    torch.save(kept, part)
    part.replace(path)


def read_weights(path: str | Path) -> WeightFile:
    """Read a `.safetensors` file or a torch checkpoint (tensors and plain values only).

    Raises:
        SetupError: There is no such file, or it is damaged or holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise SetupError(f"weight file {path} does not exist (option: {option('weights')})")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SetupError(f"weight file {path} cannot be read: {reason}") from error
    tensors = _nested_tensors(content)
    if not tensors:
        raise SetupError(f"weight file {path} holds no tensors")
    return WeightFile(
        tensors,
        encoder=_one_of_kind(str, content.get("encoder")),
        input_mode=_one_of_kind(str, content.get("input_mode")),
        mean=_one_of_kind(list, content.get("mean")),
        std=_one_of_kind(list, content.get("std")),
    )


def _one_of_kind(kind: type, value: object) -> Any:
    return value if isinstance(value, kind) else None


def _nested_tensors(content: object, path: str = "") -> dict[str, Tensor]:
    """Flatten nested dicts (Lightning, MoCo, VISSL wrap their weights differently)."""
    if not isinstance(content, Mapping):
        return {}
    found: dict[str, Tensor] = {}
    for key, value in content.items():
        if isinstance(value, Tensor):
            found[f"{path}{key}"] = value
        else:
            found.update(_nested_tensors(value, f"{path}{key}."))
    return found


def load_matching(
    model: nn.Module,
    source: Mapping[str, Tensor],
    origin: str,
    prefix: str | None = None,
    min_match: float = 0.95,
) -> Match:
    """Copy into `model` every tensor of `source` with the same name and shape.

    Names may differ by a prefix and by `_` for `.` (timm flattens `stages.0` to `stages_0`).

    Args:
        model: The network that receives the tensors.
        source: Names and tensors.
        origin: What to call the source in an error.
        prefix: What precedes the model's names in the source; None finds the best.
        min_match: The share of the model's tensors that must be found, in [0, 1].

    Returns:
        What was found.

    Raises:
        SetupError: Too few tensors match. Nothing has been copied then.
    """
    # a counter says nothing about the weights, and older files lack it
    names = list(model.state_dict())
    counters = [name for name in names if name.endswith("num_batches_tracked")]
    wanted = {_flat(name): name for name in names if name not in counters}
    prefixes = _candidate_prefixes(wanted, source)
    if prefix is not None:  # the file may wrap it: state_dict.module.encoder_q.
        prefixes = [found for found in prefixes if found.endswith(_flat(prefix))]
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    offered = {_flat(name): tensor for name, tensor in source.items()}

    def matches(start: str) -> dict[str, Tensor]:
        return {
            name: offered[start + flat]
            for flat, name in wanted.items()
            if start + flat in offered and offered[start + flat].shape == shapes[name]
        }

    start = max(prefixes, key=lambda each: len(matches(each)), default="")
    best = matches(start)
    found = Match(len(best), len(wanted), start)
    if found.share < min_match:
        missing = [name for name in wanted.values() if name not in best]
        shown = ", ".join(f"{name} {tuple(shapes[name])}" for name in missing[:8])
        raise SetupError(
            f"{origin}: {len(best)} of {len(wanted)} tensors match ({found.share:.0%}, at least "
            f"{min_match:.0%} must). Not found with the right shape: {shown}"
            f"{', ...' if len(missing) > 8 else ''}. The file holds names such as "
            f"{', '.join(list(source)[:3])}. Is it for another encoder, or is there a prefix "
            f"(options: {option('prefix')}, {option('min_match')})?"
        )
    best |= {
        name: offered[start + _flat(name)] for name in counters if start + _flat(name) in offered
    }
    model.load_state_dict(best, strict=False)
    return found


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _candidate_prefixes(wanted: Mapping[str, str], source: Mapping[str, Tensor]) -> list[str]:
    """Every string that stands before one of a few of the model's names in the source."""
    names = [_flat(name) for name in source]
    probes = list(wanted)[:: max(len(wanted) // 8, 1)]
    # in the file's order, so that every process takes the same of two equally good ones
    found = {
        name.removesuffix(probe): None for name in names for probe in probes if name.endswith(probe)
    }
    return sorted(found, key=len)
