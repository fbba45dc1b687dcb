"""Triplets of patches and their loss: Mix-and-Match with a class-wise connected graph.

The nodes of the graph are patches with class ids and embeddings e on the unit sphere. Nodes enter
the graph in random order. Each node gets an edge to a node of its class that entered earlier, its
positive p, and a node of another class that entered earlier, its negative n. A node that has no
earlier candidate draws from all nodes instead. With N the number of nodes that have both,

    L = 1/(2N) sum_i max(0, margin + |e_i - e_p|^2 - |e_i - e_n|^2)

The edges to positives of a class form a tree, so that each class is one connected component in
every batch; independent draws do not guarantee this. Embeddings without negative components, such
as those after a ReLU, have squared distances of at most 2. With a margin of 2.1 every triplet then
has a positive loss, and L = (margin + mean |e_i - e_p|^2 - mean |e_i - e_n|^2) / 2.

X. Zhan, Z. Liu, P. Luo, X. Tang, C. C. Loy: Mix-and-Match Tuning for Self-Supervised Semantic
Segmentation (AAAI 2018, arXiv 1712.00661). The graph and the factor 1/2 follow the authors' code.

Difference from the authors' code: nodes without a positive or a negative have no triplet. The
authors' code pairs the only node of a class with itself, and replaces a missing negative by the
zero vector.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_seg.numerics import at_least_float32, masked_mean

MARGIN = 2.1
"""The margin of the authors' code, above the largest squared distance, 2, after a ReLU."""
_FAR = 1 << 62  # upper bound of the random integers
_ROWS = 1024  # rows of the matrix of all distances that are computed at a time


class Triplets(NamedTuple):
    """One triplet per node, in the order that `triplet_loss(embeddings, *triplets)` takes."""

    indices: Tensor
    """(N, 3) int64; row i holds node i, its positive and its negative; (i, i, i) if not valid."""
    valid: Tensor
    """(N,) bool, False for void nodes and for nodes without a positive or a negative."""


class TripletStatistics(NamedTuple):
    """Statistics of how well a batch's classes are separated; float scalars without gradient."""

    positive_distance: Tensor
    """Mean squared distance of anchor and positive; 0 without valid triplets."""
    negative_distance: Tensor
    """Mean squared distance of anchor and negative; 0 without valid triplets."""
    accuracy: Tensor
    """Share of triplets whose positive is nearer than the negative; 0 without valid triplets."""
    classes: Tensor
    """Number of classes among the nodes."""
    singleton_share: Tensor
    """Share of the classes that have one node only."""


def class_graph_triplets(
    labels: Tensor, generator: torch.Generator | None = None, ignore_index: int = 255
) -> Triplets:
    """Read one triplet per node off a class-wise connected graph.

    Nodes are inserted in random order. The positive of a node is drawn uniformly from the nodes of
    its class that were inserted earlier; the first node of a class draws from all others of its
    class. The negative is drawn uniformly from the nodes of other classes that were inserted
    earlier; where there is none, from all nodes of other classes. Sampling runs on the device of
    the labels without synchronisation, in O(N log N) time and O(N) memory.

    Args:
        labels: (N,) integer class ids, or `ignore_index`.
        generator: Source of all random numbers. A generator on the CPU gives the same triplets on
            every device. None takes the global generator of the labels' device.
        ignore_index: The class id of void nodes, which are in no triplet.

    Returns:
        One triplet per node.

    Raises:
        ValueError: `labels` is not one-dimensional or not of an integer type.

    Examples:
        Two nodes of class 7 and one of class 3 leave no choice. The node of class 3 has no
        positive.

        >>> triplets = class_graph_triplets(torch.tensor([7, 7, 3]))
        >>> triplets.indices.tolist(), triplets.valid.tolist()
        ([[0, 1, 2], [1, 0, 2], [2, 2, 2]], [True, True, False])
    """
    return _triplets(labels, generator, ignore_index, graph=True)


def random_triplets(
    labels: Tensor, generator: torch.Generator | None = None, ignore_index: int = 255
) -> Triplets:
    """Draw the positive and the negative of every node independently, the baseline of the paper.

    The positive is drawn uniformly from all other nodes of the class, the negative from all nodes
    of other classes.

    Args:
        labels: (N,) integer class ids, or `ignore_index`.
        generator: Source of all random numbers. A generator on the CPU gives the same triplets on
            every device. None takes the global generator of the labels' device.
        ignore_index: The class id of void nodes, which are in no triplet.

    Returns:
        One triplet per node.

    Raises:
        ValueError: `labels` is not one-dimensional or not of an integer type.

    Examples:
        >>> random_triplets(torch.tensor([4, 9, 4])).indices.tolist()
        [[0, 2, 1], [1, 1, 1], [2, 0, 1]]
    """
    return _triplets(labels, generator, ignore_index, graph=False)


