"""Checks of the data modules' options, whose errors name the option."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning.pytorch.utilities import rank_zero_warn

from datamodules.errors import DataError
from lightning_seg.errors import require_range

MAX_CHANNELS = 1024
"""Largest number of channels of an image; default chosen here."""


def checked_range(image_range: tuple[float, float] | None) -> tuple[float, float] | None:
    """Return black and white as floats; None stays None.

    Raises:
        DataError: Black is not below white.
    """
    if image_range is None:
        return None
    low, high = image_range
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise DataError(
            f"image_range must be black < white, such as [0, 4095], not {[low, high]}",
            option="image_range",
        )
    return float(low), float(high)


def within(low: int, high: int, **options: int | None) -> None:
    """Raise `DataError` for an option outside [low, high]; None stands for a default."""
    given = {name: value for name, value in options.items() if value is not None}
    require_range(low, high, error=DataError, **given)


def at_least(low: int, **options: int | None) -> None:
    """Raise `DataError` for an option below its smallest value; None stands for a default."""
    given = {name: value for name, value in options.items() if value is not None}
    require_range(low, math.inf, error=DataError, **given)


def require_channel_options(
    channels: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    picture_channels: Sequence[int] | None,
) -> None:
    """Raise an error for options on channels that contradict each other.

    Args:
        channels: Number of channels of the images.
        mean: Mean of each channel.
        std: Standard deviation of each channel.
        picture_channels: The channels that pictures show as red, green and blue, or the only one.

    Raises:
        DataError: There is not one value per channel, a deviation is not above 0, or a channel does
            not exist.
    """
    within(1, MAX_CHANNELS, channels=channels)
    for name, values in {"image_mean": mean, "image_std": std}.items():
        if values is not None and len(values) != channels:
            raise DataError(f"{name} has {len(values)} values for {channels} channels", option=name)
    if (mean is None) != (std is None):
        raise DataError(
            "image_mean and image_std are given together or not at all",
            option=("image_mean", "image_std"),
        )
    if std is not None and not all(math.isfinite(each) and each > 0 for each in std):
        raise DataError(f"image_std must be above 0, not {list(std)}", option="image_std")
    if mean is not None and not all(map(math.isfinite, mean)):
        raise DataError(f"image_mean must be finite, not {list(mean)}", option="image_mean")
    if picture_channels is not None:
        if len(picture_channels) not in (1, 3):
            raise DataError(
                f"picture_channels names 3 channels, as red, green and blue, or 1, not "
                f"{len(picture_channels)}",
                option="picture_channels",
            )
        if not all(0 <= each < channels for each in picture_channels):
            raise DataError(
                f"picture_channels must be in [0, {channels - 1}], not {list(picture_channels)}",
                option="picture_channels",
            )


def warn_of_unused(used: bool, **options: object) -> None:
    """Warn of options for unlabelled images where no such images are `used`."""
    given = [f"{name}=" for name, value in options.items() if value is not None]
    if given and not used:
        rank_zero_warn(
            f"{', '.join(given)} does nothing without unlabelled images in a batch "
            "(option: unlabeled_batch_size=)"
        )
