"""How many processes train together."""

from __future__ import annotations

import torch.distributed as dist


def world_size() -> int:
    """Return the number of processes; 1 where training is not distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
