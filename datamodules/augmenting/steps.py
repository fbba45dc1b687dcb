"""What happens to a training image: a list of steps, named as YAML names them.

A step is the name of a class, alone or with its arguments: `HorizontalFlip` or
`{HorizontalFlip: {p: 0.5}}`. `RandomScaleCrop` is ours, and so is a `HorizontalFlip` behind it;
every other name is albumentations'.
Everything random is drawn from the example's own seed.
"""

from __future__ import annotations

import difflib
import inspect
import os
import random
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.augmenting.crop import Crop, RandomScaleCrop
from datamodules.errors import DataError, OptionError
from datamodules.reading.mask_decoder import VOID

if TYPE_CHECKING:
    import albumentations as A

Step = Any  # str, a mapping of one name to arguments, or an albumentations transform

PRESETS: dict[str, list[Step]] = {
    # the field's usual recipe, with the data module's own range of scales
    "standard": ["RandomScaleCrop", {"HorizontalFlip": {"p": 0.5}}],
    # DeepLab's (arXiv 1606.00915, 1706.05587): the scales in quarters
    "deeplab": [
        {"RandomScaleCrop": {"scale": [0.5, 2.0], "step": 0.25}},
        {"HorizontalFlip": {"p": 0.5}},
    ],
    # AdvSemiSeg's (arXiv 1802.07934) with both of its switches on ...
    "adv_semi_seg": [
        {"RandomScaleCrop": {"scale": [0.5, 1.6], "step": 0.1}},
        {"HorizontalFlip": {"p": 0.5}},
    ],
    # ... and with both off, as in its published command
    "crop": [{"RandomScaleCrop": {"scale": [1.0, 1.0]}}],
    # adversarial structure matching's (CVPR 2019)
    "crop_flip": [{"RandomScaleCrop": {"scale": [1.0, 1.0]}}, {"HorizontalFlip": {"p": 0.5}}],
}

STRONG_PRESETS: dict[str, list[Step]] = {
    # colours as consistency methods disturb them
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
}

_INSIDE = 253  # no likely fill of a mask


class Augmented(NamedTuple):
    """A training crop."""

    image: NDArray[np.uint8]
    """(h, w, 3) RGB."""
    mask: NDArray[np.uint8] | None
    """(h, w) class ids, 255 where void or outside of the image."""
    valid: NDArray[np.bool_]
    """(h, w), True where the image is and not padding."""


