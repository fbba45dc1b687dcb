"""Mix-and-Match: patches of one class pulled together by triplets read off a class-wise graph.

Nodes are patches, with embeddings e on the unit sphere. They enter a graph in random order; each
is tied to one node of its class that is already there, its positive p, and is given one of
another class, its negative n. Those that come too early for either choose once all are in. With d
the squared distance and N the number of nodes that have both, they minimise

    L = 1/(2N) sum_i max(0, margin + d(e_i, e_p) - d(e_i, e_n))

The ties of a class form a tree, so that each class is one connected component in every batch,
which independent draws do not grant. Embeddings behind a ReLU have d <= 2: below the margin of
2.1 every triplet counts, and L = (margin + mean d(e_i, e_p) - mean d(e_i, e_n)) / 2.

X. Zhan, Z. Liu, P. Luo, X. Tang, C. C. Loy: Mix-and-Match Tuning for Self-Supervised Semantic
Segmentation (AAAI 2018, arXiv 1712.00661). The graph and the factor 1/2 follow the authors' code.
It pairs the only node of a class with itself and takes the zero vector for a missing negative;
here such nodes are left out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_seg.numerics import at_least_float32, masked_mean
from lightning_seg.processes import world_size

MARGIN = 2.1
_FAR = 1 << 62  # draws are smaller
_ROWS = 1024  # of the matrix of all distances, at a time


class Triplets(NamedTuple):
    """Anchor, positive and negative for each of N nodes: `triplet_loss(embeddings, *triplets)`."""

    indices: Tensor
    """(N, 3) int64; row i is node i, its positive and its negative, or (i, i, i) if not valid."""
    valid: Tensor
    """(N,) bool, False for void nodes and where there is no positive or no negative."""


class TripletStatistics(NamedTuple):
    """What tells how far the classes of a batch are apart; float scalars without gradient."""

    positive_distance: Tensor
    """Mean squared distance of anchor and positive; 0 without triplets, like the next two."""
    negative_distance: Tensor
    """Mean squared distance of anchor and negative."""
    accuracy: Tensor
    """Share of the triplets whose positive is nearer than their negative."""
    classes: Tensor
    """Number of classes among the nodes."""
    singleton_share: Tensor
    """Share of these classes that have one node."""


def class_graph_triplets(
    labels: Tensor, generator: torch.Generator | None = None, ignore_index: int = 255
) -> Triplets:
    """Read one triplet per node off a class-wise connected graph.

    Nodes are inserted in random order. The positive is uniform among the nodes of the class that
    were inserted before, or for the first of its class among all the others; the negative
    likewise among those of other classes. All sampling is on the labels' device and waits for
    nothing; time and memory are O(N log N) and O(N).

    Args:
        labels: (N,) integer class ids, or `ignore_index`.
        generator: Decides everything random, alike on all devices if it lives on the CPU. None
            takes the global one of the labels' device.
        ignore_index: The id of void nodes: they have no triplet and are in nobody's.

    Raises:
        ValueError: Labels of another shape or kind.

    Example:
        Two nodes of one class and one of another have no choice; the latter has no positive.

        >>> triplets = class_graph_triplets(torch.tensor([7, 7, 3]))
        >>> triplets.indices.tolist(), triplets.valid.tolist()
        ([[0, 1, 2], [1, 0, 2], [2, 2, 2]], [True, True, False])
    """
    return _triplets(labels, generator, ignore_index, graph=True)


def random_triplets(
    labels: Tensor, generator: torch.Generator | None = None, ignore_index: int = 255
) -> Triplets:
    """Draw every node's positive and negative independently: the paper's baseline.

    Both are uniform among all other nodes of the class and all nodes of other classes. Arguments
    and errors as of `class_graph_triplets`.

    Example:
        >>> random_triplets(torch.tensor([4, 9, 4])).indices.tolist()
        [[0, 2, 1], [1, 1, 1], [2, 0, 1]]
    """
    return _triplets(labels, generator, ignore_index, graph=False)


def triplet_loss(
    embeddings: Tensor, triplets: Tensor, valid: Tensor | None = None, margin: float = MARGIN
) -> Tensor:
    """Half the mean of `max(0, margin + |a - p|^2 - |a - n|^2)` over the valid triplets.

    With squared distances and without a root, unlike `torch.nn.TripletMarginLoss`.

    Args:
        embeddings: (N, D), any floating dtype; computed in float32 at least. To be scaled to
            length 1 before: `unit_vectors`.
        triplets: (T, 3) int64 rows of anchor, positive and negative.
        valid: (T,) bool, False where a triplet does not count; None counts all.
        margin: How much further the negative is to be. Unit vectors have squared distances up to
            4, or 2 if no component is negative.

    Returns:
        A scalar, at least 0; 0 with a zero gradient where no triplet is valid. `margin / 2` if
        all embeddings are equal.

    Raises:
        ValueError: Shapes that do not fit.

    Example:
        The positive is where the anchor is, the negative at a right angle: (2.1 + 0 - 2) / 2.

        >>> embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> round(triplet_loss(embeddings, torch.tensor([[0, 1, 2]])).item(), 4)
        0.05
    """
    positive, negative = _distances(embeddings, triplets)
    hinge = (margin + positive - negative).relu()
    if valid is None:
        valid = torch.ones_like(hinge, dtype=torch.bool)
    return masked_mean(hinge, valid) / 2


def triplet_statistics(
    embeddings: Tensor,
    labels: Tensor,
    triplets: Tensor,
    valid: Tensor | None = None,
    ignore_index: int = 255,
) -> TripletStatistics:
    """Measure how well a batch's triplets and classes are told apart.

    Args:
        embeddings: (N, D), as for `triplet_loss`.
        labels: (N,) integer class ids, or `ignore_index`.
        triplets: (T, 3) int64 rows of anchor, positive and negative.
        valid: (T,) bool, False where a triplet does not count.
        ignore_index: The id of void nodes.

    Raises:
        ValueError: Shapes that do not fit.

    Example:
        Two classes of three, the second with one node.

        >>> embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> labels = torch.tensor([0, 0, 1])
        >>> found = triplet_statistics(embeddings, labels, torch.tensor([[0, 1, 2]]))
        >>> [each.item() for each in found]
        [0.0, 2.0, 1.0, 2.0, 0.5]
    """
    _require_labels(labels)
    with torch.no_grad():
        positive, negative = _distances(embeddings, triplets)
        if valid is None:
            valid = torch.ones_like(positive, dtype=torch.bool)
        ordered = labels.sort().values
        first, size = _runs(ordered)
        known = ordered != ignore_index
        starts = known & (first == torch.arange(len(first), device=first.device))
        classes = starts.sum().to(positive.dtype)
        return TripletStatistics(
            masked_mean(positive, valid),
            masked_mean(negative, valid),
            masked_mean((positive < negative).to(positive.dtype), valid),
            classes,
            (starts & (size == 1)).sum() / classes.clamp(min=1),
        )


def recall_at_1(embeddings: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    """Return the share of nodes whose nearest other node has their class.

    Nodes that are the only one of their class do not count, but may be the nearest of others. Of
    several nearest ones any may be taken.

    Args:
        embeddings: (N, D), any floating dtype; distances are Euclidean, in float32 at least.
        labels: (N,) integer class ids, or `ignore_index` for nodes that are left out.
        ignore_index: The id of void nodes.

    Returns:
        A float scalar in [0, 1], without gradient; 0 where no node counts.

    Raises:
        ValueError: Shapes that do not fit.

    Example:
        The third node is nearest to one of another class; the last is alone in its class.

        >>> embeddings = torch.tensor([[0.0], [1.0], [5.0], [6.0]])
        >>> round(recall_at_1(embeddings, torch.tensor([0, 0, 0, 1])).item(), 4)
        0.6667
    """
    _require_labels(labels)
    _require_rows(embeddings, labels)
    with torch.no_grad(), torch.autocast(embeddings.device.type, enabled=False):
        embeddings = at_least_float32(embeddings)
        known = labels != ignore_index
        squares = embeddings.square().sum(1)
        hits, counted = [], []
        for begin in range(0, len(labels), _ROWS):
            rows = slice(begin, begin + _ROWS)
            # |x - y|^2 = |x|^2 + |y|^2 - 2 x.y, of which |x|^2 is the same in a row
            near = 2 * embeddings[rows] @ embeddings.T - squares
            near.masked_fill_(~known, -torch.inf).diagonal(begin).fill_(-torch.inf)
            hits.append(labels[near.max(1).indices] == labels[rows])
            same = (labels[rows, None] == labels).sum(1)
            counted.append((same > 1) & known[rows])
        if not hits:
            return embeddings.new_zeros(())
        return masked_mean(torch.cat(hits).to(embeddings.dtype), torch.cat(counted))


def gather_embeddings(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nodes of all processes, for one graph over all of them.

    If each process computes the same loss of the result, gradients of the weights averaged over
    processes, as `DistributedDataParallel` does, are those of one process with all nodes. The
    triplets must then be the same everywhere: give each process an equal `torch.Generator`.
    Alone, nodes come back as they are.

    Args:
        embeddings: (n, D); n may differ between processes, D and the dtype may not. Scaled to
            length 1 before: what is gathered in half precision has its gradient summed in it.
        labels: (n,) class ids.

    Returns:
        (N, D) embeddings and (N,) labels, processes in order of their rank. Backward is a
        collective: all processes have to run it, or none.

    Raises:
        ValueError: Shapes that do not fit.
    """
    _require_labels(labels)
    _require_rows(embeddings, labels)
    if world_size() == 1:
        return embeddings, labels
    sizes = _all_gather(torch.tensor([len(labels)], device=labels.device)).flatten().tolist()
    if max(sizes) == 0:
        return embeddings, labels
    missing = max(sizes) - len(labels)  # a collective wants equal shapes
    every_embedding: Tensor = _AllGather.apply(F.pad(embeddings, (0, 0, 0, missing)))
    every_label = _all_gather(F.pad(labels, (0, missing)))
    if min(sizes) == max(sizes):
        return every_embedding.flatten(0, 1), every_label.flatten()
    return (
        torch.cat([part[:size] for part, size in zip(every_embedding, sizes, strict=True)]),
        torch.cat([part[:size] for part, size in zip(every_label, sizes, strict=True)]),
    )