def triplet_loss(
    embeddings: Tensor,
    triplets: Tensor,
    valid: Tensor | None = None,
    margin: float = MARGIN,
    across_ranks: bool = False,
) -> Tensor:
    """Return half the mean of max(0, margin + |a - p|^2 - |a - n|^2) over the valid triplets.

    The distances are squared, unlike those of `torch.nn.TripletMarginLoss`.

    Args:
        embeddings: (N, D), any floating dtype; computed in float32 or wider. The equation expects
            rows of length 1, which `unit_vectors` makes.
        triplets: (T, 3) int64 rows of the indices of anchor a, positive p and negative n.
        valid: (T,) bool, False for triplets to leave out; None counts all.
        margin: Difference of the squared distances of negative and positive from which a triplet
            has no loss. Squared distances of unit vectors are at most 4, or 2 without negative
            components.
        across_ranks: Take the mean over the triplets of all processes; see `numerics.mean_of`. With
            `gather_embeddings` every process has all triplets, and False is right.

    Returns:
        A scalar, at least 0; 0 with a zero gradient where no triplet is valid, `margin / 2` where
        all embeddings are equal.

    Raises:
        ValueError: The shapes do not fit.

    Examples:
        The positive equals the anchor, and the negative is orthogonal to it: (2.1 + 0 - 2) / 2.

        >>> embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> round(triplet_loss(embeddings, torch.tensor([[0, 1, 2]])).item(), 4)
        0.05
    """
    positive, negative = _distances(embeddings, triplets)
    hinge = (margin + positive - negative).relu()
    if valid is None:
        valid = torch.ones_like(hinge, dtype=torch.bool)
    return masked_mean(hinge, valid, across_ranks) / 2


