"""Networks of other libraries on the command line and in pieces, where `network` names them.

jsonargparse builds classes that take the number of classes first. Another class or function becomes
a `NamedNetwork`, and what stands below `network` becomes its arguments:

    network: {class_path: torchvision.models.segmentation.fcn_resnet50, init_args: {aux_loss: true}}
"""

from __future__ import annotations

import inspect
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pydoc import locate
from typing import Any

import yaml
from torch import nn

NAMED = "lightning_seg.networks.NamedNetwork"
PLACE = "model.init_args.network"

_PACKAGES = {"segmentation_models_pytorch", "torchvision", "transformers"}
_OPTIONS = {"path", "arguments", "load_weights"}
_FLAG = "--model.network"


def is_other(path: Any) -> bool:
    """Return whether an import path names a network that jsonargparse cannot build.

    Args:
        path: A value of the option `network`.

    Returns:
        True for functions that are annotated to return a module, for modules whose first argument
        is not the number of classes, and for what is missing in packages of networks.
    """
    if not isinstance(path, str) or "." not in path or path.startswith("lightning_seg."):
        return False
    from lightning_seg.networks.foreign import returns_module, takes_classes_first

    try:
        found: Any = locate(path)
    except Exception:  # an error in somebody's module, which jsonargparse reports
        found = None
    if found is None or path.partition(".")[0] in _PACKAGES:
        return path.partition(".")[0] in _PACKAGES
    if not isinstance(found, type):
        return callable(found) and returns_module(found)
    if not issubclass(found, nn.Module):
        return False
    first = next(iter(inspect.signature(found).parameters.values()), None)
    return first is None or not takes_classes_first(first)


def as_named(content: Any, current: Any) -> Any:
    """Return the content of a piece in which a network of another library is a `NamedNetwork`.

    Args:
        content: The content of a piece.
        current: The network in the configuration so far.
    """
    said = content
    for part in PLACE.split("."):
        said = said.get(part) if isinstance(said, dict) else None
    network = _named(said, current)
    if network is None:
        return content
    options = {**content["model"]["init_args"], "network": network}
    return {**content, "model": {**content["model"], "init_args": options}}


def _named(said: Any, current: Any) -> dict[str, Any] | None:
    """Return the network that a piece names or changes; None where it is none of these."""
    if isinstance(said, str):
        said = {"class_path": said}
    if not isinstance(said, dict):
        return None
    path, given = said.get("class_path"), said.get("init_args") or {}
    before = _arguments(current)
    if path is None and before and not given.keys() <= _OPTIONS:
        path = before["path"]
    elif not is_other(path):
        return None
    kept = before.get("arguments") or {} if before.get("path") == path else {}
    return {
        "class_path": NAMED,
        "init_args": {"path": path, "arguments": _merged(kept, given), "load_weights": True},
    }


def _arguments(network: Any) -> dict[str, Any]:
    """Return the arguments of a network that is a `NamedNetwork`; none for others."""
    if network is None or isinstance(network, str) or network.get("class_path") != NAMED:
        return {}
    return dict(vars(network["init_args"]))


def _merged(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(before)
    for name, value in now.items():
        old = found.get(name)
        both = isinstance(value, dict) and isinstance(old, dict)
        found[name] = _merged(old, value) if both else value  # type: ignore[arg-type]
    return found


def flags_as_pieces(words: Sequence[str], content_of: Callable[[str], Any]) -> Iterator[str]:
    """Yield the words of a command line, those of other networks as pieces of configuration.

    Args:
        words: The command line.
        content_of: Returns the content of a piece by its name.
    """
    rest, other = iter(words), False
    for word in rest:
        flag, equals, value = word.partition("=")
        if flag in ("-c", "--config"):
            following = [] if equals else list(itertools.islice(rest, 1))
            named = _network_in(content_of(value if equals else "".join(following)))
            other = other if named is None else is_other(named) or named == NAMED
            yield from (word, *following)
            continue
        if flag != _FLAG and not flag.startswith(f"{_FLAG}."):
            yield word
            continue
        key = flag.removeprefix(_FLAG).removeprefix(".").replace("init_args.", "")
        following = [] if equals else list(itertools.islice(rest, 1))
        text = value if equals else "".join(following)
        if key in ("", "class_path"):
            other = is_other(text)
            change: Any = {"class_path": text}
        else:
            change = {"init_args": _nested(key, text)}
        if other and key != "help":
            piece = {"model": {"init_args": {"network": change}}}
            yield from ("--config", json.dumps(piece))
        else:
            yield from (word, *following)


def _network_in(content: Any) -> str | None:
    for part in PLACE.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    named = content.get("class_path") if isinstance(content, dict) else content
    return named if isinstance(named, str) else None


def _nested(key: str, text: str) -> dict[str, Any]:
    try:
        value: Any = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    for part in reversed(key.split(".")):
        value = {part: value}
    return value  # type: ignore[no-any-return]
