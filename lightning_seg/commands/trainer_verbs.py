"""The verbs of the Trainer: `fit`, `validate`, `test`, `predict` and `autolabel`."""

from __future__ import annotations

import math
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from lightning import Callback, LightningDataModule, Trainer
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_seg.callbacks import (
    ON_EVERY_RUN,
    AutoLabels,
    Inference,
    LoggedConfig,
    PredictionWriter,
    ScoreFiles,
    wandb_run,
)
from lightning_seg.callbacks.metrics_file import keep_rows, log_once
from lightning_seg.commands.autolabel import LabelingTrainer, student_piece
from lightning_seg.commands.checkpoint_path import checkpoint_path, starts_again
from lightning_seg.commands.job import (
    name_runs,
    no_requeue_by_lightning,
    requeue_if_asked,
    require_all_processes,
    signals_given_back,
)
from lightning_seg.commands.next_step import ending_signal, failures, next_step, resume_line
from lightning_seg.commands.parser import ReadableParser, forget_pretraining
from lightning_seg.commands.verbs import DESCRIPTION
from lightning_seg.commands.wandb_mode import choose_mode
from lightning_seg.errors import require_range
from lightning_seg.training import MethodModule, SegmentationModule
from lightning_seg.training.checkpoint_io import WholeCheckpointIO
from lightning_seg.training.sharding import require_strategy

FROM_DATA = (
    *("num_classes", "class_names", "palette"),
    *("channels", "image_mean", "image_std", "picture_channels"),
)
"""Options of a model that the data module knows."""