def triplet_statistics(
    embeddings: Tensor,
    labels: Tensor,
    triplets: Tensor,
    valid: Tensor | None = None,
    ignore_index: int = 255,
) -> TripletStatistics:
    """Measure how well the classes of a batch are separated.

    Args:
        embeddings: (N, D), any floating dtype; computed in float32 or wider.
        labels: (N,) integer class ids, or `ignore_index`.
        triplets: (T, 3) int64 rows of the indices of anchor, positive and negative.
        valid: (T,) bool, False for triplets to leave out; None counts all.
        ignore_index: The class id of void nodes.

    Returns:
        Distances, accuracy and class counts, without gradient.

    Raises:
        ValueError: The shapes do not fit.

    Examples:
        One triplet of three nodes. The second class has one node only.

        >>> embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> labels = torch.tensor([0, 0, 1])
        >>> statistics = triplet_statistics(embeddings, labels, torch.tensor([[0, 1, 2]]))
        >>> [each.item() for each in statistics]
        [0.0, 2.0, 1.0, 2.0, 0.5]
    """
    require_labels(labels)
    with torch.no_grad():
        positive, negative = _distances(embeddings, triplets)  # (T,) each
        if valid is None:
            valid = torch.ones_like(positive, dtype=torch.bool)
        ordered = labels.sort().values
        first, size = _runs(ordered)  # (N,) each: the class's first node, and its size
        known = ordered != ignore_index
        # (N,): True at the first node of each class
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

    The only node of a class does not count, but may be the nearest node of others. Among several
    nearest nodes any may be taken.

    Args:
        embeddings: (N, D), any floating dtype; distances are Euclidean, computed in float32 or
            wider.
        labels: (N,) integer class ids, or `ignore_index` for nodes to leave out.
        ignore_index: The class id of void nodes.

    Returns:
        A float scalar in [0, 1], without gradient; 0 where no node counts.

    Raises:
        ValueError: The shapes do not fit.

    Examples:
        The nearest node of the third has another class. The fourth is alone in its class and does
        not count: 2 of 3 are right.

        >>> embeddings = torch.tensor([[0.0], [1.0], [5.0], [6.0]])
        >>> round(recall_at_1(embeddings, torch.tensor([0, 0, 0, 1])).item(), 4)
        0.6667
    """
    require_labels(labels)
    require_rows(embeddings, labels)
    with torch.no_grad(), torch.autocast(embeddings.device.type, enabled=False):
        embeddings = at_least_float32(embeddings)
        known = labels != ignore_index
        squares = embeddings.square().sum(1)  # (N, D) -> (N,)
        hits, counted = [], []
        for begin in range(0, len(labels), _ROWS):
            rows = slice(begin, begin + _ROWS)
            # |x - y|^2 = |x|^2 + |y|^2 - 2 x.y, and |x|^2 is the same for a whole row. The largest
            # (rows, N) value is the nearest node.
            near = 2 * embeddings[rows] @ embeddings.T - squares
            near.masked_fill_(~known, -torch.inf).diagonal(begin).fill_(-torch.inf)
            # (rows,) each: whether the nearest node has the class, and whether the node counts
            hits.append(labels[near.max(1).indices] == labels[rows])
            same = (labels[rows, None] == labels).sum(1)
            counted.append((same > 1) & known[rows])
        if not hits:
            return embeddings.new_zeros(())
        return masked_mean(torch.cat(hits).to(embeddings.dtype), torch.cat(counted))


def _triplets(
    labels: Tensor, generator: torch.Generator | None, ignore_index: int, graph: bool
) -> Triplets:
    """Draw one triplet per node, from earlier nodes of a graph or from all nodes."""
    require_labels(labels)
    on_cpu = generator is not None and generator.device.type == "cpu"
    source = labels.device if generator is None else generator.device
    draws = torch.randint(_FAR, (3, len(labels)), generator=generator, device=source)
    # three of (N,): the order of insertion, and one number each for positive and negative
    moment, pick, other_pick = draws.to(labels.device, non_blocking=on_cpu)
    known = labels != ignore_index
    order = moment.where(known, _FAR).argsort()  # (N,) node of each moment; void nodes last
    # (N,) moments sorted by class; within a class in the order of insertion
    moments = labels[order].argsort(stable=True)
    nodes = order[moments]
    first, size = _runs(labels[nodes])  # (N,) each: where the node's class begins, and its size
    earlier = torch.arange(len(nodes), device=nodes.device) - first  # earlier nodes of the class
    earlier_others = moments - earlier
    others = known.sum() - size  # (N,) nodes of other classes

    # A draw among all others of the class counts round the class, beginning after the node.
    step = (earlier + 1 + pick % (size - 1).clamp(min=1)) % size
    if graph:
        step = (pick % earlier.clamp(min=1)).where(earlier > 0, step)
    positive = nodes[first + step]  # (N,)

    # (N,) number of nodes of other classes to choose from, and which of them is chosen
    choices = earlier_others.where(earlier_others > 0, others) if graph else others
    place = other_pick % choices.clamp(min=1)
    # The moment of the place-th node of other classes is `place` plus the number of nodes of this
    # class that have at most `place` nodes of other classes before them. Within a class the counts
    # `earlier_others` rise, so one binary search over all classes finds that number.
    stride = len(nodes) + 1
    skipped = torch.searchsorted(
        first * stride + earlier_others, first * stride + place, right=True
    )
    at = place + skipped - first
    negative = order[at.clamp(max=len(nodes) - 1)]  # (N,)

    valid = (size > 1) & (others > 0) & known[nodes]
    # (N, 3), sorted by class -> in the order of the labels
    indices = torch.stack([nodes, positive.where(valid, nodes), negative.where(valid, nodes)], 1)
    back = nodes.argsort()
    return Triplets(indices[back], valid[back])


def _runs(ordered: Tensor) -> tuple[Tensor, Tensor]:
    """Return the start and the length of the run of equal values around each element.

    Args:
        ordered: (N,) sorted values.

    Returns:
        Two of (N,) int64.
    """
    first = torch.searchsorted(ordered, ordered)
    return first, torch.searchsorted(ordered, ordered, right=True) - first


def _distances(embeddings: Tensor, triplets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squared distances of each triplet's positive and negative from its anchor.

    Args:
        embeddings: (N, D).
        triplets: (T, 3).

    Returns:
        Two of (T,).
    """
    if embeddings.ndim != 2 or triplets.ndim != 2 or triplets.shape[1] != 3:
        raise ValueError(
            f"embeddings {tuple(embeddings.shape)} and triplets {tuple(triplets.shape)} do not "
            "fit: expected (N, D) and (T, 3)"
        )
    embeddings = at_least_float32(embeddings)
    # three of (T, D); the backward pass of F.embedding takes less time than that of indexing
    anchor, positive, negative = (F.embedding(each, embeddings) for each in triplets.unbind(1))
    return (anchor - positive).square().sum(1), (anchor - negative).square().sum(1)


def require_labels(labels: Tensor) -> None:
    """Raise an error unless labels are integers of one dimension.

    Args:
        labels: Expected to be (N,) class ids.

    Raises:
        ValueError: With the shape and the dtype.
    """
    if labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(f"labels {tuple(labels.shape)} of {labels.dtype}: expected (N,) class ids")


def require_rows(embeddings: Tensor, labels: Tensor) -> None:
    """Raise an error unless embeddings have one row per label.

    Args:
        embeddings: Expected to be (N, D).
        labels: (N,) class ids.

    Raises:
        ValueError: With both shapes.
    """
    if embeddings.ndim != 2 or len(embeddings) != len(labels):
        raise ValueError(
            f"embeddings {tuple(embeddings.shape)} and labels {tuple(labels.shape)} do not fit: "
            "expected (N, D) and (N,)"
        )
