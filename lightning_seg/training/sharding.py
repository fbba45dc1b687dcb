"""Data parallelism in which every process keeps a part of the weights (FSDP2 of PyTorch).

DDP keeps the weights, their gradients and the state of the optimizer in every process. With
`ShardedStrategy` each process keeps a share of all three, and a block of layers gathers its weights
for the time of its forward and backward pass. The updates are those of DDP.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from lightning_seg.errors import SetupError
from lightning_seg.training.gradients import share_weights


class ShardedStrategy(ModelParallelStrategy):
    """Data parallelism with sharded weights, for methods with one optimizer.

    It takes GPUs, or processes on CPUs. A checkpoint is one file with whole tensors, which runs
    with another strategy or number of processes can load.

    Args:
        timeout: Time after which a process that waits for another one ends the run.
        block_weights: Smallest number of weights of a block of layers that is gathered by itself.
    """

    def __init__(
        self, timeout: timedelta = timedelta(minutes=30), block_weights: int = 1_000_000
    ) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, timeout=timeout)
        self.block_weights = block_weights

    def setup_environment(self) -> None:
        """Let all processes share the weights."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def shard(network: nn.Module, strategy: ShardedStrategy, mesh: DeviceMesh) -> nn.Module:
    """Spread the first process's weights of a network over all processes, once.

    Args:
        network: The network; its blocks of layers are gathered one after the other.
        strategy: The strategy of the run.
        mesh: The processes.

    Returns:
        The network; its batch norms are synchronised where the Trainer's `sync_batchnorm` is on.
    """
    if isinstance(network, FSDPModule):
        return network
    if strategy._layer_sync is not None:
        network = strategy._layer_sync.apply(network)
    share_weights([*network.parameters(), *network.buffers()])
    for block in _blocks(network, strategy.block_weights):
        fully_shard(block, mesh=mesh["data_parallel"])
        if hasattr(block, "forward_intermediates"):  # by which timm takes maps of a transformer
            register_fsdp_forward_method(block, "forward_intermediates")
    fully_shard(network, mesh=mesh["data_parallel"])
    return network


def _blocks(module: nn.Module, least: int) -> Iterator[nn.Module]:
    """Yield the modules below a module that have so many weights, children first."""
    for child in module.children():
        if sum(weight.numel() for weight in child.parameters()) >= least:
            yield from _blocks(child, least)
            # Lists and dicts of modules have no forward and are never called. Single layers may be
            # passed by, as the projection of an attention is.
            called = type(child).forward is not nn.Module.forward
            if called and next(child.children(), None) is not None:
                yield child


def whole_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's state dict with whole tensors; all processes must call this function.

    Args:
        module: A network, or a part of one.
    """
    options = StateDictOptions(full_state_dict=True)
    return dict(get_model_state_dict(module, options=options))  # type: ignore[arg-type]


def whole(value: Tensor) -> Tensor:
    """Return a value that was computed from sharded weights as every process has it.

    Args:
        value: A tensor of any shape; a plain one is returned unchanged.
    """
    if not isinstance(value, DTensor):
        return value
    together: Tensor = value.full_tensor()
    return together


def require_strategy(strategy: Strategy | str) -> None:
    """Raise an error for strategies that shard weights in another way.

    Args:
        strategy: The strategy of a Trainer, or its name.

    Raises:
        SetupError: The strategy is one of Lightning's FSDP, or its `ModelParallelStrategy`.
    """
    by_name = isinstance(strategy, str) and strategy.startswith("fsdp")
    sharding = isinstance(strategy, (FSDPStrategy, ModelParallelStrategy))
    if by_name or (sharding and not isinstance(strategy, ShardedStrategy)):
        name = strategy if isinstance(strategy, str) else type(strategy).__name__
        raise SetupError(
            f"the strategy {name} is not supported: here weights are sharded by ShardedStrategy",
            option="trainer.strategy lightning_seg.ShardedStrategy",
        )
