"""Learning rates of the parts of a network, and their schedule over the training."""

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
from lightning_seg.networks.encoder import TimmEncoder

UNDECAYED = "_undecayed"
"""The end of the names of parameter groups without weight decay."""


class PolyLR(LRScheduler):
    """The poly schedule of DeepLab: lr(t) = lr(0) * (1 - t / T) ** power, one step per iteration.

    Args:
        optimizer: The optimizer whose learning rates change.
        power: Exponent, at least 0; 0.9 is DeepLab v2's (arXiv 1606.00915).
        total_iters: T in optimizer steps, at least 1. None lets the module set T to the length of
            the training, by the Trainer's `max_steps` or `max_epochs`.
        last_epoch: Number of steps already taken, as for every schedule of PyTorch; -1 starts.

    Raises:
        SetupError: `total_iters` is below 1.

    Examples:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        >>> schedule = PolyLR(optimizer, power=1.0, total_iters=4)
        >>> for _ in range(3):
        ...     optimizer.step()
        ...     schedule.step()
        >>> schedule.get_last_lr()
        [0.25]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        power: float = 0.9,
        total_iters: int | None = None,
        last_epoch: int = -1,
    ) -> None:
        if total_iters is not None and total_iters < 1:
            raise SetupError(
                f"PolyLR: total_iters must be at least 1, not {total_iters}", option="total_iters"
            )
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
        """Set T to a number of iterations, unless `total_iters` was given.

        Before the first step, lr(0) becomes what the optimizer has, which Lightning's
        LearningRateFinder may have changed.

        Raises:
            SetupError: The number is infinite.
        """
        if self.last_epoch == 0:
            self.base_lrs = [group["lr"] for group in self.optimizer.param_groups]
        if not self.follows_training:
            return
        if iterations == float("inf"):
            raise SetupError(
                "PolyLR falls to zero at the end of training, but training has no end",
                option=("trainer.max_steps", "trainer.max_epochs", "total_iters"),
            )
        self.total_iters = int(iterations)


def build_optimizer(
    create: Callable[[Any], Optimizer],
    network: nn.Module,
    lr: float | None,
    backbone_lr_factor: float = 1.0,
    head_bias_lr_factor: float = 1.0,
    decay_all: bool = True,
    backbone_lr_decay: float = 1.0,
) -> Optimizer:
    """Return an optimizer whose parameter groups have learning rates of their own.

    Args:
        create: Function from parameter groups to an optimizer.
        network: The network. Its attribute `encoder` or `backbone`, if there is one, is the
            pretrained part.
        lr: Learning rate; None keeps the default of the optimizer.
        backbone_lr_factor: Factor on the learning rate of the pretrained part.
        head_bias_lr_factor: Factor on the learning rate of the biases outside the pretrained part.
        decay_all: Whether weight decay acts on all weights; False excludes those with at most one
            dimension, which are the biases and the scales of norms.
        backbone_lr_decay: Factor d in (0, 1]: the learning rate of layer k of the n layers of the
            pretrained part is also multiplied by d^(n - k), k counting from 0.

    Raises:
        SetupError: A factor of the pretrained part is not 1 and the network has none, or one whose
            layers timm does not know; or the optimizer refuses its arguments.
    """
    if backbone_lr_factor == head_bias_lr_factor == backbone_lr_decay == 1:
        groups = {"all": list(_trained(network))}
    else:
        groups = _split(network)
    factors = {"backbone": backbone_lr_factor, "head_bias": head_bias_lr_factor}
    if backbone_lr_factor != 1 and not groups.get("backbone"):
        raise SetupError(
            f"backbone_lr_factor is {backbone_lr_factor}, but {type(network).__name__} has no "
            "trainable `encoder` or `backbone`",
            option="backbone_lr_factor 1",
        )
    if backbone_lr_decay != 1:
        layers = _layers(network)
        groups = {**layers, **{name: groups[name] for name in ("head", "head_bias")}}
        factors |= {
            name: backbone_lr_factor * backbone_lr_decay ** (len(layers) - number)
            for number, name in enumerate(layers)
        }
    named: list[dict[str, Any]] = []
    for name, params in groups.items():
        undecayed = [] if decay_all else [each for each in params if each.ndim <= 1]
        known = {id(each) for each in undecayed}
        named += [
            {"params": [each for each in params if id(each) not in known], "name": name},
            {"params": undecayed, "name": name + UNDECAYED, "weight_decay": 0.0},
        ]
    try:
        optimizer = create([group for group in named if group["params"]])
    except ValueError as error:  # such as a negative learning rate
        raise SetupError(f"the optimizer cannot be made: {error}", option="optimizer") from error
    for group in optimizer.param_groups:
        factor = factors.get(group["name"].removesuffix(UNDECAYED), 1.0)
        group["lr"] = (group["lr"] if lr is None else lr) * factor
    return optimizer


def with_schedule(
    optimizer: Optimizer, create: Callable[[Optimizer], Any] | None, interval: str
) -> OptimizerConfig | OptimizerLRSchedulerConfig:
    """Return an optimizer and its schedule in the form that Lightning takes.

    Args:
        optimizer: The optimizer whose learning rates change.
        create: Function from the optimizer to a schedule; None makes no schedule.
        interval: The schedule advances after every `step` or every `epoch`. ReduceLROnPlateau
            always advances after epochs.
    """
    if create is None:
        return {"optimizer": optimizer}
    scheduler = create(optimizer)
    config: LRSchedulerConfigType = {"scheduler": scheduler, "interval": interval}
    if isinstance(scheduler, ReduceLROnPlateau):
        config |= {"interval": "epoch", "monitor": scheduler.monitor}
    return {"optimizer": optimizer, "lr_scheduler": config}


def backbone_of(network: nn.Module) -> nn.Module | None:
    """Return the `encoder` or `backbone` of a network; None where it has neither."""
    for name in ("encoder", "backbone"):
        part = getattr(network, name, None)
        if isinstance(part, nn.Module):
            return part
    return None


def require_decay(factor: float) -> None:
    """Raise `SetupError` for a factor between layers that is not in (0, 1]."""
    if not 0 < factor <= 1:
        raise SetupError(
            f"backbone_lr_decay must be in (0, 1], not {factor}", option="backbone_lr_decay"
        )


def _layers(network: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the trained parameters of every layer of the encoder, from the stem to the deepest."""
    encoder = backbone_of(network)
    if not isinstance(encoder, TimmEncoder):
        raise SetupError(
            f"backbone_lr_decay is for encoders of timm, and {type(network).__name__} has none",
            option="backbone_lr_decay 1",
        )
    return {
        f"backbone_layer_{number:02d}": [each for each in layer if each.requires_grad]
        for number, layer in enumerate(encoder.layers())
    }


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
