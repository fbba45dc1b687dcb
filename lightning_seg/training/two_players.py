"""The optimizer steps of two players: a segmenter, and an opponent that judges its predictions.

This is the one place for the details of two optimizers that are easy to get wrong, and for the work
that Lightning leaves to modules with manual optimization:

- Gradients: `frozen` switches off the gradients of the opponent's weights while the segmenter's
  loss passes through the opponent. The opponent's own loss is computed on detached predictions.
- Processes: DDP handles the segmenter only, so that every backward pass reaches all parameters that
  DDP waits for, and the plain strategy `ddp` works. The opponent's gradients are averaged in one
  all-reduce.
- Precision: one gradient scaler serves both players and is updated once, after both steps.
  Gradients are clipped after they are unscaled.
- Counting: Lightning counts the segmenter's steps alone, so `max_steps`, the names of checkpoints
  and `every_n_train_steps` count iterations.
- Accumulation and schedules: one step per iteration, as in Lightning's automatic optimization.
"""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Literal, TypeVar, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from lightning_seg.errors import SetupError, require_one_of, require_range
from lightning_seg.training.fused import prefer_fused
from lightning_seg.training.gradients import average_gradients, clip_gradients, share_weights
from lightning_seg.training.optimization import build_optimizer, with_schedule
from lightning_seg.training.segmentation import SegmentationModule

Opponent = TypeVar("Opponent", bound=nn.Module)


