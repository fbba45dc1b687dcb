"""A running mean of the network's weights, which is validated and stored in its place."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EMAWeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lightning_seg.errors import SetupError
from lightning_seg.training import MethodModule, ShardedStrategy
from lightning_seg.training.gradients import share_statistics


class NetworkEMA(EMAWeightAveraging):
    """Lightning's EMAWeightAveraging of the network alone.

    After every step the mean m of the weights w becomes decay m + (1 - decay) w, and the first
    update is a copy. Validations and pictures are of the mean, checkpoints hold it as their
    weights, and the network has it at the end of `fit`. A checkpoint also holds the weights
    themselves, from which a resumed run goes on.

    An analyzer or a discriminator is not averaged: it is no part of a prediction, and it would
    judge an average that it has never been trained against. Numbers of batches that batch norms
    count, and buffers outside the network, such as class weights, are copied.

    Args:
        decay: Share of the mean that is kept at a step, in [0, 1).
        update_every_n_steps: Steps between two updates, at least 1.
        update_starting_at_step: First step of the mean, at least 0; None starts at once.

    Raises:
        SetupError: A setting is out of range, or the weights are spread over processes.
    """

    def __init__(
        self,
        decay: float = 0.999,
        update_every_n_steps: int = 1,
        update_starting_at_step: int | None = None,
    ) -> None:
        ranges = {
            "decay": (0, 0.999999, decay),
            "update_every_n_steps": (1, sys.maxsize, update_every_n_steps),
            "update_starting_at_step": (0, sys.maxsize, update_starting_at_step or 0),
        }
        for name, (low, high, value) in ranges.items():
            if not low <= value <= high:
                raise SetupError(
                    f"{name} must be in [{low}, {high}], not {value}",
                    option=f"trainer.callbacks.{name}",
                )
        super().__init__(
            decay=decay,
            update_every_n_steps=update_every_n_steps,
            update_starting_at_step=update_starting_at_step,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copy the network before a training.

        Raises:
            SetupError: The weights are spread over processes.
        """
        if stage != "fit":
            return
        if isinstance(trainer.strategy, ShardedStrategy):
            raise SetupError(
                "NetworkEMA keeps a copy of the whole network, and ShardedStrategy spreads it over "
                "the processes",
                option="trainer.strategy ddp",
            )
        self._average_model = _Averaged(
            pl_module, device=pl_module.device, use_buffers=True, avg_fn=self._kwargs["avg_fn"]
        )
        self._in_place = False
        # after the pictures of a validation, which are of the mean, and before its checkpoints
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        others = [each for each in callbacks if each is not self]
        first = [isinstance(each, Checkpoint) for each in others] + [True]
        others.insert(first.index(True), self)
        trainer.callbacks = others  # type: ignore[attr-defined]

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the mean in place of the weights, once there is one."""
        if self._started():
            self._swap_models(pl_module)
            share_statistics(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the mean in place for the pictures of the validation."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights back."""
        self._put_back(pl_module)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Put the weights back after a validation that was cut off."""
        self._put_back(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights: checkpoints of the end of a training hold both."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the network the mean of its weights."""
        if self._started():
            self._copy_average_to_current(pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store the mean as the weights, and the weights beside it."""
        if self._average_model is None:
            return
        self._put_back(pl_module)
        _copy(pl_module, self._average_model.module, inside=not self._started())
        super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the weights and their mean from a checkpoint, where a training goes on."""
        if self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def _started(self) -> bool:
        return self._average_model is not None and bool(self._average_model.n_averaged > 0)

    def _put_back(self, pl_module: LightningModule) -> None:
        if self._average_model is not None and self._in_place:
            self._swap_models(pl_module)

    @torch.no_grad()
    def _swap_models(self, pl_module: LightningModule) -> None:
        for mean, current in self._pairs(pl_module):
            kept = mean.clone()
            mean.copy_(current)
            current.copy_(kept)
        self._in_place = not self._in_place

    @torch.no_grad()
    def _copy_average_to_current(self, pl_module: LightningModule) -> None:
        for mean, current in self._pairs(pl_module):
            current.copy_(mean)

    def _pairs(self, pl_module: LightningModule) -> Iterator[tuple[Tensor, Tensor]]:
        assert self._average_model is not None
        return zip(_inside(self._average_model.module), _inside(pl_module), strict=True)


class _Averaged(AveragedModel):
    """Averages the floating-point tensors of a module's `network`, and copies all others."""

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        super().update_parameters(model)
        _copy(model, self.module)
        for mean, current in zip(_inside(self.module), _inside(model), strict=True):
            if not current.is_floating_point():
                mean.copy_(current)


def _inside(module: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors of a module's network."""
    assert isinstance(module, MethodModule)
    yield from chain(module.network.parameters(), module.network.buffers())


@torch.no_grad()
def _copy(source: nn.Module, target: nn.Module, inside: bool = False) -> None:
    """Copy the tensors that are not of the network, and with `inside` those that are."""
    own = {id(tensor) for tensor in _inside(source)}
    pairs = zip(
        chain(source.parameters(), source.buffers()),
        chain(target.parameters(), target.buffers()),
        strict=True,
    )
    for current, copied in pairs:
        if inside or id(current) not in own:
            copied.copy_(current)
