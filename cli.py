"""The command: `python cli.py {check,pipeline,fit,validate,test,predict} -c configs/...yaml`."""

from typing import Any

from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from datamodules import DataError, SegmentationDataModule, scan
from lightning_seg import MethodModule, callbacks
from lightning_seg.commands.check import unless_check
from lightning_seg.commands.messages import ReadableParser, forget_pretraining, told_plainly
from lightning_seg.commands.pipeline import unless_pipeline


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
        """Let the command line win, where Lightning would take the checkpoint's settings."""
        forget_pretraining(self.config[self.config.subcommand])

    def after_instantiate_classes(self) -> None:
        """Find the data first: what is wrong with it is told before any folder is made."""
        self.datamodule.setup(self.subcommand)

    def predict(self, return_predictions: bool | None = None, **kwargs: Any) -> None:
        """Predict; unless asked for, keep nothing in memory: the files are the result."""
        self.trainer.predict(return_predictions=bool(return_predictions), **kwargs)


def main(args: ArgsType = None) -> SegmentationCLI:
    """Run the command with these arguments (None: the process's own)."""
    return SegmentationCLI(
        MethodModule,
        SegmentationDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        parser_class=ReadableParser,
        save_config_callback=callbacks.LoggedConfig,
        args=unless_check(unless_pipeline(args, main), SegmentationDataModule, scan),
    )


def run() -> None:
    """Run the command; a user's mistake becomes one message."""
    with told_plainly(DataError):
        main()


if __name__ == "__main__":
    run()
