"""The command: `python cli.py VERB ...`; `--help` lists the verbs."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_seg.commands.messages import plain_errors
from lightning_seg.commands.verb_options import PARSERS, app_parser
from lightning_seg.commands.verbs import VerbParser, answer_without_verb, require_pieces
from lightning_seg.processes import end_with_parent, leave_group

# Lightning and torch are imported where they are needed: help and mistakes are answered before
if TYPE_CHECKING:
    from lightning_seg.commands.trainer_verbs import SegmentationCLI


def main(args: list[str] | None = None) -> SegmentationCLI | int:
    """Run the command.

    Args:
        args: The words of the command line; None takes the process's own.

    Returns:
        Lightning's command object with trainer, model and data for `fit`, `validate`, `test`,
        `predict` and `autolabel`; the exit code for the other verbs.
    """
    words = sys.argv[1:] if args is None else args
    answer_without_verb(words)
    verb, *rest = words
    if verb in PARSERS:
        parser, module = PARSERS[verb]
        options = parser().parse_args(rest)
        code: int = getattr(import_module(f"lightning_seg.commands.{module}"), verb)(options)
        return code
    if verb == "check":
        from datamodules import ImageDataModule, scan
        from lightning_seg.commands.check import check

        return check(rest, ImageDataModule, scan)
    if verb == "app":
        options = app_parser().parse_args(rest)
        from datamodules.uploads import upload_reader
        from lightning_seg.commands.app import app

        return app(options, upload_reader)
    if verb == "pipeline":
        from lightning_seg.commands.pipeline import pipeline

        return pipeline(rest, main)
    require_pieces(rest)
    from datamodules import ImageDataModule
    from lightning_seg.commands.trainer_verbs import with_trainer

    return with_trainer(args, ImageDataModule)


def run() -> None:
    """Run the command as a process: a user's mistake becomes one message and a failed exit."""
    end_with_parent()
    sys.path.append(str(Path.cwd()))  # classes of the working folder can be named
    with plain_errors(VerbParser.keys):
        code = main()
        # only the code is kept: trainer and process group end before the interpreter does
        code = code if isinstance(code, int) else 0
        leave_group()
    sys.exit(code)


if __name__ == "__main__":
    run()
