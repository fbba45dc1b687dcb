"""Embeddings of all processes in every process, with their gradients."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_seg.losses.triplets import require_labels, require_rows
from lightning_seg.processes import world_size


def gather_embeddings(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Gather the nodes of all processes, for one graph over all of them.

    If every process computes the same loss of the result, the average of the processes' weight
    gradients, which `DistributedDataParallel` takes, is the gradient of one process with all
    nodes. The loss is the same only if the triplets are: give every process a `torch.Generator`
    with the same seed.

    Args:
        embeddings: (n, D); n may differ between processes, D and the dtype may not. Embeddings in
            half precision have their gradients summed in half precision.
        labels: (n,) integer class ids.

    Returns:
        (N, D) embeddings and (N,) labels of all processes in the order of their ranks; the
        arguments themselves where training is not distributed. The backward pass is a collective
        operation: all processes have to run it, or none.

    Raises:
        ValueError: The shapes do not fit.
    """
    require_labels(labels)
    require_rows(embeddings, labels)
    if world_size() == 1:
        return embeddings, labels
    # (processes,) numbers of nodes
    sizes = _all_gather(torch.tensor([len(labels)], device=labels.device)).flatten().tolist()
    if max(sizes) == 0:
        return embeddings, labels
    # A collective operation takes equal shapes, so that shorter tensors are padded:
    # (n, D) -> (largest n, D) -> (processes, largest n, D)
    missing = max(sizes) - len(labels)
    every_embedding: Tensor = _AllGather.apply(F.pad(embeddings, (0, 0, 0, missing)))
    every_label = _all_gather(F.pad(labels, (0, missing)))
    if min(sizes) == max(sizes):
        return every_embedding.flatten(0, 1), every_label.flatten()
    # Drop the padding: (processes, largest n, D) -> (N, D)
    return (
        torch.cat([part[:size] for part, size in zip(every_embedding, sizes, strict=True)]),
        torch.cat([part[:size] for part, size in zip(every_label, sizes, strict=True)]),
    )


class _AllGather(torch.autograd.Function):
    """Gather (...) tensors to (processes, ...); the gradient is summed over all processes.

    `torch.distributed.nn.functional.all_gather` does the same, but is deprecated.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _all_gather(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> Tensor:
        total = outputs[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[dist.get_rank()]


def _all_gather(values: Tensor) -> Tensor:
    """Return (processes, ...), the (...) values of all processes, without gradient."""
    every = values.new_empty((world_size(), *values.shape))
    dist.all_gather(list(every), values.contiguous())
    return every
