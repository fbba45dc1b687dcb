"""Files of encoder weights: those that this project writes, and checkpoints of other projects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_seg.errors import SetupError
from lightning_seg.files import write_whole
from lightning_seg.tensor_files import read_torch_file, require_file, require_finite

InputMode = Literal["rgb", "gray"]
WHAT = "the weight file"
"""The input of an encoder: `rgb` images, or `gray`, the mean of R, G and B in all channels."""


class WeightFile(NamedTuple):
    """The content of a weight file. Files of other projects have tensors only."""

    tensors: dict[str, Tensor]
    """Tensors by name."""
    encoder: str | None = None
    """The timm name of the encoder."""
    input_mode: InputMode | None = None
    """The images that the weights were trained on."""
    mean: Sequence[float] | None = None
    """Mean of each channel, in [0, 1], that the input was normalised with."""
    std: Sequence[float] | None = None
    """Standard deviation of each channel that the input was normalised with."""


class Match(NamedTuple):
    """The result of loading tensors into a model."""

    loaded: int
    """Number of the model's tensors that were in the file with the right shape."""
    wanted: int
    """Number of the model's tensors."""
    prefix: str
    """The part of the names in the file that precedes the model's names, `_` for every dot."""

    @property
    def share(self) -> float:
        """The share of the model's tensors that were loaded, in [0, 1]."""
        return self.loaded / max(self.wanted, 1)


def save_encoder(path: str | Path, content: WeightFile) -> None:
    """Write a weight file that `read_weights` reads, completely or not at all.

    Args:
        path: The file. Its folder is made where it is missing.
        content: Tensors on any device, and where they come from.
    """
    state = {name: tensor.detach().cpu() for name, tensor in content.tensors.items()}
    kept = {
        "state_dict": state,
        "encoder": content.encoder,
        "input_mode": content.input_mode,
        "mean": None if content.mean is None else list(content.mean),
        "std": None if content.std is None else list(content.std),
    }
    with write_whole(Path(path)) as part:
        torch.save(kept, part)


def read_weights(path: str | Path) -> WeightFile:
    """Read a `.safetensors` file or a torch checkpoint of tensors and plain values.

    Args:
        path: The file.

    Returns:
        All tensors in it, also nested ones, and what the file says about their encoder.

    Raises:
        SetupError: The file does not exist, is damaged, of another kind, could run code, or holds
            no tensors or values that are not finite.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        content = _read_safetensors(path)
    else:
        content = read_torch_file(path, WHAT, "weights")
    tensors = _nested_tensors(content)
    if not tensors:
        raise SetupError(f"{WHAT} {path} holds no tensors", option="weights")
    require_finite(tensors, path, WHAT, "weights")
    return WeightFile(
        tensors,
        encoder=_one_of_kind(str, content.get("encoder")),
        input_mode=_one_of_kind(str, content.get("input_mode")),
        mean=_one_of_kind(list, content.get("mean")),
        std=_one_of_kind(list, content.get("std")),
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    require_file(path, WHAT, "weights")
    try:
        return load_file(path)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SetupError(f"{WHAT} {path} cannot be read: {reason}", option="weights") from error


def _one_of_kind(kind: type, value: object) -> Any:
    """Return the value if it is an instance of `kind`, else None."""
    return value if isinstance(value, kind) else None


def _nested_tensors(content: object, path: str = "") -> dict[str, Tensor]:
    """Return all tensors of nested dicts; Lightning, MoCo and VISSL nest weights differently.

    Args:
        content: A dict, or anything else, which holds no tensors.
        path: Names of the outer dicts, each followed by a dot.

    Returns:
        Tensors by the names of all dicts and their own, joined by dots.
    """
    if not isinstance(content, Mapping):
        return {}
    tensors: dict[str, Tensor] = {}
    for key, value in content.items():
        if isinstance(value, Tensor):
            tensors[f"{path}{key}"] = value
        else:
            tensors.update(_nested_tensors(value, f"{path}{key}."))
    return tensors


def load_matching(
    model: nn.Module,
    source: Mapping[str, Tensor],
    origin: str,
    prefix: str | None = None,
    min_match: float = 0.95,
) -> Match:
    """Copy every tensor that has the name and the shape of one of the model's tensors.

    Names may differ by a prefix, and by `_` for `.`: timm flattens `stages.0` to `stages_0`.

    Args:
        model: The network that receives the tensors.
        source: Tensors by name.
        origin: The name of the source, for error messages.
        prefix: The part of the names in the source that precedes the model's names; None takes the
            prefix under which most tensors match.
        min_match: The smallest share, in [0, 1], of the model's tensors that must match (default
            chosen here).

    Returns:
        The numbers of loaded and wanted tensors, and the prefix.

    Raises:
        SetupError: Too few tensors match. The model is then unchanged.
    """
    # The counters of batch norm do not count as tensors: they say nothing about the weights, and
    # older files lack them.
    names = list(model.state_dict())
    counters = [name for name in names if name.endswith("num_batches_tracked")]
    wanted = {_flat(name): name for name in names if name not in counters}
    prefixes = _candidate_prefixes(wanted, source)
    if prefix is not None:
        # The file may nest the prefix in a dict: state_dict.module.encoder_q.
        prefixes = [each for each in prefixes if each.endswith(_flat(prefix))]
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    offered = {_flat(name): tensor for name, tensor in source.items()}

    def matches(start: str) -> dict[str, Tensor]:
        """Return the tensors that match under a prefix, by the model's names."""
        return {
            name: offered[start + flat]
            for flat, name in wanted.items()
            if start + flat in offered and offered[start + flat].shape == shapes[name]
        }

    start = max(prefixes, key=lambda each: len(matches(each)), default="")
    best = matches(start)
    match = Match(len(best), len(wanted), start)
    if match.share < min_match:
        missing = [name for name in wanted.values() if name not in best]
        shown = ", ".join(f"{name} {tuple(shapes[name])}" for name in missing[:8])
        raise SetupError(
            f"{origin}: {len(best)} of {len(wanted)} tensors match ({match.share:.0%}, at least "
            f"{min_match:.0%} must). Not found with the right shape: {shown}"
            f"{', ...' if len(missing) > 8 else ''}. The file holds names such as "
            f"{', '.join(list(source)[:3])}. Is it for another encoder, or is there a prefix?",
            option=("prefix", "min_match"),
        )
    best |= {
        name: offered[start + _flat(name)] for name in counters if start + _flat(name) in offered
    }
    model.load_state_dict(best, strict=False)
    return match


def _flat(name: str) -> str:
    """Return a tensor name with `_` for every dot."""
    return name.replace(".", "_")


def _candidate_prefixes(wanted: Mapping[str, str], source: Mapping[str, Tensor]) -> list[str]:
    """Return the prefixes of a few of the model's names in the source, from short to long.

    Args:
        wanted: The model's names by their flat form.
        source: Tensors by name.
    """
    names = [_flat(name) for name in source]
    probes = list(wanted)[:: max(len(wanted) // 8, 1)]
    # A dict keeps the order of the file, so that every process takes the same of two prefixes
    # under which equally many tensors match.
    prefixes = {
        name.removesuffix(probe): None for name in names for probe in probes if name.endswith(probe)
    }
    return sorted(prefixes, key=len)