class SegmentationCLI(LightningCLI):
    """Runs a verb of the Trainer with a method and a data module by name."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the verbs, and the arguments of their methods that are no options."""
        verbs: dict[str, set[str]] = LightningCLI.subcommands()
        return verbs | {"autolabel": {"model", "datamodule"}}

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **options: Any
    ) -> LightningArgumentParser:
        """Return the parser of a verb; `autolabel` has the options of `predict`."""
        method = "predict" if subcommand == "autolabel" else subcommand  # its name is a callback's
        parser = super()._prepare_subcommand_parser(klass, method, **options)
        self._subcommand_method_arguments[subcommand] = self._subcommand_method_arguments[method]
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link what the data knows to the model, and attach the callbacks of every run."""
        for name in FROM_DATA:
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")
        for key, callback in ON_EVERY_RUN.items():
            parser.add_lightning_class_args(callback, key)
        parser.set_defaults({"model": "CrossEntropyModule", "data": "SyntheticScenesDataModule"})

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the command line, and keep its words for the last line of the run."""
        self._words = args if isinstance(args, list) else sys.argv[1:]
        super().parse_arguments(parser, args)

    def _set_seed(self) -> None:
        """Seed every random generator; numpy takes seeds of 32 bits."""
        seed = self._get(self.config, "seed_everything")
        if seed is not None and not isinstance(seed, bool):
            require_range(0, 2**32 - 1, seed_everything=seed)
        super()._set_seed()

    def _parse_ckpt_path(self) -> None:
        """Take settings from the command line, where Lightning would take the checkpoint's."""
        forget_pretraining(self.config[self.config.subcommand])

    def after_instantiate_classes(self) -> None:
        """Set the data up first, so that a mistake in them is reported before a folder is made."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Inference):
                callback.prepare(self.datamodule)
        if self.subcommand == "autolabel":
            self._prepare_labels()
        else:
            self.datamodule.setup(self.subcommand)

    def _prepare_labels(self) -> None:
        """Let the prediction write labels, and nothing else."""
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        callbacks[:] = [each for each in callbacks if not isinstance(each, PredictionWriter)]
        (labels,) = (each for each in callbacks if isinstance(each, AutoLabels))
        labels.prepare(self.trainer, self.model, self.datamodule)
        options = self.config[self.subcommand].data.init_args
        labels.piece = student_piece(labels.folder(self.trainer), self.datamodule, options)

    def instantiate_trainer(self, **options: Any) -> Trainer:
        """Build the Trainer with a plugin that writes checkpoints whole or not at all.

        Raises:
            SetupError: A setting of the Trainer is out of its range.
        """
        config = self._get(self.config_init, "trainer", default={})
        clipping, batches = config.get("gradient_clip_val"), config.get("accumulate_grad_batches")
        require_range(0, math.inf, gradient_clip_val=0 if clipping is None else clipping)
        require_range(1, math.inf, accumulate_grad_batches=1 if batches is None else batches)
        require_strategy(config.get("strategy", "auto"))
        given = config.get("plugins")
        plugins = given if isinstance(given, list) else [given] * (given is not None)
        if not any(isinstance(each, CheckpointIO) for each in plugins):
            plugins = [*plugins, WholeCheckpointIO()]
        trainer = super().instantiate_trainer(plugins=plugins, **options)
        require_all_processes(trainer)
        no_requeue_by_lightning(trainer)
        name_runs(trainer)
        return trainer

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Find the checkpoint, print scores once, and keep predictions in memory only if asked."""
        options = super()._prepare_subcommand_kwargs(subcommand)
        choose_mode(self.trainer)
        checkpoint = checkpoint_path(subcommand, options.get("ckpt_path"), self.trainer)
        changes = {
            "verbose": not isinstance(self.model, SegmentationModule),  # these print a table
            "return_predictions": bool(options.get("return_predictions")),
            "ckpt_path": checkpoint,
        }
        again = subcommand == "fit" and (checkpoint is not None or starts_again(options))
        if again or subcommand != "fit":
            keep_rows(self.trainer)
        if again:
            log_once(self.trainer)
        if again and checkpoint is not None:
            wandb_run.go_on(self.trainer, checkpoint)
        elif again:
            wandb_run.go_on_in_job(self.trainer)
        return {**options, **{key: changes[key] for key in changes.keys() & options.keys()}}

    def _run_and_finish(self, subcommand: str) -> None:
        """Run a verb, and end its W&B run also after an exception, which marks it as failed."""
        code = 1
        try:
            with signals_given_back():
                super()._run_subcommand(subcommand)
            code = ending_signal(self.trainer)
        finally:
            wandb_run.finish(self.trainer, code)

    def _run_subcommand(self, subcommand: str) -> None:
        """Run a verb; its last line says what was written and which command usually comes next.

        Raises:
            SystemExit: With 143 after SIGTERM, with 130 after Ctrl-C, in a job of SLURM with 138
                after SIGUSR1, with 1 where `predict` or `autolabel` could not read an image and
                `on_bad_sample` is not `skip`.
        """
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ScoreFiles):
                callback.command = [Path(sys.argv[0]).name, *self._words]
        try:
            self._run_and_finish(subcommand)
        except SystemExit as stop:
            # Lightning ends with 0 after SIGTERM and with 1 after a second Ctrl-C
            interrupted = isinstance(stop.__context__, KeyboardInterrupt)
            if not isinstance(stop, SIGTERMException) and not interrupted:
                raise
            rank_zero_info(resume_line(subcommand, self.trainer, self._words[1:]))
            number = signal.SIGINT if interrupted else ending_signal(self.trainer)
            number = number or signal.SIGTERM
            requeue_if_asked(self.trainer, number)
            raise SystemExit(128 + number) from stop
        rank_zero_info(next_step(subcommand, self.trainer, self._words[1:]))
        if number := ending_signal(self.trainer):  # at the very end: what follows is not to start
            requeue_if_asked(self.trainer, number)
            raise SystemExit(128 + number)
        if subcommand in ("predict", "autolabel") and (failed := failures(self.trainer)):
            rank_zero_info(failed)
            if getattr(self.datamodule, "on_bad_sample", "raise") != "skip":
                raise SystemExit(1)


def with_trainer(args: list[str] | None, data_class: type[LightningDataModule]) -> SegmentationCLI:
    """Run a verb of the Trainer.

    Args:
        args: The words of the command line; None takes the process's own.
        data_class: The base class of the data modules that `--data` may name.
    """
    import_module("lightning_seg.methods")  # so that they can be named
    return SegmentationCLI(
        MethodModule,
        data_class,
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
