"""Finds out how a class or function of another library is called, and calls it."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple, get_type_hints

from torch import nn

from lightning_seg.errors import SetupError

CLASSES = ("num_classes", "classes", "num_labels", "n_classes", "nclass", "num_class", "nb_classes")
"""Names of the argument that takes the number of classes."""

WEIGHTS = (
    "weights",
    "weights_backbone",
    "encoder_weights",
    "backbone_weights",
    "pretrained",
    "pretrained_backbone",
)
"""Names of arguments that download weights, some of them by default."""

_NO_OPTIONS = {"self", "args", "kwargs"}

EXTRAS = {"transformers": "transformers"}
"""Packages that are extras of this one."""

_HINT = """
A wrapper of your own, named instead of it, says how it is built:
    class Mine(torch.nn.Module):
        def __init__(self, num_classes: int) -> None:
            super().__init__()
            self.network = {name}(..., num_classes)
        def forward(self, image):  # normalised (B, 3, H, W) -> logits (B, num_classes, H, W)
            return self.network(image)"""


class Built(NamedTuple):
    """A network of another library."""

    network: nn.Module
    """The network."""
    pretrained: bool = False
    """Whether it starts from weights that were asked for."""
    statistics: Mapping[str, Any] = {}
    """`mean` and `std` of R, G and B in [0, 1] that the weights were trained with, where known."""
    note: str | None = None
    """A sentence on the statistics where they are not known."""


def imported(path: str) -> Any:
    """Return what an import path names: a class of modules, or a function that returns one.

    Args:
        path: Such as `torchvision.models.segmentation.fcn_resnet50`.

    Raises:
        SetupError: There is no such thing, its package is missing, or it returns something else.
    """
    found = _located(path)
    if not returns_module(found):
        kind = "a class" if isinstance(found, type) else "a function"
        raise SetupError(
            f"{path} is {kind} that is not known to be or to return a torch.nn.Module: a function "
            "needs the annotation `-> torch.nn.Module`",
            option="network",
        )
    return found


def _located(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except ImportError as error:
        package = path.partition(".")[0]
        extra = EXTRAS.get(package)
        how = f": pip install 'lightning-seg[{extra}]'" if extra else ""
        missing = getattr(error, "name", None) == package
        what = f"the package {package} is not installed{how}" if missing else str(error)
        raise SetupError(f"{path} cannot be imported: {what}", option="network") from error
    except (AttributeError, ValueError) as error:
        near = difflib.get_close_matches(name, dir(import_module(module)) if module else [], n=2)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise SetupError(f"{module or path} has no {name}{hint}", option="network") from error


def returns_module(found: Any) -> bool:
    """Return whether something is a class of modules, or annotated to return one."""
    if isinstance(found, type):
        return issubclass(found, nn.Module)
    try:
        kind = get_type_hints(found).get("return")
    except (AttributeError, NameError, TypeError):
        return False
    return isinstance(kind, type) and issubclass(kind, nn.Module)


def build(
    create: Callable[..., Any],
    path: str,
    num_classes: int,
    arguments: Mapping[str, Any],
    load_weights: bool = True,
) -> Built:
    """Build a network for a number of classes.

    Args:
        create: A class of modules, or a function that returns one.
        path: Its import path, for errors.
        num_classes: Number of classes C.
        arguments: Keyword arguments; for a network of HuggingFace, those of its configuration.
        load_weights: Whether weights that the arguments ask for are loaded.

    Raises:
        SetupError: An argument is unknown, none takes the number of classes, or the call fails.
    """
    try:
        if getattr(create, "config_class", None) is not None:
            return _from_config(create, path, num_classes, dict(arguments), load_weights)
        given = _completed(create, path, num_classes, arguments, load_weights)
        network = create(*given.pop("", ()), **given)
        asked = [name for name in WEIGHTS if given.get(name)]
        return Built(network, bool(asked), _statistics(path, given) if asked else {})
    except SetupError:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise SetupError(
            f"{path} cannot be built for {num_classes} classes with the arguments "
            f"{dict(arguments)}: {reason}",
            option="network",
        ) from error


def _completed(
    create: Callable[..., Any],
    path: str,
    num_classes: int,
    arguments: Mapping[str, Any],
    load_weights: bool,
) -> dict[str, Any]:
    """Return all arguments; those without a name stand under the empty one."""
    known = inspect.signature(create).parameters
    names = [name for name, each in known.items() if each.kind is not each.VAR_KEYWORD]
    _require_known(path, arguments, names, others=len(names) < len(known))
    given = dict(arguments)
    for name in WEIGHTS:
        if name in known and (name not in given or not load_weights):
            default = known[name].default
            given[name] = False if isinstance(default, bool) else None
    takes = next((name for name in CLASSES if name in known), None)
    if takes in given:
        raise _given_classes(path, num_classes, str(takes))
    if takes is not None:
        return {**given, takes: num_classes}
    first = next(iter(known.values()), None)
    if first is None or not takes_classes_first(first):
        raise SetupError(
            f"{path} has no argument {', '.join(CLASSES[:3])} that takes the number of classes."
            + _HINT.format(name=path)
        )
    return {**given, "": (num_classes,)}


def _given_classes(path: str, num_classes: int, name: str) -> SetupError:
    return SetupError(
        f"{path}: the number of classes, {num_classes}, comes from the data, not from {name}",
        option=f"network.{name}",
    )


def takes_classes_first(first: inspect.Parameter) -> bool:
    """Return whether the first argument of a function is the number of classes."""
    if first.kind not in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD):
        return False
    if first.name in CLASSES:
        return True
    return first.default is first.empty and first.annotation in (int, "int", first.empty)


def _require_known(
    path: str, arguments: Iterable[str], names: Sequence[str], others: bool = False
) -> None:
    """Raise for arguments that a function does not take, or takes by another name.

    Args:
        path: The function's import path.
        arguments: The names that were given.
        names: The names that it has.
        others: Whether it passes other arguments on.
    """
    for name in arguments:
        near = difflib.get_close_matches(name, names, n=2, cutoff=0.8 if others else 0.6)
        if name in names or (others and not near):
            continue
        hint = f"; did you mean {' or '.join(near)}?" if near else f"; it takes {', '.join(names)}"
        raise SetupError(f"{path} takes no argument {name!r}{hint}", option=f"network.{name}")


def _statistics(path: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the statistics of the weights of an encoder of segmentation-models-pytorch."""
    if not path.startswith("segmentation_models_pytorch.") or not given.get("encoder_weights"):
        return {}
    from segmentation_models_pytorch.encoders import get_preprocessing_params

    name = given.get("encoder_name", "resnet34")
    found: dict[str, Any] = get_preprocessing_params(name, given["encoder_weights"])
    if found["input_space"] != "RGB" or found["input_range"][-1] != 1:
        raise SetupError(
            f"the weights {given['encoder_weights']!r} of {name} are for images in "
            f"{found['input_space']} of {found['input_range']}, not in RGB of [0, 1]",
            option="encoder_weights null",
        )
    return found


