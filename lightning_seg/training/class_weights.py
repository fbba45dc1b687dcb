"""Weights of the classes in the loss of pixels, given or counted from the training labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lightning_seg.errors import SetupError, require_one_of, require_range
from lightning_seg.losses import balanced_weights, effective_weights

Counted = Literal["balanced", "effective"]


class ClassWeights:
    """Weights of the classes, and the parts of a loss that take them.

    Args:
        given: One weight per class, at least 0; `balanced` or `effective` are counted later; None
            weighs nothing.
        num_classes: Number of classes C.

    Attributes:
        counted: The weights that were counted, for a checkpoint; None where none were.

    Raises:
        SetupError: The number of weights is not C, or they are negative or all 0.
    """

    def __init__(self, given: Sequence[float] | Counted | None, num_classes: int) -> None:
        self.counted: list[float] | None = None
        self._parts: list[tuple[nn.Module, str]] = []
        self.kind: str | None = None
        self._values: Tensor | None = None
        if isinstance(given, str):
            require_one_of("balanced", "effective", class_weights=given)
            self.kind, self._values = given, torch.ones(num_classes)
        elif given is not None:
            if len(given) != num_classes:
                raise SetupError(
                    f"{len(given)} class_weights for {num_classes} classes", option="class_weights"
                )
            for weight in given:
                require_range(0, math.inf, class_weights=weight)
            if not any(given):
                raise SetupError("all class_weights are 0", option="class_weights")
            self._values = torch.tensor(given, dtype=torch.float32)

    def enter(self, loss: nn.Module) -> None:
        """Set the weights of a loss and its parts: buffers of a usual name that hold None.

        Raises:
            SetupError: There are weights, and no part of the loss takes them.
        """
        if self._values is None:
            return
        self._parts = [
            (part, name)
            for part in loss.modules()
            for name in ("class_weights", "weight")
            if name in part._buffers and part._buffers[name] is None
        ]
        if not self._parts:
            raise SetupError(
                "class_weights are weights of pixels in CrossEntropy, LossMaxPooling or "
                f"torch.nn.CrossEntropyLoss, and {type(loss).__name__} has none to set",
                option="class_weights null",
            )
        self._set(self._values)

    def count(self, data: Any, class_names: Sequence[str]) -> None:
        """Count the weights from the training labels, where they are `balanced` or `effective`.

        Args:
            data: A data module whose `class_pixels()` returns the (N, C) pixels of each class in
                its labelled training images.
            class_names: One name per class, for the report.

        Raises:
            SetupError: The data module has no such method, or no pixel is labelled.
        """
        if self.kind is None:
            return
        counts = getattr(data, "class_pixels", None)
        if counts is None:
            raise SetupError(
                f"class_weights {self.kind} are counted by a data module with `class_pixels`, and "
                f"there is {'none' if data is None else type(data).__name__}",
                option="class_weights",
            )
        pixels = torch.as_tensor(counts())  # (N, C)
        total, images = pixels.sum(0), (pixels > 0).sum(0)
        if not total.any():
            raise SetupError("no pixel of the training images is labelled", option="data")
        balanced = self.kind == "balanced"
        weights = balanced_weights(total) if balanced else effective_weights(images, total)
        _report(self.kind, weights, class_names)
        self.restore(weights.tolist())

    def restore(self, counted: Sequence[float] | None) -> None:
        """Set weights that were counted, such as those of a checkpoint; None changes nothing."""
        if self.kind is not None and counted is not None:
            self.counted = list(counted)
            self._set(torch.tensor(self.counted))

    def _set(self, values: Tensor) -> None:
        for part, name in self._parts:
            before = part._buffers[name]
            setattr(part, name, values.to(None if before is None else before.device, copy=True))


def _report(kind: str, weights: Tensor, class_names: Sequence[str]) -> None:
    """Report the range of weights, and the classes that have none."""
    shown = weights > 0
    names = [name for name, there in zip(class_names, shown.tolist(), strict=True) if there]
    values = weights[shown]
    low, high = int(values.argmin()), int(values.argmax())
    rank_zero_info(
        f"class_weights {kind}: from {values[low]:.3g} ({names[low]}) to {values[high]:.3g} "
        f"({names[high]})"
    )
    absent = [name for name in class_names if name not in names]
    if absent:
        more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
        rank_zero_warn(
            f"class_weights {kind}: no training label shows {', '.join(absent[:5])}{more}, whose "
            "weight is 0"
        )
