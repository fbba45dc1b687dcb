"""Transforms of albumentations by their names, with random numbers of their own."""

from __future__ import annotations

import copy
import difflib
import inspect
import os
import random
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datamodules.errors import DataError, OptionError
from datamodules.reading.mask_decoder import VOID
from datamodules.selection.seeds import RandomStream, derive_seed, generator

if TYPE_CHECKING:
    pass

Step = Any  # str, a mapping of one name to arguments, or an albumentations transform
NamedStep = tuple[Any, dict[str, Any]]  # name, or the transform itself, and arguments

_INSIDE = 253  # marks pixels of the image; a value that transforms do not fill masks with


class Transforms:
    """A composition of albumentations' transforms that draws from one random stream.

    Args:
        steps: Names and arguments of the transforms, at least one.
        stream: Random stream of the transforms.
        option: Name of the option that gave the steps, for errors.

    Raises:
        DataError: A name or an argument does not exist; the message suggests similar names.
    """

    def __init__(self, steps: Sequence[NamedStep], stream: RandomStream, option: str) -> None:
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks the network
        import albumentations as A  # takes seconds: only where it is needed

        self.compose = A.Compose(_created(steps, option), additional_targets={"inside": "mask"})
        self.stream = stream
        self.option = option

    def flat(self) -> list[Any]:
        """Return the transforms without the compositions around them."""
        return _flat(self.compose)

    def image(self, image: NDArray[Any], seed: int) -> NDArray[Any]:
        """Return the transformed image (h, w, C) of an image (H, W, C).

        Args:
            image: uint8, or float32 in [0, 1].
            seed: Seed of the example, in [0, 2**32).

        Raises:
            OptionError: A transform fails, or returns another type or number of channels.
        """
        return self._like(image, self._run(seed, image)["image"])

    def everything(
        self,
        image: NDArray[Any],
        mask: NDArray[np.uint8] | None,
        valid: NDArray[np.bool_] | None,
        seed: int,
    ) -> tuple[NDArray[Any], NDArray[np.uint8] | None, NDArray[np.bool_]]:
        """Transform an image, its mask and the map of what is not padding alike.

        The map is transformed as a second mask. Labels become void wherever a transform fills the
        map in, whichever value the transform fills masks with.

        Args:
            image: (H, W, C), uint8 or float32 in [0, 1].
            mask: (H, W) class ids; None where there are no labels.
            valid: (H, W), False where padding is; None where there is no padding.
            seed: Seed of the example, in [0, 2**32).

        Returns:
            Image (h, w, C), mask (h, w) or None, and valid (h, w).

        Raises:
            OptionError: A transform fails, or returns another type or number of channels.
        """
        # (H, W) bool -> (H, W) uint8, which albumentations transforms like labels
        masks = {"inside": np.full(image.shape[:2], _INSIDE, np.uint8)}
        if valid is not None:
            masks["inside"][~valid] = 0
        if mask is not None:
            masks["mask"] = np.ascontiguousarray(mask)
        result = self._run(seed, image, **masks)
        # (h, w) uint8 -> (h, w) bool, of the size that the transforms return
        inside = result["inside"] == _INSIDE
        if mask is not None:
            mask = np.where(inside, result["mask"], VOID).astype(np.uint8)
        return self._like(image, result["image"]), mask, inside

    def _run(self, seed: int, image: NDArray[Any], **masks: NDArray[np.uint8]) -> dict[str, Any]:
        """Apply the transforms with a source of random numbers that all of them share.

        By default albumentations 2.0.8 draws the same numbers in every worker and every epoch. Its
        `set_random_seed` gives each transform a source of its own with the same seed, so that the
        draws of different transforms are equal.
        """
        self.compose.set_random_state(
            generator(seed, self.stream), random.Random(derive_seed(seed, self.stream))
        )
        try:
            # contiguous, because the image may be a mirrored view
            result: dict[str, Any] = self.compose(image=np.ascontiguousarray(image), **masks)
        except Exception as error:
            names = ", ".join(type(step).__name__ for step in self.compose.transforms)
            size = f"{image.shape[1]}x{image.shape[0]}"
            raise OptionError(
                f"{names} failed on an image of {size} (width x height): {error}",
                option=self.option,
            ) from error
        return result

    def require_channels(self, channels: int) -> None:
        """Raise an error for a transform that cannot change images of so many channels.

        Raises:
            DataError: The message names the transform.
        """
        for step in self.flat():
            problem = _problem(step, channels)
            # a step that fails on RGB too does so for another reason, which its first call reports
            if problem and not _problem(step, 3):
                raise DataError(
                    f"{type(step).__name__} cannot change images of {channels} channels: {problem}",
                    option=self.option,
                )

    def _like(self, given: NDArray[Any], image: Any) -> NDArray[Any]:
        """Return the image, or raise an error where its type or channels are not those given."""
        if not isinstance(image, np.ndarray) or image.dtype != given.dtype or image.ndim != 3:
            kind = getattr(image, "dtype", type(image).__name__)
            expected = "8-bit values" if given.dtype == np.uint8 else str(given.dtype)
            raise OptionError(
                f"the steps return {kind}, expected {expected}: leave Normalize, ToFloat and "
                "ToTensorV2 out, because images are normalised on the device",
                option=self.option,
            )
        return image


