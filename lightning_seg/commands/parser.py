"""The parser of the command: pieces of configuration, and a help that a person can read."""

from __future__ import annotations

import inspect
import itertools
import json
import re
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from pydoc import locate
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, Namespace  # type: ignore[attr-defined]
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_only

from lightning_seg.commands.other_networks import PLACE, as_named, flags_as_pieces
from lightning_seg.commands.pieces import find_piece
from lightning_seg.commands.verbs import OPTIONS, OWN_VERBS, VERBS, VerbParser
from lightning_seg.training.checkpoints import NO_PRETRAINING, PARTS

JOINED = ("trainer.callbacks", "trainer.logger")
"""Options of which each piece may bring some."""

OPTIMIZING = (
    "model.optimizer",
    "model.lr_scheduler",
    "model.opponent_optimizer",
    "model.opponent_lr_scheduler",
)
"""Options whose arguments mean something else for another class."""


class ReadableParser(VerbParser, LightningArgumentParser):
    """Parses pieces of configuration and flags; a mistake is one message and exit code 2.

    The message names the unknown key, the file and line it stands in, and what may have been meant.
    """

    def add_argument(self, *args: Any, **options: Any) -> Any:
        """Add an argument; configuration files are read as pieces."""
        if options.get("action") is ActionConfigFile:
            options["action"] = _Piece
        return super().add_argument(*args, **options)

    def add_class_arguments(self, theclass: Any, *args: Any, **options: Any) -> Any:
        """Add the arguments of a class; losses of smp are for several classes unless asked else."""
        added = super().add_class_arguments(theclass, *args, **options)
        if getattr(theclass, "__module__", "").startswith("segmentation_models_pytorch.losses."):
            for action in self._actions:
                if action.dest == "mode":
                    action.required = False
                    self.set_defaults(mode="multiclass")
        return added

    def parse_args(self, args: Sequence[str] | None = None, **options: Any) -> Any:  # type: ignore[override]
        """Parse the words of a command line, by default the process's own."""
        words = sys.argv[1:] if args is None else list(args)
        found = super().parse_args(_as_pieces(words), **options)
        self._words = words
        self._require_classes(found)
        return found

    def _require_classes(self, config: Any) -> None:
        """Refuse a function where a class is named: it would be called before it is checked."""
        for key in config.keys():  # noqa: SIM118
            place, _, last = key.rpartition(".")
            if last == "class_path" and not isinstance(locate(config[key]), type):
                self.error(
                    f"{config[key]} is a function, and class_path names a class. A function that "
                    f"returns a module is given by its name alone: {place.rpartition('.')[2]}: "
                    f"{config[key]}, and needs an annotation of what it returns"
                )

    def add_subcommands(self, *args: Any, **options: Any) -> Any:
        """Add verbs with a line of help each; those that are not the Trainer's come first."""
        subcommands = super().add_subcommands(*args, **options)
        add = subcommands.add_subcommand

        def described(name: str, parser: Any, **options: Any) -> Any:
            parser.description = VERBS[name] + OPTIONS * (name not in OWN_VERBS)
            return add(name, parser, **{**options, "help": VERBS[name]})

        subcommands.add_subcommand = described  # type: ignore[method-assign]
        for name in OWN_VERBS:  # run by `cli.main`: they are here for the help
            described(name, ReadableParser())
        return subcommands


class _Piece(ActionConfigFile):
    """A configuration file, of which the earlier pieces keep what they alone say.

    Lists of callbacks and of loggers are joined; a later entry takes the place of an earlier one of
    the same class. Arguments of an optimizer or a schedule do not follow to another class.
    """

    def __call__(
        self, parser: Any, cfg: Any, values: Any, option_string: str | None = None
    ) -> None:
        """Read one file, or a configuration written as a string."""
        found = find_piece(values)
        try:
            content = _content(found)
        except UnicodeDecodeError as error:
            parser.error(f"configuration file {found} is not UTF-8 text: {error}")
        if content == {}:
            return
        if isinstance(found, Path) and content is not None and not isinstance(content, dict):
            parser.error(
                f"configuration file {found} holds a {type(content).__name__}, not options"
            )
        changed = as_named(content, cfg.get(PLACE))
        found = found if changed is content else json.dumps(changed)
        before = {key: _copied(cfg.get(place)) for key, place in _places()}
        for key in JOINED:
            if _entries(_said(content, key)):  # else an entry gets arguments of the one before
                cfg[key] = None
        self.apply_config(parser, cfg, self.dest, str(found))
        for key, place in _places():
            now = cfg.get(place)
            if key in JOINED:
                cfg[place] = _joined(before[key], now)
            elif _class(before[key]) not in (None, _class(now)) and _class(now):
                _drop_carried_over(key, before[key], now, _said(content, place))


