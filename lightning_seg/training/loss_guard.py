"""Stopping a training whose loss is no number any more."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_seg.errors import NonFiniteLossError

# Steps between two looks at a device's losses: each look waits for the device
_LOOK_EVERY = 50


class FiniteGuard:
    """Finds the first step whose loss was NaN or infinite, without waiting in every step.

    Losses on a CPU are looked at at once, those on a device together every 50 steps, and before
    a checkpoint is written.
    """

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._steps: list[tuple[int, Sequence[str]]] = []

    def watch(self, loss: Tensor, step: int, ids: Sequence[str]) -> None:
        """Take note of a step's loss.

        Args:
            loss: A scalar.
            step: Its number.
            ids: The images of its batch.

        Raises:
            NonFiniteLossError: This one or one before it is NaN or infinite.
        """
        self._losses.append(loss.detach())
        self._steps.append((step, ids))
        if loss.device.type == "cpu" or len(self._losses) >= _LOOK_EVERY:
            self.check()

    def check(self) -> None:
        """Look at all losses that were not looked at."""
        if not self._losses:
            return
        finite = torch.stack(self._losses).isfinite().tolist()
        values, steps = self._losses, self._steps
        self._losses, self._steps = [], []
        if all(finite):
            return
        first = finite.index(False)
        step, ids = steps[first]
        named = ", ".join(ids[:8]) + (", ..." if len(ids) > 8 else "")
        raise NonFiniteLossError(
            f"the training loss was {values[first].item()} in step {step} (images {named}). Likely "
            "causes: a learning rate that is too large (option: --model.lr, with two players also "
            "--model.opponent_lr; try a tenth), half precision that overflowed "
            "(--trainer.precision bf16-mixed or 32-true instead of 16-mixed), gradients that "
            "exploded (--trainer.gradient_clip_val 1.0, with two players "
            "--model.gradient_clip_val 1.0), or an image or mask that is broken (python cli.py "
            "check)"
        )
