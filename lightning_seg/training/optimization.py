"""Learning rates: per part of the network, and over the course of training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lightning.pytorch.cli import ReduceLROnPlateau
from lightning.pytorch.utilities.types import (
    LRSchedulerConfigType,
    OptimizerConfig,
    OptimizerLRSchedulerConfig,
)
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_seg.errors import SetupError

UNDECAYED = "_undecayed"
"""Ends the names of parameter groups without weight decay."""


class PolyLR(LRScheduler):
    """The field's schedule: lr(t) = lr(0) * (1 - t / T) ** power, one step per iteration.

    Args:
        optimizer: Whose learning rates to change.
        power: 0.9 since DeepLab v2.
        total_iters: T in optimizer steps. None lets the module set it to the length of the
            training, `max_steps` or `max_epochs`, when that is known.
        last_epoch: Of `torch.optim.lr_scheduler.LRScheduler`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        power: float = 0.9,
        total_iters: int | None = None,
        last_epoch: int = -1,
    ) -> None:
        if total_iters is not None and total_iters < 1:
            raise SetupError(f"PolyLR: total_iters must be at least 1, not {total_iters}")
        self.power = power
        self.total_iters = total_iters
        self.follows_training = total_iters is None
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """Return the learning rate of every parameter group."""
        if self.total_iters is None:
            return list(self.base_lrs)
        left = max(0.0, 1 - self.last_epoch / self.total_iters)
        return [lr * left**self.power for lr in self.base_lrs]

    def set_length(self, iterations: float) -> None:
        """Learn how long the training is, unless `total_iters` was given."""
        if not self.follows_training:
            return
        if iterations == float("inf"):
            raise SetupError(
                "PolyLR falls to zero at the end of training, but training has no end: set "
                "--trainer.max_steps, --trainer.max_epochs or the schedule's total_iters"
            )
        self.total_iters = int(iterations)


def build_optimizer(
    create: Callable[[Any], Optimizer],
    network: nn.Module,
    lr: float | None,
    backbone_lr_factor: float = 1.0,
    head_bias_lr_factor: float = 1.0,
    decay_all: bool = True,
) -> Optimizer:
    """Create an optimizer whose parameter groups learn at different rates.

    Args:
        create: Takes parameters or parameter groups.
        network: Its attribute `encoder` or `backbone` is the pretrained part.
        lr: The learning rate; None keeps the optimizer's own.
        backbone_lr_factor: Times the learning rate for the pretrained part.
        head_bias_lr_factor: Times the learning rate for all other biases.
        decay_all: Let weight decay act on all weights; False leaves out biases and what norms
            scale by, that is, whatever has one dimension.

    Raises:
        SetupError: A backbone factor for a network that has no backbone.
    """
    if backbone_lr_factor == head_bias_lr_factor == 1:
        groups = {"all": list(_trained(network))}
    else:
        groups = _split(network)
    factors = {"backbone": backbone_lr_factor, "head_bias": head_bias_lr_factor}
    if backbone_lr_factor != 1 and not groups.get("backbone"):
        raise SetupError(
            f"backbone_lr_factor={backbone_lr_factor}, but {type(network).__name__} has no "
            "trainable `encoder` or `backbone` (option: --model.backbone_lr_factor 1)"
        )
    named: list[dict[str, Any]] = []
    for name, params in groups.items():
        kept_out = [] if decay_all else [each for each in params if each.ndim <= 1]
        known = {id(each) for each in kept_out}
        named += [
            {"params": [each for each in params if id(each) not in known], "name": name},
            {"params": kept_out, "name": name + UNDECAYED, "weight_decay": 0.0},
        ]
    optimizer = create([group for group in named if group["params"]])
    for group in optimizer.param_groups:
        factor = factors.get(group["name"].removesuffix(UNDECAYED), 1.0)
        group["lr"] = (group["lr"] if lr is None else lr) * factor
    return optimizer


def with_schedule(
    optimizer: Optimizer, create: Callable[[Optimizer], Any] | None, interval: str
) -> OptimizerConfig | OptimizerLRSchedulerConfig:
    """Return an optimizer and, where one is to be made, its schedule, in Lightning's form.

    Args:
        optimizer: Whose learning rates to change.
        create: Takes the optimizer; None makes no schedule.
        interval: `step` or `epoch`; a schedule that waits for a plateau follows epochs.
    """
    if create is None:
        return {"optimizer": optimizer}
    scheduler = create(optimizer)
    config: LRSchedulerConfigType = {"scheduler": scheduler, "interval": interval}
    if isinstance(scheduler, ReduceLROnPlateau):
        config |= {"interval": "epoch", "monitor": scheduler.monitor}
    return {"optimizer": optimizer, "lr_scheduler": config}


def backbone_of(network: nn.Module) -> nn.Module | None:
    """Return the pretrained part of a network: its `encoder` or `backbone`, if it has one."""
    for name in ("encoder", "backbone"):
        part = getattr(network, name, None)
        if isinstance(part, nn.Module):
            return part
    return None


def _trained(module: nn.Module) -> Iterator[nn.Parameter]:
    return (parameter for parameter in module.parameters() if parameter.requires_grad)


def _split(network: nn.Module) -> dict[str, list[nn.Parameter]]:
    backbone = backbone_of(network)
    pretrained = list(_trained(backbone)) if backbone is not None else []
    known = {id(parameter) for parameter in pretrained}
    groups: dict[str, list[nn.Parameter]] = {"backbone": pretrained, "head": [], "head_bias": []}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad and id(parameter) not in known:
            groups["head_bias" if name.endswith("bias") else "head"].append(parameter)
    return groups
