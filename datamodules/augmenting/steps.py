"""Augmentation of a training image: a list of steps, named as YAML names them.

A step is the name of a class, alone or with its arguments: `HorizontalFlip` or
`{HorizontalFlip: {p: 0.5}}`. `RandomScaleCrop` is this package's own class, and so is a
`HorizontalFlip` directly after it; every other name is a class of albumentations.
Everything random is drawn from the seed of the example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.augmenting.crop import Crop, RandomScaleCrop
from datamodules.augmenting.transforms import NamedStep, Step, Transforms, create, listed, named
from datamodules.errors import DataError
from datamodules.reading.sources import Example
from datamodules.selection.seeds import RandomStream, generator

PRESETS: dict[str, list[Step]] = {
    # the field's usual augmentation, with the scales of the data module
    "standard": ["RandomScaleCrop", {"HorizontalFlip": {"p": 0.5}}],
    # DeepLab (arXiv 1606.00915, 1706.05587): scales in steps of a quarter
    "deeplab": [
        {"RandomScaleCrop": {"scale": [0.5, 2.0], "step": 0.25}},
        {"HorizontalFlip": {"p": 0.5}},
    ],
    # AdvSemiSeg (arXiv 1802.07934) with its options for random scales and random flips
    "adv_semi_seg": [
        {"RandomScaleCrop": {"scale": [0.5, 1.6], "step": 0.1}},
        {"HorizontalFlip": {"p": 0.5}},
    ],
    # AdvSemiSeg without both options, as in its published command
    "crop": [{"RandomScaleCrop": {"scale": [1.0, 1.0]}}],
    # adversarial structure matching (CVPR 2019)
    "crop_flip": [{"RandomScaleCrop": {"scale": [1.0, 1.0]}}, {"HorizontalFlip": {"p": 0.5}}],
}

STRONG_PRESETS: dict[str, list[Step]] = {
    # the changes of colour that consistency methods use
    "strong": [
        {
            "ColorJitter": {
                "brightness": [0.5, 1.5],
                "contrast": [0.5, 1.5],
                "saturation": [0.5, 1.5],
                "hue": [-0.25, 0.25],
                "p": 0.8,
            }
        },
        {"ToGray": {"p": 0.2}},
        {"GaussianBlur": {"blur_limit": 0, "sigma_limit": [0.1, 2.0], "p": 0.5}},
    ],
    # the same for images that are not RGB
    "strong_any_channels": [
        {"RandomBrightnessContrast": {"brightness_limit": 0.5, "contrast_limit": 0.5, "p": 0.8}},
        {"GaussianBlur": {"blur_limit": 0, "sigma_limit": [0.1, 2.0], "p": 0.5}},
    ],
}


class Draw(NamedTuple):
    """The random choices for one example that are made before its file is read."""

    seed: int
    """Seed of all further random choices for the example, in [0, 2**32)."""
    factor: float
    """Scale factor of the image, above 0; 1 where the augmentation scales nothing."""


class Augmented(NamedTuple):
    """A training crop."""

    image: NDArray[Any]
    """(h, w, C), uint8 or float32 in [0, 1]."""
    mask: NDArray[np.uint8] | None
    """(h, w) class ids, 255 where void or padding; None for an example without a mask."""
    valid: NDArray[np.bool_]
    """(h, w), True where the crop shows the image and False where it is padding."""


class Augmentation:
    """A list of steps that make a training crop of an example.

    Args:
        steps: Name of a preset, or a list of steps. At most one step is `RandomScaleCrop`; steps
            before it work on the whole image, steps after it on the crop.
        crop_size: Height and width in pixels of a `RandomScaleCrop` without `size`.
        scale: Smallest and largest factor of a `RandomScaleCrop` without `scale`; None takes
            `default_scale`.
        default_scale: Smallest and largest factor that suit the kind of data.
        option: Name of the option that gave the steps, for errors.
        channels: Number of channels of the images.

    Raises:
        DataError: A step or an argument does not exist, and the message suggests similar names; or
            a step cannot change images of so many channels.
    """

    def __init__(
        self,
        steps: str | Sequence[Step],
        crop_size: tuple[int, int],
        scale: tuple[float, float] | None = None,
        default_scale: tuple[float, float] = (0.5, 2.0),
        option: str = "augmentation",
        channels: int = 3,
    ) -> None:
        chosen = [named(step, option) for step in listed(steps, PRESETS, option)]
        places = [place for place, (name, _) in enumerate(chosen) if name == "RandomScaleCrop"]
        if len(places) > 1:
            raise DataError(f"{option} names RandomScaleCrop more than once", option=option)
        # created without such a step too, because it checks `crop_size` and `scale`
        usual = RandomScaleCrop(crop_size, default_scale if scale is None else scale)
        self.crop: RandomScaleCrop | None = None
        at = places[0] if places else len(chosen)
        _refuse_second_scale(scale, chosen[at][1] if places else None, option)
        if places:
            arguments = {"size": usual.size, "scale": usual.scale, **chosen[at][1]}
            self.crop = create(RandomScaleCrop, arguments, option)
        rest = chosen[at + 1 :]
        self.flip = 0.0
        if self.crop is not None and rest and rest[0][0] == "HorizontalFlip":
            self.flip = create(HorizontalFlip, rest.pop(0)[1], option).p
        self.before = _transforms(chosen[:at], RandomStream.STEPS_BEFORE_CROP, option)
        self.after = _transforms(rest, RandomStream.STEPS_AFTER_CROP, option)
        for part in (self.before, self.after):
            if part is not None and channels != 3:
                part.require_channels(channels)

    def draw(self, seed: int) -> Draw:
        """Return the scale factor for an example, which decides how its file is read.

        Args:
            seed: Seed of the example, in [0, 2**32).
        """
        if self.crop is None:
            return Draw(seed, 1.0)
        return Draw(seed, self.crop.factor(generator(seed, RandomStream.SCALE)))

    def reduction(self, draw: Draw) -> int:
        """Return n of the 1/n, one of 1, 2, 4, 8, at which a JPEG may be decoded.

        Only factors below one half reduce: decoding averages pixels that bilinear scaling skips.
        """
        if self.before is not None or self.crop is None:
            return 1
        return next((part for part in (8, 4, 2) if draw.factor * part < 1), 1)

    def __call__(self, example: Example, draw: Draw) -> Augmented:
        """Make a training crop.

        Args:
            example: Image, and mask where there is one, of the whole example; the image may be
                decoded at a part of its size, as `reduction` allows.
            draw: Result of `draw` for the example's seed. The same draw makes the same crop.

        Raises:
            DataError: A step fails, or its result is of another type.
        """
        image, mask, size = example.image, example.mask, example.size
        valid = None
        if self.before is not None:
            image, mask, valid = self.before.everything(image, mask, None, draw.seed)
            size = (image.shape[0], image.shape[1])  # steps may change it
        if self.crop is not None:
            rng = generator(draw.seed, RandomStream.CROP)
            # (H, W, C), (H, W) -> (h, w, C), (h, w)
            place = self.crop.place(rng, size, draw.factor)
            image = place.image(image, example.reduced)
            mask = None if mask is None else place.mask(mask)
            valid = place.valid() if valid is None else _cut_valid(place, valid)
            if rng.random() < self.flip:  # views, whose copies cost nothing extra later
                image, valid = image[:, ::-1], valid[:, ::-1]
                mask = None if mask is None else mask[:, ::-1]
        if self.after is not None:
            image, mask, valid = self.after.everything(image, mask, valid, draw.seed)
        return Augmented(
            image, mask, np.ones(image.shape[:2], np.bool_) if valid is None else valid
        )


class HorizontalFlip:
    """Mirrors a crop left to right, directly after `RandomScaleCrop`.

    Args:
        p: Probability in [0, 1].
    """

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"p must be in [0, 1], not {p}")
        self.p = p


class StrongView:
    """Makes a second view of a crop: other colours and sharpness, the same geometry.

    Args:
        steps: `strong`, `strong_any_channels`, or a list of albumentations' pixel-level transforms.
        channels: Number of channels of the images.

    Raises:
        DataError: A step or an argument does not exist, moves pixels, or cannot change images of so
            many channels.
    """

    def __init__(self, steps: str | Sequence[Step], channels: int = 3) -> None:
        option = "strong_augmentation"
        chosen = [named(step, option) for step in listed(steps, STRONG_PRESETS, option)]
        if not chosen:
            raise DataError("the list of steps is empty", option=option)
        self.transforms = Transforms(chosen, RandomStream.STRONG_VIEW, option)
        import albumentations as A

        for step in self.transforms.flat():
            if not isinstance(step, A.ImageOnlyTransform):
                raise DataError(
                    f"{type(step).__name__} moves pixels: the strong view must show the same "
                    "pixels as the weak one, so that only pixel-level transforms can be its steps",
                    option=option,
                )

        if channels != 3:
            self.transforms.require_channels(channels)

    def __call__(self, image: NDArray[Any], seed: int) -> NDArray[Any]:
        """Return another view (h, w, C) of a crop (h, w, C).

        Args:
            image: The crop.
            seed: Seed of the example, in [0, 2**32).
        """
        return self.transforms.image(image, seed)


def _transforms(steps: list[NamedStep], stream: RandomStream, option: str) -> Transforms | None:
    return Transforms(steps, stream, option) if steps else None


def _refuse_second_scale(
    scale: tuple[float, float] | None, crop: Mapping[str, Any] | None, option: str
) -> None:
    """Raise an error where the option `scale` has no step to act on, or the step has its own.

    Args:
        scale: Value of the option; None where it is not given.
        crop: Arguments of the step `RandomScaleCrop`; None where there is no such step.
        option: Name of the option that gave the steps.
    """
    if scale is None:
        return
    if crop is None:
        raise DataError(
            f"scale is {list(scale)}, but {option} has no RandomScaleCrop",
            option=("scale", option),
        )
    if "scale" in crop:
        raise DataError(
            f"scale is {list(scale)}, but the RandomScaleCrop of {option} has the scale "
            f"{list(crop['scale'])}: leave one out",
            option=("scale", option),
        )


def _cut_valid(place: Crop, valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Cut `valid` (H, W) out as `Crop.mask` cuts labels; padding is False."""
    cut: NDArray[np.bool_] = place.mask(valid.astype(np.uint8)) == 1
    return cut