class _AllGather(torch.autograd.Function):
    """(...) of each process to (processes, ...); the gradient is the sum over all processes.

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
    every = values.new_empty((world_size(), *values.shape))
    dist.all_gather(list(every), values.contiguous())
    return every


def _triplets(
    labels: Tensor, generator: torch.Generator | None, ignore_index: int, graph: bool
) -> Triplets:
    _require_labels(labels)
    on_cpu = generator is not None and generator.device.type == "cpu"
    source = labels.device if generator is None else generator.device
    draws = torch.randint(_FAR, (3, len(labels)), generator=generator, device=source)
    moment, pick, other_pick = draws.to(labels.device, non_blocking=on_cpu)
    known = labels != ignore_index
    order = moment.where(known, _FAR).argsort()  # node of each moment; void ones last
    moments = labels[order].argsort(stable=True)  # classes side by side, each in order of insertion
    nodes = order[moments]
    first, size = _runs(labels[nodes])
    earlier = torch.arange(len(nodes), device=nodes.device) - first  # of the class
    earlier_others = moments - earlier
    others = known.sum() - size

    # a draw among the class's others, counted round from behind the node
    step = (earlier + 1 + pick % (size - 1).clamp(min=1)) % size
    if graph:
        step = (pick % earlier.clamp(min=1)).where(earlier > 0, step)
    positive = nodes[first + step]

    choices = earlier_others.where(earlier_others > 0, others) if graph else others
    place = other_pick % choices.clamp(min=1)
    # The k-th of other classes stands behind all nodes of this class that have at most k others
    # before them. Within a class these counts ascend, so one search serves all classes.
    stride = len(nodes) + 1
    skipped = torch.searchsorted(
        first * stride + earlier_others, first * stride + place, right=True
    )
    at = place + skipped - first
    negative = order[at.clamp(max=len(nodes) - 1)]

    valid = (size > 1) & (others > 0) & known[nodes]
    found = torch.stack([nodes, positive.where(valid, nodes), negative.where(valid, nodes)], 1)
    back = nodes.argsort()
    return Triplets(found[back], valid[back])


def _runs(ordered: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each element's run of equals begins in a sorted tensor, and how long it is."""
    first = torch.searchsorted(ordered, ordered)
    return first, torch.searchsorted(ordered, ordered, right=True) - first


def _distances(embeddings: Tensor, triplets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squared distances of each triplet's positive and negative, (T,) both."""
    if embeddings.ndim != 2 or triplets.ndim != 2 or triplets.shape[1] != 3:
        raise ValueError(
            f"embeddings {tuple(embeddings.shape)} and triplets {tuple(triplets.shape)} do not "
            "fit: expected (N, D) and (T, 3)"
        )
    embeddings = at_least_float32(embeddings)
    # rows by F.embedding: its backward takes less time than indexing's
    anchor, positive, negative = (F.embedding(each, embeddings) for each in triplets.unbind(1))
    return (anchor - positive).square().sum(1), (anchor - negative).square().sum(1)


def _require_labels(labels: Tensor) -> None:
    if labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(f"labels {tuple(labels.shape)} of {labels.dtype}: expected (N,) class ids")


def _require_rows(embeddings: Tensor, labels: Tensor) -> None:
    if embeddings.ndim != 2 or len(embeddings) != len(labels):
        raise ValueError(
            f"embeddings {tuple(embeddings.shape)} and labels {tuple(labels.shape)} do not fit: "
            "expected (N, D) and (N,)"
        )