def _places() -> Iterator[tuple[str, str]]:
    """Yield each option's name, and the key under which a configuration holds it."""
    for key in JOINED:
        yield key, key
    for key in OPTIMIZING:
        yield key, key.replace("model.", "model.init_args.")


def _content(found: Path | str) -> Any:
    """Return the content of a YAML file or string; None where the parser will report a mistake.

    The content of an empty file is an empty mapping.
    """
    try:
        text = found.read_text(encoding="utf-8") if isinstance(found, Path) else found
        content = yaml.safe_load(text)
    except (OSError, yaml.YAMLError):
        return None
    return {} if content is None and isinstance(found, Path) else content


def _said(content: Any, place: str) -> Any:
    for part in place.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content


def _copied(value: Any) -> Any:
    if isinstance(value, list):
        return list(value)
    return value.clone() if isinstance(value, Namespace) else value


def _class(value: Any) -> str | None:
    """Return the class path of a value that names a class."""
    return value.get("class_path") if isinstance(value, (Namespace, dict)) else None


def _entries(value: Any) -> list[Any]:
    """Return the callbacks or loggers that a value names; none where it names no class."""
    entries = value if isinstance(value, list) else [value]
    return entries if all(map(_class, entries)) else []


def _joined(before: Any, now: Any) -> Any:
    """Return the callbacks or loggers of two pieces; later ones replace those of their class."""
    if not _entries(before) or not _entries(now) or before is now:
        return now
    again = {_class(each) for each in _entries(now)}
    kept = [each for each in _entries(before) if _class(each) not in again]
    return [*kept, *_entries(now)] if kept else now


def _drop_carried_over(key: str, before: Any, now: Any, said: Any) -> None:
    """Reset the arguments that an optimizer or a schedule has from one of another class."""
    old, new = str(_class(before)), str(_class(now))
    given = said.get("init_args") or {} if isinstance(said, dict) else {}
    earlier, arguments = _items(before), now.get("init_args")
    own, asked = _defaults(new), []
    for name in earlier.keys() & own.keys() - given.keys():
        if arguments is not None and name in arguments:
            # not removed: the default optimizer's value would take the place
            arguments[name] = own[name]
        if earlier[name] != _defaults(old).get(name):
            asked.append(f"{name} {earlier[name]}")
    if asked:
        names = [name.rpartition(".")[2] for name in (new, old)]
        values = ", ".join(sorted(asked))
        _note(f"{key}: {names[0]} has its own defaults, not {names[1]}'s {values}")


def _items(value: Any) -> dict[str, Any]:
    """Return the arguments of a value that names a class."""
    arguments = value.get("init_args")
    return vars(arguments) if isinstance(arguments, Namespace) else dict(arguments or {})


def _defaults(class_path: str) -> dict[str, Any]:
    """Return the arguments of a class that have a default."""
    module, _, name = class_path.rpartition(".")
    parameters = inspect.signature(getattr(import_module(module), name)).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not each.empty}


@rank_zero_only
def _note(text: str) -> None:
    sys.stderr.write(f"note: {text}\n")


def _as_pieces(words: Sequence[str]) -> list[str]:
    """Write flags that jsonargparse misunderstands as pieces of configuration.

    These are a null deep in an object, which it takes for the text `null`; the name of an
    optimizer, whose arguments would be those of the optimizer before; and networks of other
    libraries.
    """
    changed: list[str] = []
    rest = flags_as_pieces(words, _network_piece)
    for word in rest:
        flag, equals, value = word.partition("=")
        if not flag.startswith("--") or flag.count(".") < 1:
            changed.append(word)
            continue
        key = flag[2:].replace(".init_args.", ".")
        following = [] if equals else list(itertools.islice(rest, 1))
        value = value if equals else "".join(following)
        null = value == "null" and key.count(".") > 1 and key.startswith(("model.", "data."))
        if null or (key in OPTIMIZING and re.fullmatch(r"[\w.]+", value) and value != "null"):
            changed += ["--config", _piece(key, None if null else value)]
        else:
            changed += [word, *following]
    return changed


def _network_piece(name: str) -> Any:
    """Return the content of a piece; None where reading it is an error, which is reported later."""
    try:
        return _content(find_piece(name))
    except UnicodeDecodeError:
        return None


def _piece(key: str, value: str | None) -> str:
    content: Any = value if value is None else {"class_path": value}
    first, *others = key.split(".")
    for part in reversed(others):
        content = {"init_args": {part: content}}
    return json.dumps({first: content})


def forget_pretraining(config: Namespace) -> None:
    """Build networks with random weights where a checkpoint is given, which brings the weights.

    Args:
        config: The configuration of a verb; it is changed in place.
    """
    if config.get("ckpt_path") in (None, "untrained", "auto"):
        return
    for part, (name, nothing) in itertools.product(PARTS, NO_PRETRAINING.items()):
        key = f"model.init_args.{part}.init_args.{name}"
        if key in config:
            config[key] = nothing
