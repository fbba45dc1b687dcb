"""Noticing a discriminator that has won or given up, the commonest way for these runs to fail."""

from __future__ import annotations

import math

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

WINDOW = 200
WON = 0.05
"""Mean of L_D below which predictions hardly ever pass for labels; 0.2 to 0.5 is healthy."""
GUESSING = 0.01
"""Distance of L_D from log 2 within which D tells nothing apart."""


class DiscriminatorWatch:
    """Warns, once for each reason, when 200 batches in a row look bad.

    Losses on a device are looked at together at the end of such a window, so that no step waits.
    """

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._told: set[str] = set()

    def watch(self, loss_d: Tensor, loss_semi: Tensor | None) -> None:
        """Take note of a batch.

        Args:
            loss_d: The discriminator's loss, a scalar.
            loss_semi: Of the pseudo-labels, 0 where none was selected; None where not in use.
        """
        semi = torch.full_like(loss_d, math.nan) if loss_semi is None else loss_semi
        self._losses.append(torch.stack([loss_d.detach(), semi.detach()]))
        if len(self._losses) == WINDOW:
            losses = torch.stack(self._losses).double().cpu()
            self._losses = []
            self._look(losses[:, 0], losses[:, 1])

    def _look(self, loss_d: Tensor, loss_semi: Tensor) -> None:
        mean = loss_d.mean().item()
        if mean < WON:
            self._tell(
                "won",
                f"the discriminator has won: its loss was {mean:.3f} on average (0.2 to 0.5 is "
                "healthy), so it takes hardly any prediction for a label, and the segmenter learns "
                "little from it. Slow it down (option: --model.opponent_lr, try a tenth)",
            )
        if (loss_d - math.log(2)).abs().max() < GUESSING:
            self._tell(
                "guessing",
                f"the discriminator tells nothing apart: its loss stayed at {mean:.3f}, log 2 is "
                "guessing. Let it learn faster (option: --model.opponent_lr, try ten times)",
            )
        if (loss_semi == 0).all():
            self._tell(
                "selects nothing",
                "no pixel of an unlabelled image was confident enough to become a pseudo-label. "
                "Ask for less confidence (option: --model.t_semi), or slow the discriminator down "
                "(option: --model.opponent_lr)",
            )

    def _tell(self, reason: str, message: str) -> None:
        if reason not in self._told:
            self._told.add(reason)
            rank_zero_warn(f"in the last {WINDOW} batches {message}")
