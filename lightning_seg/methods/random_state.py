"""The generators' state in a checkpoint: dropout goes on where the run was cut off."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class RandomState:
    """Captures torch's generators on every process, and restores each process's own later."""

    def __init__(self) -> None:
        self._kept: list[dict[str, Tensor]] | None = None

    def capture(self) -> list[dict[str, Tensor]]:
        """Return the state of every process, in rank order; all processes must call this."""
        state = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state()
        if not (dist.is_available() and dist.is_initialized()):
            return [state]
        states: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(states, state)
        return states

    def keep(self, states: list[dict[str, Tensor]] | None) -> None:
        """Remember what `capture` returned, for `restore`."""
        self._kept = states

    def restore(self) -> None:
        """Set the generators, once; nothing where the states are of fewer processes."""
        states, self._kept = self._kept, None
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        if states is None or rank >= len(states):
            return
        torch.set_rng_state(states[rank]["cpu"].cpu())
        if "cuda" in states[rank] and torch.cuda.is_available():
            torch.cuda.set_rng_state(states[rank]["cuda"].cpu())
