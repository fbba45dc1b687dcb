"""The verbs of the command, and the help that needs no import of Lightning."""

from __future__ import annotations

import argparse
import difflib
import re
import shutil
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from jsonargparse import (  # type: ignore[attr-defined]
    ActionConfigFile,
    ArgumentParser,
    DefaultHelpFormatter,
    Namespace,
)

from lightning_seg.commands.messages import explain
from lightning_seg.commands.pieces import find_piece, shipped_names

DESCRIPTION = """Train, evaluate and use segmentation networks by methods beyond cross-entropy.
A configuration is a list of pieces (-c), merged from left to right; a flag overrides one value:
fit -c configs/data/camvid.yaml -c configs/network/unet.yaml -c configs/method/lmp.yaml
--data.root /where/camvid/is --model.lr 0.002"""

OPTIONS = " --model.help LMPModule and --data.help FolderDataModule list the options of a class."

OWN_VERBS = {
    "check": "Read the whole dataset once, and report what it holds and what is wrong with it.",
    "compare": "Say whether runs differ, paired by image and by seed, with intervals.",
    "report": "Write one HTML page about a run, also against a baseline.",
    "pipeline": "Run several trainings, each from the encoder or the labels of the one before.",
    "export": "Write a trained network as a file for other programs: ONNX, torch.export, weights.",
    "app": "Open a page in the browser that segments photographs with a trained network.",
    "configs": "List the pieces of configuration that come with the package.",
}
"""The verbs that are not the Trainer's, with their line in `--help`."""

VERBS = {
    **OWN_VERBS,
    "fit": "Train a network, and validate it after every epoch.",
    "validate": "Print the scores of a checkpoint on the validation images.",
    "test": "Print the scores of a checkpoint on the test images.",
    "predict": "Write a mask and an overlay for every image.",
    "autolabel": "Write confident predictions for images without labels as masks to train on.",
}

_SUBCLASSES = re.compile(r"(, known subclasses: )(.*?)(\)?)$", re.DOTALL)
_MOST_NAMED = 12
_NO_NETWORKS = ("TimmEncoder", "EncoderHead", "FCDiscriminator", "StructureAnalyzer")
"""Modules of `lightning_seg.networks` that are parts or opponents of segmentation networks."""


class ShortHelp(DefaultHelpFormatter):
    """Says how to call a verb in one line, and names few of the classes that an option takes."""

    def __init__(self, prog: str, **options: Any) -> None:
        options.setdefault("width", shutil.get_terminal_size((100, 24)).columns - 2)
        super().__init__(prog, **options)  # type: ignore[no-untyped-call]

    def add_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any = None) -> None:
        """Add the usage; a long list of options is left to the list that follows it."""
        options = [action for action in actions if action.option_strings]
        if len(options) > _MOST_NAMED and usage is None:
            prog = self._prog.replace(" [options]", "")
            usage = f"{prog} [-c PIECE.yaml ...] [--OPTION VALUE ...]"
        super().add_usage(usage, actions, groups, prefix)

    def _expand_help(self, action: argparse.Action) -> str:
        text: str = super()._expand_help(action)
        if text.startswith("Show the help for the given subclass of"):
            return "Show the arguments of a class and exit."
        kind = "losses" if action.dest.endswith(("loss", "target")) else "networks"

        def shortened(match: re.Match[str]) -> str:
            names = match[2].split(", ")
            if len(names) > _MOST_NAMED:
                public = re.compile(rf"lightning_seg\.({kind}\.|callbacks\.)?\w+(?<!Module)")
                apart = _NO_NETWORKS if action.dest.endswith("network") else ()
                if action.dest.endswith("discriminator"):
                    public = re.compile(r"lightning_seg\.networks\.FCDiscriminator")
                names = [name for name in names if public.fullmatch(name)]
                names = [name for name in names if not name.endswith(apart)]
                # of a module's classes, the first one is named with the module
                modules = [name.rpartition(".")[0] for name in names]
                names = [
                    name.rpartition(".")[2] if module in modules[:place] else name
                    for place, (module, name) in enumerate(zip(modules, names, strict=True))
                ]
                names.append("...")
            return f"{match[1]}{', '.join(names)}{match[3]}"

        return _SUBCLASSES.sub(shortened, text)


class VerbParser(ArgumentParser):
    """Parses options; a mistake is one message and exit code 2.

    Attributes:
        parsed: The options that any parser has read last. An error that names an option without
            its place in the configuration is completed from them.
    """

    parsed: ClassVar[Any] = Namespace()  # type: ignore[no-untyped-call]
    _words: Sequence[str] = ()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"formatter_class": ShortHelp, **options})

    @staticmethod
    def keys() -> list[str]:
        """Return every key of the options that were read last, objects included."""
        return list(VerbParser.parsed.keys(branches=True))

    def parse_args(self, args: Sequence[str] | None = None, **options: Any) -> Any:  # type: ignore[override]
        """Parse the words of a command line, by default the process's own."""
        self._words = sys.argv[1:] if args is None else list(args)
        found = super().parse_args(self._words, **options)
        verb = found.get("subcommand")
        VerbParser.parsed = found[verb] if verb else found
        return found

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the part of an error that a user needs, and exit with 2."""
        if not self.exit_on_error:
            super().error(message, ex)
        sys.stderr.write(f"error: {explain(message, self._words)}\n")
        self.exit(2)


def verb_parser(verb: str) -> VerbParser:
    """Return a parser without options for a verb that is not the Trainer's."""
    return VerbParser(prog=f"{Path(sys.argv[0]).name} {verb}", description=VERBS[verb])


def answer_without_verb(words: Sequence[str]) -> None:
    """Print the help where it is asked for, and refuse words that do not begin with a verb.

    Args:
        words: The command line. One that begins with a verb or with another option is left alone.

    Raises:
        SystemExit: With 0 after the help, with 2 where there is no such verb.
    """
    first = words[0] if words else ""
    if first in VERBS or (first.startswith("-") and first not in ("-h", "--help")):
        return
    parser = VerbParser(prog=Path(sys.argv[0]).name, description=DESCRIPTION)
    if first in ("-h", "--help"):
        parser.add_argument(
            "-c", "--config", action=ActionConfigFile, help="A piece of configuration."
        )
        subcommands = parser.add_subcommands()
        for verb, line in VERBS.items():
            subcommands.add_subcommand(verb, VerbParser(), help=line)
        parser.print_help()
        parser.exit(0)
    asked = f"there is no verb {first}" if first else "a verb is missing"
    near = difflib.get_close_matches(first, VERBS, n=2)
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    parser.exit(2, f"error: {asked}: {meant}The verbs are {', '.join(VERBS)}\n")


def require_pieces(words: Sequence[str]) -> None:
    """Refuse a command line that names a configuration file which does not exist.

    Args:
        words: The command line.

    Raises:
        SystemExit: With 2, naming the file and shipped ones of a similar name.
    """
    flags = ("-c", "--config")
    named = [word.partition("=")[2] for word in words if word.startswith("--config=")]
    named += [word for flag, word in pairwise(words) if flag in flags]
    for name in named:
        # a configuration that is written out is no name of a file
        if isinstance(find_piece(name), Path) or "{" in name or "\n" in name or ": " in name:
            continue
        near = difflib.get_close_matches(name, shipped_names(), n=2)
        meant = f"did you mean {' or '.join(near)}? " if near else ""
        sys.stderr.write(
            f"error: the configuration file {name} does not exist: {meant}`configs` lists those "
            "of the package\n"
        )
        raise SystemExit(2)
