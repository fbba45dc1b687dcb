"""A warning where a discriminator has won or only guesses, the usual way for a run to fail."""

from __future__ import annotations

import math

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

WINDOW = 200
WON = 0.05
"""Mean of L_D below which D takes hardly any prediction for a label; 0.2 to 0.5 is healthy."""
GUESSING = 0.01
"""Distance of L_D from log 2 within which D does not tell predictions from labels."""


class DiscriminatorWatch:
    """Warns once for each reason, after 200 batches in a row that look bad.

    Losses on a device are read together at the end of such a window, so that no step waits.
    """

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._reasons: set[str] = set()

    def watch(self, loss_d: Tensor, loss_semi: Tensor | None) -> None:
        """Keep the losses of a batch, and check them at the end of a window.

        Args:
            loss_d: The loss of the discriminator, a scalar.
            loss_semi: The loss of the pseudo-labels, a scalar, 0 where no pixel was selected; None
                where pseudo-labels are not in use.
        """
        semi = torch.full_like(loss_d, math.nan) if loss_semi is None else loss_semi
        self._losses.append(torch.stack([loss_d.detach(), semi.detach()]))
        if len(self._losses) == WINDOW:
            losses = torch.stack(self._losses).double().cpu()
            self._losses = []
            self._check(losses[:, 0], losses[:, 1])

    def _check(self, loss_d: Tensor, loss_semi: Tensor) -> None:
        mean = loss_d.mean().item()
        if mean < WON:
            self._warn(
                "won",
                f"the discriminator has won: its loss was {mean:.3f} on average (0.2 to 0.5 is "
                "healthy), so it takes hardly any prediction for a label, and the segmenter learns "
                "little from it. Train it more slowly: try a tenth of opponent_lr",
            )
        if (loss_d - math.log(2)).abs().max() < GUESSING:
            self._warn(
                "guessing",
                f"the discriminator only guesses: its loss stayed at {mean:.3f}, and log 2 is "
                "guessing. Train it faster: try ten times the opponent_lr",
            )
        if (loss_semi == 0).all():
            self._warn(
                "selects nothing",
                "no pixel of an unlabelled image was confident enough to become a pseudo-label. "
                "Ask for less confidence by t_semi, or train the discriminator more slowly by "
                "opponent_lr",
            )

    def _warn(self, reason: str, message: str) -> None:
        if reason not in self._reasons:
            self._reasons.add(reason)
            rank_zero_warn(f"in the last {WINDOW} batches {message}")
