"""What the command says when something is wrong: one message, no dump."""

from __future__ import annotations

import difflib
import logging
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from jsonargparse import ArgumentParser

from lightning_seg.commands.pieces import find_piece
from lightning_seg.errors import UserError
from lightning_seg.processes import world_size

# Lightning's own use of torch's pytree, which it warns of on every run
warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")
# a run that would overwrite another one's checkpoints is refused
warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")


def _of_concern(record: logging.LogRecord) -> bool:
    """Tell whether a line of Lightning's log speaks of the run and not of a product."""
    return not record.getMessage().startswith(("💡 Tip", "TPU available: False"))


logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_of_concern)

# lines of jsonargparse's messages that speak of types and repeat the whole configuration
_NOISE = re.compile(
    r"Does not validate|Subtypes:|Errors:|Expected a <class 'NoneType'>|Given value type|"
    r"Given value: (?:.{80}|NestedArg|Namespace|\{)"
)
_TYPE = re.compile(
    r"Type \S+\[.*\] expects a function or a callable class: |\.? Got value: (?:.{80}|Namespace).*"
)
_REFUSED = re.compile(r"(?:Option|option) '([\w.]+)' is not accepted|not accept option '([\w.]+)'")
_UNRECOGNIZED = re.compile(r"unrecognized arguments: --trainer\.(\w+)()")
_UNANNOTATED = re.compile(r"Expected '([\w.]+)' to be a function that returns <class '(\w+)'>")
_NO_PLACE = (FileNotFoundError, NotADirectoryError, FileExistsError, PermissionError)
_CLASS = re.compile(r"class_path(?:=| )'([\w.]+)'")
# gloo raises plain RuntimeErrors
_OF_GLOO = re.compile(r"gloo|pair closure|[Cc]onnection (?:closed|reset) by peer|Timed out waiting")
_OPTIONS = re.compile(r"\((options?): ([^()]*=[^()]*)\)")


def explain(message: str, words: Sequence[str]) -> str:
    """Shorten jsonargparse's message, and say where the mistake is and what may be meant.

    Args:
        message: The library's message.
        words: The command line, in which the configuration files are looked up.

    Returns:
        One or a few lines.
    """
    if function := _UNANNOTATED.search(message):
        return (
            f"{function[1]} is a function, and is called only where it says what it returns: it "
            f"needs the annotation `-> {function[2]}`"
        )
    # PyYAML's name for a file whose text it was handed
    message = message.replace('"<unicode string>"', " or ".join(map(str, _files(words))))
    lines = [
        line.strip(" -") for line in message.splitlines() if not _NOISE.match(line.strip(" -"))
    ]
    kept = [_TYPE.sub("", line) for line in lines] or [message]
    refused = _REFUSED.search(message) or _UNRECOGNIZED.search(message)
    if refused is None:
        return "\n  ".join(kept)
    key = next(group for group in refused.groups() if group).rpartition(".")[2]
    owners = _CLASS.findall(message)
    accepted = _options_of(owners[-1] if owners else "lightning.Trainer")
    if near := difflib.get_close_matches(key, accepted, n=2):
        kept.append(f"did you mean {' or '.join(near)}?")
    elif owners and accepted:
        kept.append(f"{owners[-1]} accepts {', '.join(accepted)}")
    elif owners:  # a base class, because nobody has named another one
        kept.append("name a class first, by a piece such as configs/network/lraspp.yaml or a flag")
    kept += [f"it stands in {place}" for place in _find(key, words)]
    return "\n  ".join(kept)


