"""Which predictions become labels: a confidence threshold for every class, and what it keeps.

With the predicted class y and the confidence q of every pixel of all unlabelled images, class c
keeps the share `keep` of its pixels, the most confident ones:

    t_c = the ceil(keep n_c)-th largest q among the n_c pixels with y = c
    label = y where q >= max(t_c, threshold), and void elsewhere

One threshold for all classes would keep the pixels of the frequent and easy classes, and none of
the others. The thresholds by class are those of class-balanced self-training, whose equation 7
determines k_c = -log t_c in this way: Y. Zou, Z. Yu, B. V. K. Vijaya Kumar, J. Wang: Unsupervised
Domain Adaptation for Semantic Segmentation via Class-Balanced Self-Training (ECCV 2018, arXiv
1810.07911). The paper raises the share from 20 % to 50 % over several rounds; here, one call is one
round.

The confidences of all pixels are not in memory: a confidence is rounded to a code of 16 bits, and
each class has a histogram of its codes. Codes are even steps of the log-odds log(q / (1 - q)), so
that 0.999 and 0.9999 are as far apart as 0.9 and 0.99. A step is 0.0005, which is at most 0.00013
of a confidence. Pixels of the same code are kept or left out together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

VOID = 255
CODES = 1 << 16
"""Number of codes of a confidence."""
LARGEST = 17.0
"""Log-odds of the largest code; those of the smallest one are -17. float32 ends at 16.6."""

Codes = NDArray[np.uint16]


def encoded(log_odds: NDArray[np.floating[Any]] | float) -> Codes:
    """Return the codes of confidences.

    Args:
        log_odds: log(q / (1 - q)) of confidences q, of any shape; values beyond 17 are clipped.

    Returns:
        uint16 codes of the same shape, which grow with q.

    Examples:
        >>> encoded(np.array([-math.inf, 0.0, math.inf])).tolist()
        [0, 32768, 65535]
    """
    clipped = np.clip(np.asarray(log_odds, np.float32), -LARGEST, LARGEST)
    return np.asarray(np.round((clipped + LARGEST) * ((CODES - 1) / (2 * LARGEST))), np.uint16)


def code_of(confidence: float) -> int:
    """Return the code of one confidence in [0, 1]."""
    if confidence in (0, 1):
        return 0 if confidence == 0 else CODES - 1
    return int(encoded(math.log(confidence) - math.log1p(-confidence)))


def confidence_of(code: int) -> float:
    """Return the confidence in (0, 1) that a code stands for."""
    return 1 / (1 + math.exp(LARGEST - code * (2 * LARGEST / (CODES - 1))))


def count(counts: NDArray[np.int64], labels: NDArray[np.uint8], codes: Codes) -> None:
    """Add the pixels of an image to the histograms of the classes.

    Args:
        counts: (C, 65536) numbers of pixels of every class and code, changed in place.
        labels: Predicted class ids, of any shape.
        codes: Codes of the confidences, of the same shape.
    """
    places, number = np.unique(labels.astype(np.int64) * CODES + codes, return_counts=True)
    counts.reshape(-1)[places] += number


def smallest_codes(
    counts: NDArray[np.int64], keep: float | None, threshold: float | None
) -> NDArray[np.int64]:
    """Return the smallest code that every class keeps.

    Args:
        counts: (C, 65536) numbers of pixels of every class and code.
        keep: Share in (0, 1] of the pixels of every class that is kept, and more only where
            further pixels have the smallest code; None keeps all.
        threshold: Smallest confidence in [0, 1) that is kept; None keeps all.

    Returns:
        (C,) codes. A class without pixels gets that of `threshold`.

    Examples:
        Class 0 has four pixels of the codes 10, 20, 30 and 40, and class 1 has none.

        >>> counts = np.zeros((2, CODES), np.int64)
        >>> counts[0, [10, 20, 30, 40]] = 1
        >>> smallest_codes(counts, keep=0.5, threshold=None).tolist()
        [30, 0]
    """
    smallest = np.full(len(counts), 0 if threshold is None else code_of(threshold), np.int64)
    if keep is None:
        return smallest
    at_least = counts[:, ::-1].cumsum(1)[:, ::-1]  # pixels of a code or a larger one
    total = at_least[:, 0]
    # 1e-9: 0.07 * 100 is a little more than 7 in floating point
    wanted = np.maximum(np.ceil(keep * total - 1e-9), 1)
    enough = (at_least >= wanted[:, None]).sum(1) - 1  # the largest code that keeps enough
    return np.where(total > 0, np.maximum(smallest, enough), smallest)


def selected(
    labels: NDArray[np.uint8], codes: Codes, smallest: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Return the labels whose confidence is large enough, and 255 elsewhere.

    Args:
        labels: Predicted class ids, of any shape.
        codes: Codes of the confidences, of the same shape.
        smallest: (C,) smallest code that every class keeps.
    """
    return np.where(codes >= smallest[labels], labels, np.uint8(VOID))


