"""How many processes train together, and how they end together."""

from __future__ import annotations

import os
import sys
import threading
import time


def world_size() -> int:
    """Return the number of processes; 1 where training is not distributed."""
    import torch.distributed as dist  # here, so that the command prints its help without torch

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def leave_group() -> None:
    """End the communication with the other processes, where there is some.

    Its threads would otherwise end with the interpreter, which now and then aborts the process
    ("terminate called without an active exception") although all its work is done.
    """
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def end_with_parent(interval: float = 1.0) -> None:
    """End this process soon after the process that has started it, at any moment of a run.

    Lightning ends all processes of a machine when a started one fails. Without this, a started
    process would wait in a collective, or for the first meeting, when the one that started it is
    killed. The process of local rank 0 has not been started by another one of the run, unless it is
    torchrun that has started all of them.

    Args:
        interval: Time between two checks, in seconds.
    """
    if os.environ.get("LOCAL_RANK", "0") == "0" and "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    parent = os.getppid()

    def check() -> None:
        while os.getppid() == parent:
            time.sleep(interval)
        os._exit(1)

    threading.Thread(target=check, daemon=True, name="end-with-parent").start()
