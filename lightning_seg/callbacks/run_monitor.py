"""How a training runs: learning rates, speed, memory, the wait for data, and gradient norms."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor
from torch.optim import Optimizer

from lightning_seg.callbacks.metrics_file import write_out
from lightning_seg.callbacks.run_facts import class_shares, run_facts
from lightning_seg.callbacks.wandb_run import keep_id
from lightning_seg.training import MethodModule
from lightning_seg.training.step_numbers import step_is_logged

PLAYERS = ("network", "opponent")
"""The names of a module's optimizers, in their order."""

_WITH_WHOLE_GRADIENTS = (SingleDeviceStrategy, DDPStrategy)  # others shard them


class RunMonitor(Callback):
    """Logs how a training runs, in the steps that are logged, and what it was made of.

    `lr/<player>` or `lr/<player>/<group>` is the learning rate of a parameter group that made the
    step. `gradient/<player>` is the norm of all gradients of a player, unscaled, averaged over the
    processes and before clipping. The player is `network`, and also `opponent` in methods with a
    second network. `speed/images_per_second` counts the images of all processes since the last
    logged step, without validations, and `speed/data_share` is the share of this time in which the
    first process waited for a batch. `memory/peak_gb` is the most memory so far in 10^9 bytes: on a
    GPU what tensors took, and on a CPU what the process took.

    Other steps cost two readings of the clock, and no step waits for a device because of this
    callback, except for its logged values.

    Args:
        gradients: Whether gradient norms are logged.
        speed: Whether speed and memory are logged.
    """

    def __init__(self, gradients: bool = True, speed: bool = True) -> None:
        self.gradients = gradients
        self.speed = speed
        self._norms: dict[str, Tensor] = {}
        self._rates: dict[str, float] = {}
        self._told_shares = False
        self._forget()

    def _forget(self) -> None:
        """Begin to count anew, with no step in progress."""
        self._images, self._waited, self._worked = 0, 0.0, 0.0
        self._ended: float | None = None  # the end of the step before, where nothing came between
        self._began = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Send the facts of the run to the loggers, and keep the id of a W&B run."""
        self._forget()
        self._told_shares = False
        if getattr(trainer, "fast_dev_run", False):
            return
        keep_id(trainer)
        if trainer.is_global_zero:
            facts = run_facts(trainer, pl_module)
            for logger in trainer.loggers:
                logger.log_hyperparams({"run": facts})

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write the logged rows out, so that no step before a checkpoint is lost with a process."""
        write_out(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the time of a validation out."""
        self._ended = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Send the shares of the classes in the validation images to the loggers, once."""
        self._ended = None
        if trainer.sanity_checking or trainer.state.fn != "fit" or self._told_shares:
            return
        self._told_shares = True
        if not isinstance(pl_module, MethodModule) or pl_module.val_confusion is None:
            return
        shares = class_shares(pl_module.val_confusion, pl_module.class_names)
        for logger in trainer.loggers:
            if not isinstance(logger, TensorBoardLogger):  # it would write all settings again
                logger.log_hyperparams({"class_shares_val": shares})

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the time between epochs out; the wait for an epoch's first batch counts."""
        self._ended = time.perf_counter()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note how long the batch was waited for."""
        self._began = time.perf_counter()
        if self._ended is not None:
            self._waited += self._began - self._ended

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Note a player's learning rates and the norm of its gradients in a logged step."""
        if not step_is_logged(trainer):
            return
        player = _player(trainer, optimizer)
        self._rates |= _learning_rates(optimizer, player)
        if not (self.gradients and isinstance(trainer.strategy, _WITH_WHOLE_GRADIENTS)):
            return
        gradients = [
            weight.grad
            for group in optimizer.param_groups
            for weight in group["params"]
            if weight.grad is not None
        ]
        if gradients:
            norm = torch.nn.utils.get_total_norm(gradients).detach()
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
                norm = norm / scaler._scale  # fused optimizers unscale in their step
            self._norms[player] = norm

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log the values of this step, in one row with the losses."""
        self._ended = time.perf_counter()
        self._worked += self._ended - self._began
        self._images += _count(batch)
        if not self._rates:  # not a logged step, or not the last batch of one
            return
        values = self._rates | (self._speed(trainer, pl_module) if self.speed else {})
        # tensors on the CPU: Lightning would copy plain numbers to the device, and wait for it
        found = {name: torch.tensor(value) for name, value in values.items()}
        found |= {f"gradient/{name}": norm for name, norm in self._norms.items()}
        self._norms, self._rates = {}, {}
        pl_module.log_dict(found, on_step=True, on_epoch=False, batch_size=1)

    def _speed(self, trainer: Trainer, module: LightningModule) -> dict[str, float]:
        seconds = max(self._worked + self._waited, 1e-9)
        found = {
            "speed/images_per_second": self._images * trainer.world_size / seconds,
            "speed/data_share": self._waited / seconds,
            "memory/peak_gb": peak_memory(module.device) / 1e9,
        }
        self._images, self._waited, self._worked = 0, 0.0, 0.0
        return found


def peak_memory(device: torch.device) -> float:
    """Return the most memory so far in bytes: of tensors on a GPU, else of the process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def _count(batch: Any) -> int:
    """Return the number of images in a batch, or in all groups of a batch."""
    if not isinstance(batch, dict):
        return 0
    if "image" in batch:
        return len(batch["image"])
    return sum(_count(group) for group in batch.values())


def _player(trainer: Trainer, optimizer: Optimizer) -> str:
    place = next((i for i, each in enumerate(trainer.optimizers) if each is optimizer), 0)
    return PLAYERS[place] if place < len(PLAYERS) else f"player_{place}"


def _learning_rates(optimizer: Optimizer, player: str) -> dict[str, float]:
    """Return the learning rate of every parameter group by its key."""
    groups, key = optimizer.param_groups, f"lr/{player}"
    if len(groups) == 1:
        return {key: float(groups[0]["lr"])}
    names = [group.get("name", f"group_{number}") for number, group in enumerate(groups)]
    rates = [float(group["lr"]) for group in groups]
    return {f"{key}/{name}": rate for name, rate in zip(names, rates, strict=True)}
