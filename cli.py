"""The command: `python cli.py {fit,validate,test,predict} -c configs/...yaml`."""

from __future__ import annotations

import os
import sys

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks the network

from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from datamodules import DataError, SegmentationDataModule
from lightning_seg import SegmentationModule, SetupError
from lightning_seg.callbacks import IoUTable, LoggedConfig, PredictionWriter


class SegmentationCLI(LightningCLI):
    """Introduces the data module to the method."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link what the data knows to the model, and attach the callbacks of every run."""
        for name in ("num_classes", "class_names", "palette"):
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")
        parser.add_lightning_class_args(PredictionWriter, "predictions")
        parser.add_lightning_class_args(IoUTable, "iou_table")
        parser.set_defaults({"model": "CrossEntropyModule", "data": "SyntheticScenesDataModule"})


def main(args: ArgsType = None) -> SegmentationCLI:
    """Run the command with these arguments (None: the process's own)."""
    return SegmentationCLI(
        SegmentationModule,
        SegmentationDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        save_config_callback=LoggedConfig,
        save_config_kwargs={"overwrite": True},
        args=args,
    )


def run() -> None:
    """Run the command; print a mistake of the user's as one message."""
    try:
        main()
    except (DataError, SetupError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    run()
