"""A training stops where its loss has become NaN or infinite."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_seg.errors import NonFiniteLossError

# steps between two checks of losses on a device, because each check waits for the device
_CHECK_EVERY = 50


class FiniteGuard:
    """Finds the first step whose loss was NaN or infinite, without waiting in every step.

    A loss on a CPU is checked at once. Losses on a device are checked together every 50 steps and
    before a checkpoint is written.
    """

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._steps: list[tuple[int, Sequence[str]]] = []

    def watch(self, loss: Tensor, step: int, ids: Sequence[str]) -> None:
        """Keep the loss of a step, and check it where that costs nothing.

        Args:
            loss: A scalar.
            step: The number of the step.
            ids: The ids of the images in the batch.

        Raises:
            NonFiniteLossError: This loss or an earlier one is NaN or infinite.
        """
        self._losses.append(loss.detach())
        self._steps.append((step, ids))
        if loss.device.type == "cpu" or len(self._losses) >= _CHECK_EVERY:
            self.check()

    def check(self) -> None:
        """Check the losses that have not been checked yet.

        Raises:
            NonFiniteLossError: One of them is NaN or infinite.
        """
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
            "causes: a learning rate that is too large (try a tenth, with two players of "
            "opponent_lr too), half precision that overflowed (try bf16-mixed or 32-true), "
            "gradients that exploded (try clipping at 1.0, with two players in the module's "
            "option), or a broken image or mask, which the verb `check` finds",
            option=("lr", "trainer.precision", "trainer.gradient_clip_val"),
        )
