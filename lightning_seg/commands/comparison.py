"""A comparison of two sides in rows and sentences, as the terminal, files and pages show it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lightning_seg.commands.sides import Pairing, Side, pair
from lightning_seg.scores import EVERYWHERE
from lightning_seg.statistics import Differences, paired_differences

BETTER, WORSE, UNDECIDED = "better", "worse", "no difference can be shown"

Interval = tuple[float, float]


@dataclass
class Row:
    """One score of two sides; all values are shares in [0, 1], NaN where a class is absent.

    Attributes:
        name: What the row shows: mIoU, a mean over classes in a region, or a class.
        is_class: Whether it is the IoU of a class, else it is a mean over classes.
        baseline: The score of the baseline.
        other: The score of the other side.
        difference: The mean over pairs of runs of other minus baseline.
        images: The interval over images.
        bootstrap: The percentiles of the bootstrap of this row alone.
        seeds: The t interval over pairs of runs; NaN for a single pair.
        p: The adjusted p value of the permutation test over images.
        verdict: `better`, `worse` or `no difference can be shown`.
    """

    name: str
    is_class: bool
    baseline: float
    other: float
    difference: float
    images: Interval
    bootstrap: Interval
    seeds: Interval
    p: float
    verdict: str

    @property
    def shown(self) -> bool:
        """Whether the verdict is that there is a difference."""
        return self.verdict != UNDECIDED


@dataclass
class Comparison:
    """One side against the baseline.

    Attributes:
        baseline: The name of the baseline.
        other: The name of the other side.
        confidence: The share of comparisons of equal sides that raise no false alarm.
        pairing: The images and runs that were compared.
        rows: The mIoU first, then the means of the other regions, then all classes.
    """

    baseline: str
    other: str
    confidence: float
    pairing: Pairing
    rows: list[Row]

    @property
    def runs(self) -> int:
        """Number of pairs of runs."""
        return len(self.pairing.baseline)

    @property
    def means(self) -> list[Row]:
        """The rows of means over classes, the mIoU first."""
        return [row for row in self.rows if not row.is_class]

    @property
    def classes(self) -> list[Row]:
        """The rows of classes: those that differ first, and the greatest differences first."""
        rows = (row for row in self.rows if row.is_class)
        return sorted(rows, key=lambda row: (not row.shown, -np.nan_to_num(abs(row.difference))))

    def sentences(self) -> list[str]:
        """Return what was found on the mIoU, and what the intervals are about."""
        few = ["Fewer than six images cannot show a difference."] * (len(self.pairing.ids) < 6)
        return [self._verdict(), *few, self._scope(), *self.pairing.notes]

    def _verdict(self) -> str:
        row, images = self.rows[0], len(self.pairing.ids)
        numbers = f"{points(row.difference)} points of mIoU"
        numbers += f", {percent(self.confidence)} interval over {images} image{'s' * (images > 1)} "
        numbers += span(row.images)
        if self.runs > 1:
            numbers += f", over {self.runs} pairs of runs {span(row.seeds)}"
        if not row.shown:
            between = f"between {self.baseline} and {self.other}"
            return f"No difference of mIoU can be shown {between}: {numbers}."
        as_trained = ", as these two networks are trained" if self.runs == 1 else ""
        return f"{self.other} is {row.verdict} than {self.baseline}{as_trained}: {numbers}."

    def _scope(self) -> str:
        if self.runs == 1:
            return (
                "The interval is about other images for these two networks, and not about training "
                "them again: that needs runs with several seeds on each side."
            )
        return (
            "A difference is shown where both intervals exclude 0: the one over images, and the t "
            "interval over runs, which is about training again and assumes normal differences."
        )


def compare_sides(
    baseline: Side, other: Side, confidence: float, sharing: int, samples: int, seed: int
) -> Comparison:
    """Compare a side with the baseline.

    Args:
        baseline: The first side.
        other: Another side.
        confidence: The share of comparisons without a difference that raise no false alarm.
        sharing: Number of sides that are compared with the baseline, over which the probability
            of a false alarm is divided.
        samples: Number of resamples and of exchanges.
        seed: Their seed.

    Raises:
        SetupError: The sides cannot be compared.
    """
    found = pair(baseline, other)
    level = (1 - confidence) / sharing
    differences = paired_differences(found.baseline, found.other, level, samples, seed)
    rows = list(_rows(found, differences))
    return Comparison(baseline.name, other.name, confidence, found, rows)


def _rows(found: Pairing, values: Differences) -> Iterator[Row]:
    names = [*map(region_name, found.regions), *found.classes]
    for index, name in enumerate(names):
        shown, difference = bool(values.shown[index]), float(values.difference[index])
        yield Row(
            name,
            index >= len(found.regions),
            float(values.baseline[index]),
            float(values.other[index]),
            difference,
            (float(values.low[index]), float(values.high[index])),
            (float(values.bootstrap_low[index]), float(values.bootstrap_high[index])),
            (float(values.seed_low[index]), float(values.seed_high[index])),
            float(values.p[index]),
            UNDECIDED if not shown else BETTER if difference > 0 else WORSE,
        )


def region_name(region: str) -> str:
    """Return the name of a mean IoU of a region for people.

    `mIoU within 3 px` is that of the pixels within 3 pixels of a boundary of the labels.

    Examples:
        >>> region_name("trimap_iou_3")
        'mIoU within 3 px'
    """
    if region == EVERYWHERE:
        return "mIoU"
    if region.startswith("trimap_iou_"):
        return f"mIoU within {region.rpartition('_')[2]} px"
    return {"boundary_iou": "boundary IoU"}.get(region, region)


def percent(share: float) -> str:
    """Return a share as a percentage without needless zeros.

    Examples:
        >>> percent(0.95), percent(0.999)
        ('95 %', '99.9 %')
    """
    return f"{round(100 * share, 6):g} %"


def points(value: float) -> str:
    """Return a difference in points, hundredths of 1, with its sign; a dash for NaN."""
    return "-" if np.isnan(value) else f"{100 * value:+.2f}"


def span(interval: Interval) -> str:
    """Return the ends of an interval in points."""
    return "-" if np.isnan(interval[0]) else f"{points(interval[0])} to {points(interval[1])}"
