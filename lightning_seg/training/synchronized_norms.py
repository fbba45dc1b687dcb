"""Batch norms whose statistics are those of the batches of all processes.

The Trainer's option `sync_batchnorm` takes torch's conversion, which has two limits. It drops the
activation of timm's batch norms, which hold one, so that a MobileNet or an EfficientNet would train
without activations. And torch's `SyncBatchNorm` works on no CPU. A method replaces the
conversion by `SynchronizedNorms`, which has neither limit.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.plugins import TorchSyncBatchNorm
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_seg.numerics import at_least_float32
from lightning_seg.processes import world_size


class _Activated(_BatchNorm):
    """A batch norm with the activation and the dropout of the layer that it replaces.

    Args:
        layer: The batch norm to replace, whose weights and statistics are shared.
    """

    def __init__(self, layer: _BatchNorm) -> None:
        super().__init__(
            layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats
        )
        share_state(layer, self)
        self.drop = getattr(layer, "drop", nn.Identity())
        self.act = getattr(layer, "act", nn.Identity())

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised and activated (B, C, ...) features."""
        activated: Tensor = self.act(self.drop(super().forward(input)))
        return activated


class OnDevices(_Activated, nn.SyncBatchNorm):
    """Torch's `SyncBatchNorm`."""


class _AcrossCPUs(_BatchNorm):
    """A batch norm over the batches of all processes; DDP refuses torch's on CPUs."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Take any number of dimensions, as `SyncBatchNorm` does."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised (B, C, ...) features."""
        if self.training and world_size() > 1:
            return self._across(input)
        return super().forward(input)

    def _across(self, features: Tensor) -> Tensor:
        values = at_least_float32(features)
        dims = [dim for dim in range(values.ndim) if dim != 1]
        shape = [1, -1] + [1] * (values.ndim - 2)
        # (B, C, ...) -> (C,) sums, and the number of values of a channel -> over all processes
        count = values.new_full((1,), values.numel() / values.shape[1])
        together = _summed(torch.cat([values.sum(dims), count]))
        total = together[-1].detach()
        mean = together[:-1] / total
        centred = values - mean.view(shape)
        variance = _summed(centred.square().sum(dims)) / total
        if self.track_running_stats:
            self._follow(mean.detach(), variance.detach() * total / (total - 1))
        normalized = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normalized = normalized * self.weight.view(shape) + self.bias.view(shape)
        found: Tensor = normalized.to(features.dtype)
        return found

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics as torch's batch norms do."""
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        self.num_batches_tracked += 1
        pace = self.momentum if self.momentum is not None else 1 / int(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), pace)
        self.running_var.lerp_(variance.to(self.running_var.dtype), pace)


class OnCPUs(_Activated, _AcrossCPUs):
    """A batch norm over the batches of all processes on CPUs."""


class SynchronizedNorms(TorchSyncBatchNorm):
    """Replaces the batch norms of a module while it trains in several processes.

    Args:
        device: The device that this process trains on.
    """

    def __init__(self, device: torch.device) -> None:
        self._kind: type[_Activated] = OnCPUs if device.type == "cpu" else OnDevices
        self._replaced: dict[nn.Module, _BatchNorm] = {}

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace the batch norms of both players and of a running mean of the network."""
        made: dict[_BatchNorm, _Activated] = {}
        synchronized = (nn.SyncBatchNorm, OnCPUs)
        for parent in list(model.modules()):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, _BatchNorm) and not isinstance(layer, synchronized):
                    made.setdefault(layer, self._kind(layer))
                    parent.add_module(name, made[layer])
        self._replaced = {new: layer for layer, new in made.items()}
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Put the layers back, with the weights and statistics of those that replaced them."""
        for parent in list(model.modules()):
            for name, layer in list(parent.named_children()):
                if layer in self._replaced:
                    share_state(layer, self._replaced[layer])
                    parent.add_module(name, self._replaced[layer])
        return model


def share_state(source: nn.Module, target: nn.Module) -> None:
    """Give a layer the weights, the statistics and the mode of another one."""
    target._parameters.update(source._parameters)
    target._buffers.update(source._buffers)
    target.training = source.training


class _Summed(torch.autograd.Function):
    """The sum over all processes; so is the gradient, because every process uses the sum."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> Tensor:
        total = outputs[0].clone()
        dist.all_reduce(total)
        return total


def _summed(values: Tensor) -> Tensor:
    summed: Tensor = _Summed.apply(values)
    return summed