def _options_of(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return []
    added = ArgumentParser(exit_on_error=False).add_class_arguments(found, fail_untyped=False)
    return sorted({option.partition(".")[0] for option in added})


def _files(words: Sequence[str]) -> list[Path]:
    """Return the configuration files on a command line, also of `--config=FILE`."""
    named = [find_piece(word.rpartition("=")[2]) for word in words]
    return [
        file
        for file in named
        if isinstance(file, Path) and file.suffix in (".yaml", ".yml", ".json") and file.is_file()
    ]


def _find(key: str, words: Sequence[str]) -> list[str]:
    """Return `file, line n` of every configuration file on the command line that has the key."""
    pattern = re.compile(rf'^\s*"?{re.escape(key)}"?\s*:')
    return [
        f"{file}, line {number}"
        for file in _files(words)
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if pattern.match(line)
    ]


def in_flags(message: str, scope: str, keys: Sequence[str]) -> str:
    """Show the options at the end of a `UserError`'s message as flags of the command.

    Args:
        message: The text of the error: `... (option: labeled=)`.
        scope: The part of a configuration that holds an option without a prefix.
        keys: Every key of the configuration in force.

    Returns:
        The message with `(option: --data.labeled)`. An option of an object within an object is
        looked up in the keys, so that `bins` becomes `--model.target.bins`.
    """
    places = [key.replace(".init_args.", ".").removesuffix(".init_args") for key in keys]
    known = {place.partition(".")[0] for place in places} | {"data", "model", "trainer"}

    def flag(option: str) -> str:
        name, _, value = option.partition("=")
        return f"--{_place(name, scope, places, known)}{f' {value}' * bool(value)}"

    def shown(match: re.Match[str]) -> str:
        return f"({match[1]}: {', '.join(map(flag, match[2].split(', ')))})"

    return _OPTIONS.sub(shown, message)


def _place(name: str, scope: str, places: Sequence[str], known: set[str]) -> str:
    usual = f"{scope}.{name}"
    if f"{usual}.name" in places:  # an encoder, which is an object with a name
        return f"{usual}.name"
    if usual in places:
        return usual
    if name.partition(".")[0] in known:
        return name
    nested = [place for place in places if place.endswith(f".{name}")]
    nested.sort(key=lambda place: (not place.startswith(f"{scope}."), place.count(".")))
    return nested[0] if nested else usual


def silent_process(error: BaseException | None) -> str | None:
    """Return the sentence for an error of the communication between processes; None for others."""
    if "torch.distributed" not in sys.modules:  # its import takes long
        return None
    import torch.distributed as dist

    while error is not None:
        network = isinstance(error, dist.DistError) if dist.is_available() else False
        of_gloo = isinstance(error, RuntimeError) and _OF_GLOO.search(str(error))
        if network or (of_gloo and world_size() > 1):
            first = str(error).strip().partition("\n")[0]
            return (
                "another process of this training has not answered within the time-out, or has "
                f"ended, which its own output explains: {first} (option: trainer.strategy.timeout=)"
            )
        error = error.__cause__ or error.__context__
    return None


def _misconfigurations() -> tuple[type[Exception], ...]:
    """Return Lightning's own kinds of mistakes; none before Lightning was imported."""
    if "lightning" not in sys.modules:
        return ()
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    return (MisconfigurationException,)


@contextmanager
def plain_errors(keys: Callable[[], Sequence[str]]) -> Iterator[None]:
    """Print a user's mistake, or the mistake that caused an error, without traceback; exit with 1.

    These are `UserError`s, Lightning's errors of configuration, files that are missing or cannot be
    written, and what W&B says of a wrong key. Ctrl-C exits with 130.

    Args:
        keys: Returns the keys of the configuration in force; called when there is an error.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if type(error).__module__.startswith("wandb."):
            hint = "`wandb login` stores a key; WANDB_MODE=offline needs neither key nor network"
            sys.exit(f"error: W&B: {str(error).partition(chr(10))[0]} ({hint})")
        if silent := silent_process(error):
            sys.exit(f"error: {in_flags(silent, 'trainer', keys())}")
        kinds: tuple[type[Exception], ...] = (UserError, *_misconfigurations(), *_NO_PLACE)
        each: BaseException | None = error
        while each is not None and not isinstance(each, kinds):
            each = each.__cause__
        if each is None:
            raise
        # a loader process hands its whole traceback over as the message
        message = re.split(rf"\b{type(each).__name__}: ", str(each))[-1].strip()
        if isinstance(each, UserError):
            message = in_flags(message, each.scope, keys())
        sys.exit(f"error: {message}")