def _from_config(
    create: Any, path: str, num_classes: int, arguments: dict[str, Any], load_weights: bool
) -> Built:
    """Build a network of HuggingFace from its configuration, or from weights by name or folder."""
    source, kind = arguments.pop("pretrained", None), create.config_class
    known = [name for each in kind.__mro__ for name in inspect.signature(each.__init__).parameters]
    # a few options are properties, such as out_indices
    _require_known(
        path,
        [name for name in arguments if not hasattr(kind, name)],
        sorted({*known} - _NO_OPTIONS),
    )
    if "num_labels" in arguments:
        raise _given_classes(path, num_classes, "num_labels")
    options = {**arguments, "num_labels": num_classes}
    if not source:
        return Built(create(kind(**options)))
    if not load_weights:
        return Built(create(kind.from_pretrained(source, **options)))
    network = create.from_pretrained(source, ignore_mismatched_sizes=True, **options)
    return Built(network, True, *_processor(source))


def _processor(source: str) -> tuple[Mapping[str, Any], str | None]:
    """Return the mean and standard deviation that belong to weights of HuggingFace, and a note."""
    from transformers import AutoImageProcessor

    reader: Any = AutoImageProcessor
    try:
        found = reader.from_pretrained(source)
        return {"mean": found.image_mean, "std": found.image_std}, None
    except (AttributeError, OSError, ValueError):
        return {}, f"{source} does not say how images are normalised: ImageNet's mean and std"