def listed(
    steps: str | Sequence[Step], presets: Mapping[str, list[Step]], option: str
) -> list[Step]:
    """Return a list of steps, or the steps of a preset.

    Raises:
        DataError: There is no such preset.
    """
    if not isinstance(steps, str):
        return list(steps)
    if steps not in presets:
        raise DataError(
            f"there is no such preset as {steps}: expected {', '.join(presets)}, or a list of "
            "steps",
            option=option,
        )
    return presets[steps]


def named(step: Step, option: str) -> NamedStep:
    """Split a step into its name, or the transform that it is, and its arguments.

    Raises:
        DataError: The step is a mapping of several names.
    """
    if isinstance(step, Mapping):
        if len(step) != 1:
            raise DataError(
                f"a step is one name with its arguments, not {dict(step)}", option=option
            )
        ((name, arguments),) = step.items()
        return str(name), dict(arguments or {})
    return step, {}


def _created(steps: Sequence[NamedStep], option: str) -> list[Any]:
    """Create the transforms of these names."""
    import albumentations as A

    created = []
    for name, arguments in steps:
        if not isinstance(name, str):
            created.append(name)
            continue
        kind = getattr(A, name, None)
        if not (isinstance(kind, type) and issubclass(kind, A.BasicTransform | A.BaseCompose)):
            known = [each for each in dir(A) if each[0].isupper()]
            near = difflib.get_close_matches(name, known, n=2)
            hint = f"did you mean {' or '.join(near)}?" if near else "see albumentations' list"
            raise DataError(f"there is no step {name!r}; {hint}", option=option)
        if issubclass(kind, A.BaseCompose):
            inner = [named(step, option) for step in arguments.pop("transforms", [])]
            arguments["transforms"] = _created(inner, option)
        created.append(create(kind, arguments, option))
    return created


def create(kind: type[Any], arguments: dict[str, Any], option: str) -> Any:
    """Create a step; an argument that albumentations only warns of is an error here.

    Raises:
        DataError: The class does not take the arguments.
    """
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            made = kind(**arguments)
        messages = [str(each.message) for each in caught]
        problem = next((each for each in messages if "not valid" in each), "")
    except DataError:
        raise
    except Exception as error:
        problem = str(error)
    if not problem:
        return made
    accepted = [name for name in inspect.signature(kind).parameters if name != "self"]
    raise DataError(
        f"{kind.__name__} does not take {arguments} ({' '.join(problem.split())}); "
        f"it takes {', '.join(accepted)}",
        option=option,
    )


def _problem(step: Any, channels: int) -> str:
    """Return why a transform cannot change images of so many channels; nothing where it can."""
    import albumentations as A

    image = (np.arange(64 * 64 * channels) % 251).astype(np.uint8).reshape(64, 64, channels)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # one of one is always applied, whatever its probability
            result = A.Compose([A.OneOf([copy.deepcopy(step)], p=1)])(image=image)["image"]
    except Exception as error:
        return " ".join(str(error).split()) or type(error).__name__
    return "" if result.shape[2:] == image.shape[2:] else "it returns another number of channels"


def _flat(step: Any) -> list[Any]:
    import albumentations as A

    if not isinstance(step, A.BaseCompose):
        return [step]
    return [leaf for inner in step.transforms for leaf in _flat(inner)]
