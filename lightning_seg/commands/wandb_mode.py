"""A run without a W&B key, or without a network, is logged offline instead of stopping."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from http.client import HTTPException

from lightning import Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_info

_PATIENCE = 5.0  # seconds to wait for the server


def choose_mode(trainer: Trainer) -> None:
    """Log offline where W&B would ask for a key, wait for a network, or stop the run.

    A mode that was chosen by WANDB_MODE, `wandb offline` or an option of the logger stays.

    Args:
        trainer: A Trainer that is about to run.
    """
    for logger in trainer.loggers:
        if not isinstance(logger, WandbLogger) or not trainer.is_global_zero:
            continue
        if logger._experiment is not None or _is_chosen(logger):
            continue
        if reason := _obstacle():
            logger._wandb_init["mode"] = "offline"
            rank_zero_info(
                f"W&B: {reason}. The run is logged offline below {logger.save_dir}; `wandb sync` "
                "uploads it later"
            )


def _is_chosen(logger: WandbLogger) -> bool:
    import wandb

    options = logger._wandb_init
    mode = options.get("mode") or os.environ.get("WANDB_MODE", "online")
    if logger._offline or mode != "online":
        return True
    settings = wandb.setup().settings  # of the environment and of W&B's settings files
    return settings.mode not in (None, "online")


def _obstacle() -> str | None:
    """Return what keeps a run from being sent to W&B; None where nothing does."""
    import wandb

    if not wandb.login(prompt=False, verify=False):
        return "there is no key (`wandb login` stores one)"
    address = wandb.setup().settings.base_url
    try:
        urllib.request.urlopen(address, timeout=_PATIENCE).close()
    except urllib.error.HTTPError:
        return None  # an answer
    except (OSError, HTTPException, ValueError):
        return f"{address} cannot be reached"
    return None
