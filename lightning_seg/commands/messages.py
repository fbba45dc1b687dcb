"""What the command says when something is wrong: one message, no dump."""

from __future__ import annotations

import difflib
import inspect
import itertools
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser

from lightning_seg.errors import SetupError
from lightning_seg.training.checkpoints import NO_PRETRAINING, PARTS

# Lightning's own use of torch's pytree, said on every run
warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")

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
# what jsonargparse 4 makes of a null that belongs to an object within an object
_DEEP_NULL = re.compile(r"NestedArg\(key='([\w.]+)', val='None'\)")
_CLASS = re.compile(r"class_path(?:=| )'([\w.]+)'")


class ReadableParser(LightningArgumentParser):
    """Names the unknown key, where it stands and what may have been meant; then exits with 2."""

    _words: Sequence[str] = ()

    def parse_args(self, args: Sequence[str] | None = None, **options: Any) -> Any:  # type: ignore[override]
        """Parse, remembering the words for an error message."""
        self._words = sys.argv[1:] if args is None else list(args)
        return super().parse_args(args, **options)

    def add_subcommands(self, *args: Any, **options: Any) -> Any:
        """Begin with those that are no Trainer's, which the help must name.

        `lightning_seg.commands.check` and `lightning_seg.commands.pipeline` run them.
        """
        subcommands = super().add_subcommands(*args, **options)
        about = {
            "check": "Read the whole dataset once: what it holds, and what is wrong with it.",
            "pipeline": "Fit several times, each time from the encoder of the time before.",
        }
        for name, help_ in about.items():
            subcommands.add_subcommand(name, ReadableParser(), help=help_)
        return subcommands

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what matters of an error and leave."""
        if not self.exit_on_error:
            super().error(message, ex)
        sys.stderr.write(f"error: {explain(message, self._words)}\n")
        self.exit(2)


def explain(message: str, words: Sequence[str]) -> str:
    """Shorten jsonargparse's message and say where the mistake is and what may be meant.

    Args:
        message: The library's message.
        words: The command line, in which the configuration files are looked up.
    """
    # what PyYAML calls a file that was read for it
    message = message.replace('"<unicode string>"', " or ".join(map(str, _files(words))))
    lines = [
        line.strip(" -") for line in message.splitlines() if not _NOISE.match(line.strip(" -"))
    ]
    kept = [_TYPE.sub("", line) for line in lines] or [message]
    if deep := _DEEP_NULL.search(message):
        return f"{deep[1]} can be made null only in a configuration file, not on the command line"
    refused = _REFUSED.search(message) or _UNRECOGNIZED.search(message)
    if refused is None:
        return "\n  ".join(kept)
    key = next(group for group in refused.groups() if group).rpartition(".")[2]
    owners = _CLASS.findall(message)
    accepted = _options_of(owners[-1]) if owners else list(inspect.signature(Trainer).parameters)
    if near := difflib.get_close_matches(key, accepted, n=2):
        kept.append(f"did you mean {' or '.join(near)}?")
    elif owners:
        kept.append(f"{owners[-1]} accepts {', '.join(accepted)}")
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
    named = [Path(word.rpartition("=")[2]) for word in words]
    return [file for file in named if file.suffix in (".yaml", ".yml", ".json") and file.is_file()]


def _find(key: str, words: Sequence[str]) -> list[str]:
    """Return `file, line n` of every configuration file on the command line that has the key."""
    pattern = re.compile(rf'^\s*"?{re.escape(key)}"?\s*:')
    return [
        f"{file}, line {number}"
        for file in _files(words)
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if pattern.match(line)
    ]


def forget_pretraining(config: Namespace) -> None:
    """Start from random weights where a checkpoint is given, which brings the weights itself.

    Args:
        config: A subcommand's configuration.
    """
    if config.get("ckpt_path") is None:
        return
    for part, (name, nothing) in itertools.product(PARTS, NO_PRETRAINING.items()):
        key = f"model.init_args.{part}.init_args.{name}"
        if key in config:
            config[key] = nothing


@contextmanager
def told_plainly(*kinds: type[Exception]) -> Iterator[None]:
    """Print an error of these kinds, or what it caused, without traceback; exit with 1.

    Lightning's errors of configuration and missing files are told likewise.
    """
    kinds = (*kinds, SetupError, MisconfigurationException, FileNotFoundError)
    try:
        yield
    except Exception as error:
        if isinstance(error, KeyError) and error.args == ("pytorch-lightning_version",):
            sys.exit(
                "error: the file of --ckpt_path is no checkpoint of a training. What an encoder "
                "starts from goes to --model.network.weights or --model.encoder.weights"
            )
        each: BaseException | None = error
        while each is not None and not isinstance(each, kinds):
            each = each.__cause__
        if each is None:
            raise
        # a loader process hands its whole traceback over as the message
        message = re.split(rf"\b{type(each).__name__}: ", str(each))[-1].strip()
        sys.exit(f"error: {message}")