class Augmentation:
    """A list of steps on image, labels and the mask of what is not padding.

    Args:
        steps: The name of a preset, or a list of steps. At most one of them is
            `RandomScaleCrop`; what stands before it works on the whole image.
        crop_size: Height and width of a `RandomScaleCrop` that names no `size`.
        scale: Range of factors of a `RandomScaleCrop` that names no `scale`; None takes
            `default_scale`.
        default_scale: Of this kind of data.
        option: Named in errors.

    Raises:
        DataError: An unknown name or argument, with what was probably meant.
    """

    def __init__(
        self,
        steps: str | Sequence[Step],
        crop_size: tuple[int, int],
        scale: tuple[float, float] | None = None,
        default_scale: tuple[float, float] = (0.5, 2.0),
        option: str = "--data.augmentation",
    ) -> None:
        named = [_named(step, option) for step in _listed(steps, PRESETS, option)]
        places = [place for place, (name, _) in enumerate(named) if name == "RandomScaleCrop"]
        if len(places) > 1:
            raise DataError(f"{option} names RandomScaleCrop more than once")
        # checked without one too: a wrong option is not to pass unseen
        usual = RandomScaleCrop(crop_size, default_scale if scale is None else scale)
        self.crop: RandomScaleCrop | None = None
        at = len(named)
        if scale is not None and not places:
            raise DataError(f"--data.scale says {list(scale)}, but {option} has no RandomScaleCrop")
        if places:
            at = places[0]
            given = named[at][1]
            if scale is not None and "scale" in given:
                raise DataError(
                    f"--data.scale says {list(scale)}, the RandomScaleCrop of {option} "
                    f"{list(given['scale'])}: leave one out"
                )
            self.crop = _make(
                RandomScaleCrop, {"size": usual.size, "scale": usual.scale, **given}, option
            )
        self.before = _compose(named[:at], option)
        rest = named[at + 1 :]
        self.flip = 0.0
        if self.crop is not None and rest and rest[0][0] == "HorizontalFlip":
            self.flip = _make(HorizontalFlip, rest.pop(0)[1], option).p
        self.after = _compose(rest, option)

    def draw(self, seed: int) -> tuple[np.random.Generator, float]:
        """Return the generator of an example and its scale factor, known before it is read."""
        rng = np.random.default_rng(_part(seed, 0))
        return rng, 1.0 if self.crop is None else self.crop.factor(rng)

    def reduction(self, factor: float) -> int:
        """Return to which part of its size, 1/1 to 1/8, a JPEG may be decoded for this factor.

        Only below a half: decoding averages the pixels that plain scaling would skip.
        """
        if self.before is not None or self.crop is None:
            return 1
        return next((part for part in (8, 4, 2) if factor * part < 1), 1)

    def __call__(
        self,
        image: NDArray[np.uint8],
        mask: NDArray[np.uint8] | None,
        seed: int,
        drawn: tuple[np.random.Generator, float] | None = None,
        size: tuple[int, int] | None = None,
        reduced: int = 1,
    ) -> Augmented:
        """Augment one example.

        Args:
            image: (H, W, 3) RGB.
            mask: (H, W) class ids; None where there are no labels.
            seed: Decides everything random.
            drawn: What `draw` returned for this seed, where it was called.
            size: Height and width of the whole image, where it was decoded smaller.
            reduced: How many times smaller.

        Raises:
            DataError: The steps return something other than 8-bit RGB.
        """
        rng, factor = self.draw(seed) if drawn is None else drawn
        valid = None
        if self.before is not None:
            image, mask, valid = _apply(self.before, image, mask, None, _part(seed, 1))
            size = None  # the steps may have changed it
        if self.crop is not None:
            place = self.crop.place(rng, size or image.shape[:2], factor)
            image = place.image(image, reduced)
            mask = None if mask is None else place.mask(mask)
            valid = place.valid() if valid is None else _cut_valid(place, valid)
            if rng.random() < self.flip:  # views: the flip is done when they are copied
                image, valid = image[:, ::-1], valid[:, ::-1]
                mask = None if mask is None else mask[:, ::-1]
        if self.after is not None:
            image, mask, valid = _apply(self.after, image, mask, valid, _part(seed, 2))
        return Augmented(
            image, mask, np.ones(image.shape[:2], np.bool_) if valid is None else valid
        )


class HorizontalFlip:
    """Mirrors left and right behind a `RandomScaleCrop`, where it costs nothing.

    Args:
        p: Probability, in [0, 1].
    """

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"p must lie in [0, 1], not {p}")
        self.p = p


