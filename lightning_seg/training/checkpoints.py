"""What a checkpoint holds beside the weights, and whether it fits a module."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping, Sequence
from inspect import signature
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from lightning_seg.errors import SetupError
from lightning_seg.processes import world_size

NO_PRETRAINING = {"weights": None, "pretrained": False, "load_weights": False}
"""Arguments of a network whose weights come from a checkpoint: no weight file, no download."""

PARTS = ("network", "encoder")
"""Arguments of modules that are networks with the arguments in `NO_PRETRAINING`."""


class RandomState:
    """The state of torch's random generators on every process, to be captured and restored."""

    def __init__(self) -> None:
        self._kept: list[dict[str, Tensor]] | None = None

    def diverge(self) -> None:
        """Give every process but the first one random numbers of its own.

        All of them start from the seed of `seed_everything`, and would drop the same units and draw
        the same puzzles.
        """
        rank = dist.get_rank() if world_size() > 1 else 0
        if rank > 0:
            entropy = int(os.environ.get("PL_GLOBAL_SEED", 0)), rank
            torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))

    def capture(self) -> list[dict[str, Tensor]]:
        """Return the states of all processes by rank; every process must call this."""
        state = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state()
        if world_size() == 1:
            return [state]
        states: list[Any] = [None] * world_size()
        dist.all_gather_object(states, state)
        return states

    def keep(self, states: list[dict[str, Tensor]] | None) -> None:
        """Remember what `capture` returned, for `restore`."""
        self._kept = states

    def restore(self) -> None:
        """Set the generators once; do nothing where the states are of fewer processes."""
        states, self._kept = self._kept, None
        rank = dist.get_rank() if world_size() > 1 else 0
        if states is None or rank >= len(states):
            return
        torch.set_rng_state(states[rank]["cpu"].cpu())
        if "cuda" in states[rank] and torch.cuda.is_available():
            torch.cuda.set_rng_state(states[rank]["cuda"].cpu())


def take_usual_order(checkpoint: dict[str, Any]) -> None:
    """Bring the tensors of a checkpoint that is saved into contiguous memory order.

    Programs that read a checkpoint may send or map its memory as it is. `ShardedStrategy` does so
    with weights and the states of optimizers.

    Args:
        checkpoint: The checkpoint. The dicts of optimizers are replaced, because they are in use.
    """
    weights = checkpoint.get("state_dict", {})
    for name, value in weights.items():
        if isinstance(value, Tensor):
            weights[name] = value.contiguous()
    states = checkpoint.get("optimizer_states", [])
    for number, optimizer in enumerate(states):
        if "state" in optimizer:
            states[number] = {**optimizer, "state": _contiguous(optimizer["state"])}


def _contiguous(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {name: _contiguous(value) for name, value in values.items()}
    return values.contiguous() if isinstance(values, Tensor) else values


def require_same_tensors(module: Mapping[str, Tensor], checkpoint: Mapping[str, Tensor]) -> None:
    """Raise `SetupError` where the tensors of a module and a checkpoint differ in name or shape."""
    wanted = {name: tuple(tensor.shape) for name, tensor in module.items()}
    found = {name: tuple(tensor.shape) for name, tensor in checkpoint.items()}
    names = sorted(wanted.keys() | found.keys())
    differing = [name for name in names if wanted.get(name) != found.get(name)]
    if not differing:
        return
    shown = "; ".join(
        f"{name}: {wanted.get(name, 'absent')} here, {found.get(name, 'absent')} in the checkpoint"
        for name in differing[:4]
    )
    raise SetupError(
        f"the checkpoint is of another network or method: {len(differing)} of {len(names)} tensors "
        f"differ ({shown}). Use the configuration it was trained with",
        option=("model", "ckpt_path"),
    )


def keep_what_a_checkpoint_needs(arguments: MutableMapping[str, Any], module: type) -> None:
    """Reduce a module's arguments to those that rebuild it safely from its checkpoint.

    Three kinds of arguments are removed: networks and functions, because a checkpoint could not be
    read with `weights_only=True`; weight files and downloads, because a checkpoint brings the
    weights itself; and arguments that the command links to every module, where this one does not
    take them.

    Args:
        arguments: Values by name, changed in place. The arguments of the parts in `PARTS` stand
            under `<part>.init_args`.
        module: The class of the module.
    """
    taken = {
        name
        for each in module.__mro__
        if "__init__" in vars(each)
        for name in signature(each.__init__).parameters  # type: ignore[misc]
    }
    for name, value in list(arguments.items()):
        private = name.startswith("_")  # names that Lightning adds
        if not _is_plain(value) or (name not in taken and not private):
            del arguments[name]
    for part in PARTS:
        built = arguments.get(part)
        if built and "init_args" in built:
            given = built["init_args"]
            changed = {name: nothing for name, nothing in NO_PRETRAINING.items() if name in given}
            arguments[part] = {**built, "init_args": {**given, **changed}}


def _is_plain(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain(each) for each in (*value.keys(), *value.values()))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return all(_is_plain(each) for each in value)
    return value is None or type(value) in (bool, int, float, str)  # numpy's floats are floats
