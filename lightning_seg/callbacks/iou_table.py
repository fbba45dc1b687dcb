"""The table that a paper would print."""

from __future__ import annotations

import math

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table


class IoUTable(Callback):
    """Prints the IoU of every class and the mean scores at the end of `fit`, `validate` and `test`.

    The table after `fit` is of the last validation. Only the first process prints.
    """

    def __init__(self) -> None:
        self._scores: dict[str, float] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the scores, and print them where the verb is `validate`."""
        if not trainer.sanity_checking:
            self._keep(trainer, "val/")
            if trainer.state.fn == "validate":
                self._print(trainer, "validation")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the last validation's scores."""
        self._print(trainer, f"validation after {trainer.global_step} steps")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the test scores."""
        self._keep(trainer, "test/")
        self._print(trainer, "test")

    def _keep(self, trainer: Trainer, stage: str) -> None:
        self._scores = {
            name.removeprefix(stage): value.item()
            for name, value in trainer.callback_metrics.items()
            if name.startswith(stage)
        }

    def _print(self, trainer: Trainer, title: str) -> None:
        if "miou" in self._scores and trainer.is_global_zero:
            Console().print(iou_table(self._scores, title))


def iou_table(scores: dict[str, float], title: str) -> Table:
    """Return a table of scores in percent.

    Args:
        scores: `iou/<class>` for every class, and `miou` and any other score, in [0, 1].
        title: The line above the table.
    """
    table = Table(title=title, min_width=len(title))
    table.add_column("class")
    table.add_column("IoU %", justify="right")
    for name, value in scores.items():
        if name.startswith("iou/"):
            table.add_row(name.removeprefix("iou/"), _percent(value))
    table.add_section()
    for name, value in scores.items():
        if not name.startswith("iou/") and name != "loss":
            table.add_row(name, _percent(value), style="bold" if name == "miou" else None)
    return table


def _percent(value: float) -> str:
    return "absent" if math.isnan(value) else f"{100 * value:.1f}"
