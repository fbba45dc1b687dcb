"""The command: `python cli.py VERB ...`; `--help` lists the verbs."""

import sys
from pathlib import Path

from datamodules import ImageDataModule, scan
from lightning_seg import MethodModule
from lightning_seg.callbacks import LoggedConfig
from lightning_seg.commands.autolabel import LabelingTrainer
from lightning_seg.commands.check import check
from lightning_seg.commands.compare import compare
from lightning_seg.commands.export import export
from lightning_seg.commands.messages import plain_errors
from lightning_seg.commands.parser import DESCRIPTION, ReadableParser
from lightning_seg.commands.pieces import configs
from lightning_seg.commands.pipeline import pipeline
from lightning_seg.commands.report import report
from lightning_seg.commands.trainer_verbs import SegmentationCLI
from lightning_seg.processes import end_with_parent, leave_group


def main(args: list[str] | None = None) -> SegmentationCLI | int:
    """Run the command.

    Args:
        args: The words of the command line; None takes the process's own.

    Returns:
        Lightning's command object with trainer, model and data for `fit`, `validate`, `test`,
        `predict` and `autolabel`; the exit code for the other verbs.
    """
    words = sys.argv[1:] if args is None else args
    if words[:1] == ["check"]:
        return check(words[1:], ImageDataModule, scan)
    if words[:1] == ["compare"]:
        return compare(words[1:])
    if words[:1] == ["report"]:
        return report(words[1:])
    if words[:1] == ["export"]:
        return export(words[1:])
    if words[:1] == ["pipeline"]:
        return pipeline(words[1:], main)
    if words[:1] == ["configs"]:
        return configs(words[1:])
    return SegmentationCLI(
        MethodModule,
        ImageDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        trainer_class=LabelingTrainer,
        trainer_defaults={"enable_model_summary": False},
        parser_class=ReadableParser,
        parser_kwargs={"description": DESCRIPTION},
        save_config_callback=LoggedConfig,
        args=args,
    )


def run() -> None:
    """Run the command as a process: a user's mistake becomes one message and a failed exit."""
    end_with_parent()
    sys.path.append(str(Path.cwd()))  # classes of the working folder can be named
    with plain_errors(ReadableParser.keys):
        code = main()
        # only the code is kept: trainer and process group end before the interpreter does
        code = code if isinstance(code, int) else 0
        leave_group()
    sys.exit(code)


if __name__ == "__main__":
    run()