class Tally(NamedTuple):
    """Pixels by predicted class, (C,) each; those of several images are added."""

    predicted: NDArray[np.int64]
    """Pixels that the network gives the class."""
    kept: NDArray[np.int64]
    """Pixels among them that become labels."""
    right: NDArray[np.int64]
    """Pixels among the predicted ones whose class is right; 0 where nothing is known."""
    kept_right: NDArray[np.int64]
    """Pixels among the kept ones whose class is right; 0 where nothing is known."""

    @classmethod
    def of(
        cls,
        labels: NDArray[np.uint8],
        kept: NDArray[np.uint8],
        num_classes: int,
        truth: NDArray[np.uint8] | None = None,
    ) -> Tally:
        """Count the pixels of an image.

        Args:
            labels: Predicted class ids, of any shape.
            kept: The same with 255 where a pixel becomes no label.
            num_classes: Number of classes C.
            truth: True class ids; pixels that are 255 there do not count. None where they are not
                known: all pixels count.
        """
        known = np.ones(labels.shape, np.bool_) if truth is None else truth != VOID
        right = np.zeros(labels.shape, np.bool_) if truth is None else labels == truth
        chosen = kept != VOID
        parts = (known, known & chosen, known & right, known & right & chosen)
        return cls(*(np.bincount(labels[part], minlength=num_classes) for part in parts))

    @classmethod
    def none(cls, num_classes: int) -> Tally:
        """Return the counts of no pixel."""
        return cls(*(np.zeros(num_classes, np.int64) for _ in cls._fields))

    def plus(self, other: Tally) -> Tally:
        """Return the counts of both."""
        return Tally(*(a + b for a, b in zip(self, other, strict=True)))


class Precision(NamedTuple):
    """How many labels are right, by the images whose classes are known."""

    coverage: float | None
    """Share of the pixels that become labels; None where there are no pixels."""
    precision: float | None
    """Share of these labels that are right; None where there are no labels."""
    accuracy: float | None
    """Share of all predictions that are right; None where there are no pixels."""

    @classmethod
    def of(cls, predicted: int, kept: int, right: int, kept_right: int) -> Precision:
        """Return the shares of numbers of pixels."""
        return cls(_share(kept, predicted), _share(kept_right, kept), _share(right, predicted))


def report(
    names: Sequence[str],
    smallest: NDArray[np.int64],
    labels: Tally,
    validation: Tally | None,
) -> dict[str, Any]:
    """Return what was selected, in plain values that JSON can hold.

    Args:
        names: Names of the C classes.
        smallest: (C,) smallest code that every class keeps.
        labels: The pixels of the unlabelled images.
        validation: The pixels of images whose classes are known; None where there are none.

    Returns:
        `classes`, a list with a dict for every class, and `all`, the dict of all classes together:
        `name`, `threshold` (None for a class without pixels), `predicted`, `kept`, and of the
        images whose classes are known `coverage`, `precision` and `accuracy`.
    """
    rows = []
    for number, name in enumerate(names):
        seen = int(labels.predicted[number]) > 0
        row = {"name": name, "threshold": confidence_of(smallest[number]) if seen else None}
        rows.append(row | _row(labels, validation, slice(number, number + 1)))
    return {"classes": rows, "all": _row(labels, validation, slice(None))}


def _row(labels: Tally, validation: Tally | None, part: slice) -> dict[str, Any]:
    predicted, kept = int(labels.predicted[part].sum()), int(labels.kept[part].sum())
    row: dict[str, Any] = {"predicted": predicted, "kept": kept}
    if validation is not None:
        row |= Precision.of(*(int(each[part].sum()) for each in validation))._asdict()
    return row


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
