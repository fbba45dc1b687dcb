"""The step of two players: a segmenter, and an opponent that looks at what it predicts.

One place for what is easily got wrong with two optimizers, and for what Lightning leaves to
modules that optimise by hand:

- Who is frozen: `frozen` switches off the gradients of the opponent's weights while the segmenter's
  loss passes through it. The opponent's own loss is fed detached predictions.
- Processes: DDP looks after the segmenter only, so that every backward pass reaches all parameters
  that it waits for, and plain `ddp` works. The opponent's gradients are averaged in one piece.
- Precision: one gradient scaler serves both players and is updated once, behind both steps.
  Gradients are clipped once they are unscaled.
- Counting: Lightning counts the segmenter's steps alone, so `max_steps`, the names of checkpoints
  and `every_n_train_steps` mean iterations.
- Accumulation and schedules, one step per iteration, as Lightning does for one optimizer.
"""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Literal, TypeVar, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from lightning_seg.errors import SetupError, require_one_of
from lightning_seg.training.gradients import average_gradients, clip_gradients, share_weights
from lightning_seg.training.optimization import build_optimizer, with_schedule
from lightning_seg.training.segmentation import SegmentationModule

Opponent = TypeVar("Opponent", bound=nn.Module)


class TwoPlayerModule(SegmentationModule):
    """Base of methods in which a second network, the opponent, plays against the segmenter.

    A method builds the opponent, returns it as `opponent`, and calls `update` in its step.

    Args:
        network: See `SegmentationModule`.
        num_classes: Number of classes.
        opponent_optimizer: Makes the opponent's optimizer from parameter groups.
        opponent_lr: Its learning rate; None keeps the optimizer's own.
        opponent_lr_scheduler: Makes its schedule; None keeps the rate constant. Both schedules
            advance with `lr_interval`.
        gradient_clip_val: Largest gradient of the segmenter, measured by the algorithm; None does
            not clip. The Trainer cannot: it knows one optimizer only.
        opponent_gradient_clip_val: The same of the opponent.
        gradient_clip_algorithm: Clip by the `norm` of all gradients or every `value`.
        accumulate_grad_batches: Batches per iteration; both players step behind the last one. The
            Trainer's own option is for one optimizer.
        options: Passed to `SegmentationModule`.

    Raises:
        SetupError: Settings out of range, a Trainer that clips or accumulates by itself, or a
            strategy other than one device and DDP.
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
        if accumulate_grad_batches < 1:
            raise SetupError(
                f"accumulate_grad_batches must be at least 1, not {accumulate_grad_batches} "
                "(option: --model.accumulate_grad_batches)"
            )
        limits = {
            "gradient_clip_val": gradient_clip_val,
            "opponent_gradient_clip_val": opponent_gradient_clip_val,
        }
        for name, value in limits.items():
            if value is not None and not 0 < value < math.inf:
                raise SetupError(
                    f"{name} must be above 0, not {value}; null: no limit (option: --model.{name})"
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
        """The second player."""

    def adopt(
        self, option: str, opponent: Callable[[int], Opponent] | Opponent, channels: int
    ) -> tuple[Opponent, Any]:
        """Build the opponent, compiled where the network is, and channels-last in any case.

        Maps have few channels and full size: on CPUs that order halves the time of the first layer.

        Args:
            option: Its name, for messages.
            opponent: Makes it from the number of channels of a map, or is it.
            channels: Of the maps that it will see.

        Returns:
            The opponent, and what it makes of an empty map of 256 x 256 pixels.

        Raises:
            SetupError: It does not take such maps, or has nothing to learn.
        """
        given = isinstance(opponent, nn.Module)
        with torch.random.fork_rng(devices=[]):  # dropout is to be as without an opponent
            made = cast(Opponent, opponent if given else opponent(channels))
        weight = next(made.parameters(), None)
        name = type(made).__name__
        if weight is None:
            raise SetupError(f"{name} has no weights to learn (option: --model.{option})")
        training = made.training
        try:
            with torch.no_grad():
                found = made.eval()(weight.new_zeros(1, channels, 256, 256))
        except RuntimeError as error:
            raise SetupError(
                f"{name} does not take maps of {channels} channels, one per class, and 256x256 "
                f"pixels (option: --model.{option}): {error}"
            ) from error
        made.train(training)
        made.to(memory_format=torch.channels_last)
        if self.compile_network:
            made.compile()
        return made, found

    # The step

    def update(
        self, batch_idx: int, *, segmenter: Tensor | None = None, opponent: Tensor | None = None
    ) -> None:
        """Go back through the losses that are given; behind an iteration's last batch, step.

        Both losses at once are one backward pass: the order of operations in which the opponent
        sees the segmenter as it was before the step. For another order call this twice: the
        segmenter, which closes an iteration, last.

        Args:
            batch_idx: Of `training_step`.
            segmenter: A scalar that depends on the segmenter's weights only; see
                `gradients.frozen`.
            opponent: A scalar that depends on the opponent's weights only.
        """
        ours, theirs = self.trainer.optimizers
        playing = [(ours, segmenter), (theirs, opponent)]
        losses = {optimizer: loss for optimizer, loss in playing if loss is not None}
        self._epoch_is_over = self._ends_epoch(batch_idx)
        steps = self._epoch_is_over or (batch_idx + 1) % self.accumulate_grad_batches == 0
        total = torch.stack(list(losses.values())).sum()
        self._backward(total, reaches_segmenter=segmenter is not None, exchange=steps)
        if steps and opponent is not None:
            self._step_opponent(theirs)
        if steps and segmenter is not None:
            self._step_segmenter()
            self._advance_schedules("step")
            if self._epoch_is_over:
                self._advance_schedules("epoch")
        if steps:
            for optimizer in losses:
                optimizer.zero_grad()

    def backward_early(self, loss: Tensor) -> Tensor:
        """Go back through a part of the segmenter's loss at once, which frees its graph.

        Args:
            loss: A scalar that depends on the segmenter's weights only.

        Returns:
            What to add to the loss that `update` is given: the value alone; or the loss as it is,
            where DDP with a static graph needs one backward pass.
        """
        if self._static_graph() or not loss.requires_grad:
            return loss
        self._backward(loss, reaches_segmenter=True, exchange=False)
        return loss.detach()

    def _backward(self, loss: Tensor, reaches_segmenter: bool, exchange: bool) -> None:
        if self.accumulate_grad_batches > 1:
            loss = loss / self.accumulate_grad_batches
        if not reaches_segmenter:  # nothing that DDP waits for
            scaler = self._scaler()
            torch.autograd.backward(loss if scaler is None else scaler.scale(loss))
            return
        strategy = self.trainer.strategy
        # a static graph cannot leave out an exchange; averaging twice changes nothing
        if exchange or self._static_graph() or not isinstance(strategy, DDPStrategy):
            self.manual_backward(loss)
        else:
            with strategy.block_backward_sync():
                self.manual_backward(loss)

    def _static_graph(self) -> bool:
        return bool(getattr(self.trainer.strategy.model, "static_graph", False))

    def _step_opponent(self, optimizer: Optimizer) -> None:
        """Step without Lightning, which would count this and update the scaler."""
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
        """Clip the gradients of one player; they are averaged and unscaled by now."""
        ours, theirs = self.trainer.optimizers
        limit = self.opponent_gradient_clip_val if optimizer is theirs else self.gradient_clip_val
        if limit is None:
            return
        scaler = self._scaler()
        fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        if scaler is not None and fused and optimizer is ours:
            scaler.unscale_(optimizer)  # Lightning leaves this to the step of fused optimizers
        clip_gradients(optimizer, limit, self.gradient_clip_algorithm)

    def _ends_epoch(self, batch_idx: int) -> bool:
        trainer = self.trainer
        return trainer.is_last_batch or batch_idx + 1 == trainer.num_training_batches

    def _scaler(self) -> GradScaler | None:
        return getattr(self.trainer.precision_plugin, "scaler", None)

    # What Lightning leaves to modules that optimise by hand

    def configure_callbacks(self) -> list[Callback]:
        """Refuse what the Trainer cannot do for two players, saying which option of ours can."""
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
                    f"the Trainer's {name} is for one optimizer, {type(self).__name__} has two "
                    f"(option: --model.{name} instead of --trainer.{name})"
                )
        if not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
            raise SetupError(
                f"{type(self).__name__} runs on one device or with DDP, not with "
                f"{type(trainer.strategy).__name__} (option: --trainer.strategy ddp)"
            )
        return [_LeaveTrainerAsItWas()]

    def setup(self, stage: str) -> None:
        """Keep DDP from waiting for gradients of the opponent."""
        theirs = {id(weight) for weight in self.opponent.parameters()}
        self._ddp_params_and_buffers_to_ignore = [
            name for name, weight in self.named_parameters() if id(weight) in theirs
        ]

    def on_fit_start(self) -> None:
        """Start all processes from one opponent; let the Trainer count iterations."""
        super().on_fit_start()
        # a checkpoint holds the weights behind the step, as with one optimizer
        warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")
        self.trainer.accumulate_grad_batches = self.accumulate_grad_batches
        share_weights(self.opponent.parameters())

    def configure_optimizers(self) -> Any:
        """Create both optimizers, the segmenter's first, and their schedules."""
        optimizer = build_optimizer(
            self.opponent_optimizer, self.opponent, self.opponent_lr, decay_all=self.decay_all
        )
        theirs = with_schedule(optimizer, self.opponent_lr_scheduler, self.lr_interval)
        ours: Any = super().configure_optimizers()
        players: list[dict[str, Any]] = [ours, dict(theirs)]
        for player in players:
            # not read where modules optimise by hand: the schedule itself knows
            player.get("lr_scheduler", {}).pop("monitor", None)
        return players

    def on_train_epoch_end(self) -> None:
        """Advance the schedules that wait for a score; not where `max_steps` cuts an epoch off."""
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, ReduceLROnPlateau) and self._epoch_is_over:
                config.scheduler.step(self._score(config.scheduler.monitor))

    def _score(self, monitor: str | None) -> Tensor:
        scores = self.trainer.callback_metrics
        if monitor not in scores:
            raise SetupError(
                f"the schedule waits for {monitor}, which is not logged; there are "
                f"{', '.join(sorted(scores))} (option: the schedule's `monitor`)"
            )
        return scores[monitor]

    def _advance_schedules(self, interval: str) -> None:
        for config in self.trainer.lr_scheduler_configs:
            scheduler = config.scheduler
            if config.interval == interval and not isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say which settings differ from those of the run that is resumed; these ones count."""
        super().on_load_checkpoint(checkpoint)
        before = checkpoint.get("hyper_parameters", {})
        changed = [
            f"{name} {before[name]} -> {value}"
            for name, value in self.hparams.items()
            if isinstance(value, (int, float)) and name in before and before[name] != value
        ]
        if changed:
            rank_zero_info(f"other settings than in the checkpoint: {', '.join(sorted(changed))}")


class _LeaveTrainerAsItWas(Callback):
    """Takes back what a two-player module set on the Trainer, also behind an exception."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.accumulate_grad_batches = 1

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        trainer.accumulate_grad_batches = 1