class StrongView:
    """Changes of colour and sharpness, on top of a crop whose geometry stays.

    Args:
        steps: `strong`, or a list of albumentations' pixel-level transforms.

    Raises:
        DataError: An unknown name or argument, or a step that moves pixels.
    """

    def __init__(self, steps: str | Sequence[Step]) -> None:
        option = "--data.strong_augmentation"
        named = [_named(step, option) for step in _listed(steps, STRONG_PRESETS, option)]
        compose = _compose(named, option)
        if compose is None:
            raise DataError(f"{option} is empty")
        self.compose = compose
        import albumentations as A

        for step in _leaves(compose):
            if not isinstance(step, A.ImageOnlyTransform):
                raise DataError(
                    f"{option}: {type(step).__name__} moves pixels; the strong "
                    "view must lie on the weak one, only pixel-level transforms can stand here"
                )

    def __call__(self, image: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
        """Return another view of an (h, w, 3) image."""
        _seed(self.compose, _part(seed, 3))
        return _rgb(_run(self.compose, image)["image"])


def _listed(
    steps: str | Sequence[Step], presets: Mapping[str, list[Step]], option: str
) -> list[Step]:
    if not isinstance(steps, str):
        return list(steps)
    if steps not in presets:
        raise DataError(
            f"{option} {steps}: there is no such preset; there are {', '.join(presets)}, or "
            "give a list of steps"
        )
    return presets[steps]


def _named(step: Step, option: str) -> tuple[Any, dict[str, Any]]:
    """Split a step into its name, or the transform that it is, and its arguments."""
    if isinstance(step, Mapping):
        if len(step) != 1:
            raise DataError(f"a step of {option} is one name with its arguments, not {dict(step)}")
        ((name, arguments),) = step.items()
        return str(name), dict(arguments or {})
    return step, {}


def _compose(named: Sequence[tuple[Any, dict[str, Any]]], option: str) -> A.Compose | None:
    if not named:
        return None
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks the network
    import albumentations as A  # takes seconds: not for `--help`

    steps = []
    for name, arguments in named:
        if not isinstance(name, str):
            steps.append(name)
            continue
        kind = getattr(A, name, None)
        if not (isinstance(kind, type) and issubclass(kind, A.BasicTransform | A.BaseCompose)):
            known = [*(each for each in dir(A) if each[0].isupper())]
            near = difflib.get_close_matches(name, known, n=2)
            hint = f"did you mean {' or '.join(near)}?" if near else "see albumentations' list"
            raise DataError(f"{option}: there is no step {name!r}; {hint}")
        if issubclass(kind, A.BaseCompose):
            steps_inside = arguments.pop("transforms", [])
            inner = _compose([_named(step, option) for step in steps_inside], option)
            arguments["transforms"] = [] if inner is None else inner.transforms
        steps.append(_make(kind, arguments, option))
    return A.Compose(steps, additional_targets={"inside": "mask"})


def _make(kind: type[Any], arguments: dict[str, Any], option: str) -> Any:
    """Create a step; what albumentations only warns of, a wrong argument, is an error."""
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            made = kind(**arguments)
        problem = next((str(each.message) for each in told if "not valid" in str(each.message)), "")
    except DataError:
        raise
    except Exception as error:
        problem = str(error)
    if not problem:
        return made
    accepted = [name for name in inspect.signature(kind).parameters if name != "self"]
    raise DataError(
        f"{option}: {kind.__name__} does not take {arguments} ({' '.join(problem.split())}); "
        f"it takes {', '.join(accepted)}"
    )


def _leaves(step: Any) -> list[Any]:
    """Return the transforms in nested compositions."""
    import albumentations as A

    if not isinstance(step, A.BaseCompose):
        return [step]
    return [leaf for inner in step.transforms for leaf in _leaves(inner)]


def _apply(
    compose: A.Compose,
    image: NDArray[np.uint8],
    mask: NDArray[np.uint8] | None,
    valid: NDArray[np.bool_] | None,
    seed: int,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None, NDArray[np.bool_]]:
    """Apply albumentations with a random state of its own.

    What is not padding travels as a second mask, so that labels are void wherever a step has
    filled in, whatever it fills masks with.
    """
    masks = {"inside": np.full(image.shape[:2], _INSIDE, np.uint8)}
    if valid is not None:
        masks["inside"][~valid] = 0
    if mask is not None:
        masks["mask"] = np.ascontiguousarray(mask)
    _seed(compose, seed)
    result = _run(compose, image, **masks)
    inside = result["inside"] == _INSIDE
    if mask is not None:
        mask = np.where(inside, result["mask"], VOID).astype(np.uint8)
    return _rgb(result["image"]), mask, inside


def _part(seed: int, part: int) -> int:
    """Return the seed of one part of an example's augmentation: no two draw the same numbers."""
    return int(np.random.SeedSequence((seed, part)).generate_state(1)[0])


def _seed(compose: A.Compose, seed: int) -> None:
    """Give the steps one common source of random numbers.

    Left to itself, albumentations 2.0.8 draws the same stream in every worker and every epoch;
    its `set_random_seed` gives each step a source of its own with the same seed, so that what
    they draw goes together.
    """
    compose.set_random_state(np.random.default_rng(seed), random.Random(seed))


def _run(
    compose: A.Compose, image: NDArray[np.uint8], **masks: NDArray[np.uint8]
) -> dict[str, Any]:
    try:
        # contiguous: it may be a mirrored view
        result: dict[str, Any] = compose(image=np.ascontiguousarray(image), **masks)
    except Exception as error:
        steps = ", ".join(type(step).__name__ for step in compose.transforms)
        size = f"{image.shape[1]}x{image.shape[0]}"
        raise OptionError(
            f"--data.augmentation: {steps} failed on an image of {size}: {error}"
        ) from error
    return result


def _rgb(image: Any) -> NDArray[np.uint8]:
    if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3):
        kind = getattr(image, "dtype", type(image).__name__)
        raise OptionError(
            f"the steps of --data.augmentation return {kind}, expected 8-bit RGB: leave Normalize, "
            "ToFloat and ToTensorV2 out, normalisation is done on the device"
        )
    return image


def _cut_valid(place: Crop, valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    cut: NDArray[np.bool_] = place.mask(valid.astype(np.uint8)) == 1
    return cut
