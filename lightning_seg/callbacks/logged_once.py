"""A training that goes on in the files of its loggers has every step in them once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lightning.pytorch.loggers import Logger

WITH_ALL = {"epoch", "step", "trainer/global_step"}
"""Values that Lightning and W&B add to every row."""

Row = tuple[int, Mapping[str, Any]]


class LoggedOnce:
    """Takes the place of a logger's `log_metrics`, and leaves out values that its files hold.

    A value is left out where the files hold one of the same name at this step or a later one. A row
    of a training step and a row of a validation can have the same step, so the names count.

    Args:
        logger: The logger; `install` changes it.
        known: The step of the last value by its name.
        before: Called with every row before it is logged.
    """

    def __init__(
        self,
        logger: Logger,
        known: dict[str, int],
        before: Callable[[Mapping[str, Any], int], None] | None = None,
    ) -> None:
        self.logger = logger
        self.known = known
        self.before = before

    def install(self) -> None:
        """Make the logger call this object."""
        self.logger.log_metrics = self  # type: ignore[method-assign]

    def __call__(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log the values of a row that the files do not hold.

        Args:
            metrics: Values by name.
            step: The step; None for a value of the whole run.
        """
        if step is None:  # TensorBoard stores these with step 0
            self.send({key: metrics[key] for key in metrics if self.known.get(key) != 0}, step)
            return
        new = {key: value for key, value in metrics.items() if step > self.known.get(key, -1)}
        if not new.keys() - WITH_ALL:
            return
        row = {**new, **{key: metrics[key] for key in metrics.keys() & WITH_ALL}}
        if self.before is not None:
            self.before(row, step)
        self.send(row, step)

    def send(self, metrics: Mapping[str, Any], step: int | None) -> None:
        """Log a row."""
        type(self.logger).log_metrics(self.logger, dict(metrics), step)


def last_steps(rows: Iterable[Row]) -> dict[str, int]:
    """Return the last step of every name in some rows."""
    found: dict[str, int] = {}
    for step, values in rows:
        for key in values:
            found[key] = max(step, found.get(key, -1))
    return found
