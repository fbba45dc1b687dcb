"""The command: `python cli.py {fit,validate,test,predict,check,pipeline,configs} ...`."""

import sys
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from datamodules import SegmentationDataModule, scan
from lightning_seg import MethodModule, callbacks
from lightning_seg.commands.check import check
from lightning_seg.commands.messages import plain_errors
from lightning_seg.commands.parser import ReadableParser, forget_pretraining
from lightning_seg.commands.pieces import configs
from lightning_seg.commands.pipeline import pipeline


class SegmentationCLI(LightningCLI):
    """Introduces the data module to the method."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link what the data knows to the model, and attach the callbacks of every run."""
        for name in ("num_classes", "class_names", "palette"):
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")
        for key, callback in callbacks.ON_EVERY_RUN.items():
            parser.add_lightning_class_args(callback, key)
        parser.set_defaults({"model": "CrossEntropyModule", "data": "SyntheticScenesDataModule"})

    def _parse_ckpt_path(self) -> None:
        """Take settings from the command line, where Lightning would take the checkpoint's."""
        forget_pretraining(self.config[self.config.subcommand])

    def after_instantiate_classes(self) -> None:
        """Set the data up first, so that a mistake in them is reported before a folder is made."""
        self.datamodule.setup(self.subcommand)

    def predict(self, return_predictions: bool | None = None, **kwargs: Any) -> None:
        """Predict; keep nothing in memory unless asked, because the files are the result."""
        self.trainer.predict(return_predictions=bool(return_predictions), **kwargs)


def main(args: list[str] | None = None) -> SegmentationCLI | int:
    """Run the command.

    Args:
        args: The words of the command line; None takes the process's own.

    Returns:
        Lightning's command object with trainer, model and data for `fit`, `validate`, `test` and
        `predict`; the exit code for the other verbs.
    """
    words = sys.argv[1:] if args is None else args
    if words[:1] == ["check"]:
        return check(words[1:], SegmentationDataModule, scan)
    if words[:1] == ["pipeline"]:
        return pipeline(words[1:], main)
    if words[:1] == ["configs"]:
        return configs(words[1:])
    return SegmentationCLI(
        MethodModule,
        SegmentationDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        parser_class=ReadableParser,
        save_config_callback=callbacks.LoggedConfig,
        args=args,
    )


def run() -> None:
    """Run the command as a process: a user's mistake becomes one message and a failed exit."""
    with plain_errors(ReadableParser.keys):
        result = main()
    sys.exit(result if isinstance(result, int) else 0)


if __name__ == "__main__":
    run()