class TwoPlayerModule(SegmentationModule):
    """Base of the methods in which a second network, the opponent, judges the segmenter.

    A method builds the opponent, returns it as `opponent`, and calls `update` in its step.

    Args:
        network: The segmenter; see `SegmentationModule`.
        num_classes: Number of classes C, without void.
        opponent_optimizer: Function from parameter groups to the opponent's optimizer.
        opponent_lr: Learning rate of the opponent; None keeps the default of its optimizer.
        opponent_lr_scheduler: Function from the opponent's optimizer to its schedule; None keeps
            the learning rate constant. Both schedules advance with `lr_interval`.
        gradient_clip_val: Largest norm or value of the segmenter's gradients, above 0; None does
            not clip. The Trainer's option of this name is for one optimizer and is refused.
        opponent_gradient_clip_val: Largest norm or value of the opponent's gradients, above 0; None
            does not clip.
        gradient_clip_algorithm: Whether the `norm` of a player's gradients is clipped, or every
            `value`.
        accumulate_grad_batches: Number of batches per iteration, at least 1; both players step
            after the last one. The Trainer's option of this name is refused.
        options: Arguments of `SegmentationModule`.

    Raises:
        SetupError: A setting is out of range, the Trainer clips or accumulates by itself, or its
            strategy is neither one device nor DDP.
    """

    def __init__(
        self,
        network: Callable[[int], nn.Module] | None = None,
        *,
        num_classes: int,
        opponent_optimizer: OptimizerCallable = torch.optim.Adam,
        opponent_lr: float | None = None,
        opponent_lr_scheduler: LRSchedulerCallable | None = None,
        gradient_clip_val: float | None = None,
        opponent_gradient_clip_val: float | None = None,
        gradient_clip_algorithm: Literal["norm", "value"] = "norm",
        accumulate_grad_batches: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(network, num_classes=num_classes, **options)
        require_range(1, math.inf, accumulate_grad_batches=accumulate_grad_batches)
        limits = {
            "gradient_clip_val": gradient_clip_val,
            "opponent_gradient_clip_val": opponent_gradient_clip_val,
        }
        for name, value in limits.items():
            if value is not None and not 0 < value < math.inf:
                raise SetupError(
                    f"{name} must be above 0, not {value}; null sets no limit", option=name
                )
        require_one_of("norm", "value", gradient_clip_algorithm=gradient_clip_algorithm)
        self.automatic_optimization = False
        self.opponent_optimizer = opponent_optimizer
        self.opponent_lr = opponent_lr
        self.opponent_lr_scheduler = opponent_lr_scheduler
        self.gradient_clip_val = gradient_clip_val
        self.opponent_gradient_clip_val = opponent_gradient_clip_val
        self.gradient_clip_algorithm = gradient_clip_algorithm
        self.accumulate_grad_batches = accumulate_grad_batches
        self._epoch_is_over = False

    @property
    @abstractmethod
    def opponent(self) -> nn.Module:
        """The second network."""

    def adopt(
        self, option: str, opponent: Callable[[int], Opponent] | Opponent, channels: int
    ) -> tuple[Opponent, Any]:
        """Return the opponent, built where a function is given, and tried on an empty map.

        The opponent is compiled where the network is. It is channels-last in any case: class maps
        have few channels and full size, and on CPUs this order halves the time of its first layer.

        Args:
            option: The argument that names the opponent, for error messages.
            opponent: The opponent, or a function from the number of channels to it.
            channels: Number of channels of the maps that the opponent takes.

        Returns:
            The opponent, and its output for a map of zeros of 256 x 256 pixels.

        Raises:
            SetupError: The opponent does not take such maps, or has no weights.
        """
        given = isinstance(opponent, nn.Module)
        with torch.random.fork_rng(devices=[]):  # the segmenter's dropout stays as without opponent
            made = cast(Opponent, opponent if given else opponent(channels))
        weight = next(made.parameters(), None)
        name = type(made).__name__
        if weight is None:
            raise SetupError(f"{name} has no weights to train", option=option)
        training = made.training
        try:
            with torch.no_grad():
                found = made.eval()(weight.new_zeros(1, channels, 256, 256))
        except RuntimeError as error:
            raise SetupError(
                f"{name} does not take maps of {channels} channels, one per class, and 256x256 "
                f"pixels: {error}",
                option=option,
            ) from error
        made.train(training)
        made.to(memory_format=torch.channels_last)
        if self.compile_network:
            made.compile()
        return made, found

    # The optimizer steps

    def update(
        self, batch_idx: int, *, segmenter: Tensor | None = None, opponent: Tensor | None = None
    ) -> None:
        """Compute the gradients of the losses, and step after the last batch of an iteration.

        Both losses in one call share one backward pass, and each player sees the other one as it
        was before the step. Two calls, with the segmenter's loss in the second one, let the
        segmenter see the opponent after its step.

        Args:
            batch_idx: Number of the batch in the epoch, as `training_step` gets it.
            segmenter: A scalar that depends on the segmenter's weights only; see
                `gradients.frozen`.
            opponent: A scalar that depends on the opponent's weights only.
        """
        segmenter_optimizer, opponent_optimizer = self.trainer.optimizers
        players = [(segmenter_optimizer, segmenter), (opponent_optimizer, opponent)]
        losses = {optimizer: loss for optimizer, loss in players if loss is not None}
        self._epoch_is_over = self._ends_epoch(batch_idx)
        steps = self._epoch_is_over or (batch_idx + 1) % self.accumulate_grad_batches == 0
        total = torch.stack(list(losses.values())).sum()
        self._backward(total, reaches_segmenter=segmenter is not None, exchange=steps)
        if steps and opponent is not None:
            self._step_opponent(opponent_optimizer)
        if steps and segmenter is not None:
            self._step_segmenter()
            self._advance_schedules("step")
            if self._epoch_is_over:
                self._advance_schedules("epoch")
        if steps:
            for optimizer in losses:
                optimizer.zero_grad()

    def backward_early(self, loss: Tensor) -> Tensor:
        """Compute the gradients of a part of the segmenter's loss at once, which frees its graph.

        Args:
            loss: A scalar that depends on the segmenter's weights only.

        Returns:
            The scalar to add to the loss that `update` gets: the detached loss, or the loss itself
            where DDP with a static graph needs one backward pass.
        """
        if self._static_graph() or not loss.requires_grad:
            return loss
        self._backward(loss, reaches_segmenter=True, exchange=False)
        return loss.detach()

    def _backward(self, loss: Tensor, reaches_segmenter: bool, exchange: bool) -> None:
        if self.accumulate_grad_batches > 1:
            loss = loss / self.accumulate_grad_batches
        if not reaches_segmenter:  # DDP waits for no gradient
            scaler = self._scaler()
            torch.autograd.backward(loss if scaler is None else scaler.scale(loss))
            return
        strategy = self.trainer.strategy
        # a static graph averages in every backward pass, and averaging twice changes nothing
        if exchange or self._static_graph() or not isinstance(strategy, DDPStrategy):
            self.manual_backward(loss)
        else:
            with strategy.block_backward_sync():
                self.manual_backward(loss)

    def _static_graph(self) -> bool:
        return bool(getattr(self.trainer.strategy.model, "static_graph", False))

    def _step_opponent(self, optimizer: Optimizer) -> None:
        """Step the raw optimizer: Lightning's would count the step and update the scaler."""
        average_gradients(self.opponent)
        scaler = self._scaler()
        if scaler is not None:
            scaler.unscale_(optimizer)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            callback.on_before_optimizer_step(self.trainer, self, optimizer)
        self.on_before_optimizer_step(optimizer)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)

    def _step_segmenter(self) -> None:
        optimizer = self.optimizers()[0]  # type: ignore[index]
        assert isinstance(optimizer, LightningOptimizer)
        optimizer.step()  # unscales, calls the hooks, updates the scaler, counts

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradients of one player, which are averaged and unscaled at this point."""
        segmenter, opponent = self.trainer.optimizers
        limit = self.opponent_gradient_clip_val if optimizer is opponent else self.gradient_clip_val
        if limit is None:
            return
        scaler = self._scaler()
        fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        if scaler is not None and fused and optimizer is segmenter:
            scaler.unscale_(optimizer)  # Lightning leaves this to the step of fused optimizers
        clip_gradients(optimizer, limit, self.gradient_clip_algorithm)

    def _ends_epoch(self, batch_idx: int) -> bool:
        trainer = self.trainer
        return trainer.is_last_batch or batch_idx + 1 == trainer.num_training_batches

    def _scaler(self) -> GradScaler | None:
        return getattr(self.trainer.precision_plugin, "scaler", None)

    # The work that Lightning leaves to modules with manual optimization

    def configure_callbacks(self) -> list[Callback]:
        """Raise for options of the Trainer that are for one optimizer."""
        trainer = self.trainer
        if trainer.state.fn != "fit":
            return []
        refused = {
            "gradient_clip_val": (trainer.gradient_clip_val or 0) > 0,
            "accumulate_grad_batches": trainer.accumulate_grad_batches != 1,
        }
        for name, given in refused.items():
            if given:
                raise SetupError(
                    f"the Trainer's {name} is for one optimizer, and {type(self).__name__} has "
                    "two: give the module's option instead",
                    option=f"model.{name}",
                )
        if any(isinstance(each, LearningRateFinder) for each in trainer.callbacks):  # type: ignore[attr-defined]
            raise SetupError(
                f"a learning rate is searched for one optimizer, and {type(self).__name__} has two",
                option=("trainer.callbacks", "lr", "opponent_lr"),
            )
        if not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
            raise SetupError(
                f"{type(self).__name__} runs on one device or with DDP, not with "
                f"{type(trainer.strategy).__name__}",
                option="trainer.strategy ddp",
            )
        return [_RestoreTrainer()]

    def setup(self, stage: str) -> None:
        """Exclude the opponent from DDP, so that DDP does not wait for its gradients."""
        super().setup(stage)
        excluded = {id(weight) for weight in self.opponent.parameters()}
        self._ddp_params_and_buffers_to_ignore = [
            name for name, weight in self.named_parameters() if id(weight) in excluded
        ]

    def on_fit_start(self) -> None:
        """Give all processes the same opponent, and let the Trainer count iterations."""
        super().on_fit_start()
        # a checkpoint holds the weights after the step, as with one optimizer
        warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")
        self.trainer.accumulate_grad_batches = self.accumulate_grad_batches
        share_weights(self.opponent.parameters())

    def configure_optimizers(self) -> Any:
        """Create the optimizers of segmenter and opponent, in this order, and their schedules."""
        optimizer = build_optimizer(
            self.opponent_optimizer, self.opponent, self.opponent_lr, decay_all=self.decay_all
        )
        prefer_fused(optimizer, self._trainer)
        opponent = with_schedule(optimizer, self.opponent_lr_scheduler, self.lr_interval)
        segmenter: Any = super().configure_optimizers()
        players: list[dict[str, Any]] = [segmenter, dict(opponent)]
        for player in players:
            # unused in manual optimization, where the schedule itself holds the name
            player.get("lr_scheduler", {}).pop("monitor", None)
        return players

    def on_train_epoch_end(self) -> None:
        """Advance ReduceLROnPlateau, but not where `max_steps` ends an epoch early."""
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, ReduceLROnPlateau) and self._epoch_is_over:
                config.scheduler.step(self._score(config.scheduler.monitor))

    def _score(self, monitor: str | None) -> Tensor:
        scores = self.trainer.callback_metrics
        if monitor not in scores:
            raise SetupError(
                f"the schedule waits for {monitor}, which is not logged; there are "
                f"{', '.join(sorted(scores))}",
                option="monitor",
            )
        return scores[monitor]

    def _advance_schedules(self, interval: str) -> None:
        for config in self.trainer.lr_scheduler_configs:
            scheduler = config.scheduler
            if config.interval == interval and not isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Report the settings that differ from the resumed run's; the present ones are used."""
        super().on_load_checkpoint(checkpoint)
        before = checkpoint.get("hyper_parameters", {})
        changed = [
            f"{name} {before[name]} -> {value}"
            for name, value in self.hparams.items()
            if isinstance(value, (int, float)) and name in before and before[name] != value
        ]
        if changed:
            rank_zero_info(f"settings changed since the checkpoint: {', '.join(sorted(changed))}")


class _RestoreTrainer(Callback):
    """Restores the Trainer's option that a two-player module has set, also after an exception."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.accumulate_grad_batches = 1

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        trainer.accumulate_grad_batches = 1
