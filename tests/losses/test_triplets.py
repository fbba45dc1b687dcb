"""Triplets against the sequential definition, plain loops, closed forms and two processes."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import nn
from two_processes import ROOT, run_two

from lightning_seg.losses import (
    Triplets,
    class_graph_triplets,
    gather_embeddings,
    random_triplets,
    recall_at_1,
    triplet_loss,
    triplet_statistics,
    unit_vectors,
)

SAMPLERS = [class_graph_triplets, random_triplets]
HALF = [torch.bfloat16, torch.float16]
VOID = 255


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def components(nodes, edges):
    """Number of connected components, by union-find."""
    parent = {node: node for node in nodes}

    def root(node):
        while parent[node] != node:
            node = parent[node]
        return node

    for one, other in edges:
        parent[root(one)] = root(other)
    return len({root(node) for node in nodes})


def batch(nodes, classes, seed, void=0.0):
    """Labels in a skewed mix, some of them void."""
    generator = seeded(seed)
    labels = (torch.rand(nodes, generator=generator) ** 2 * classes).long() * 3 + 1
    return labels.where(torch.rand(nodes, generator=generator) >= void, VOID)


# What triplets are


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("void", [0.0, 0.3, 0.95])
@pytest.mark.parametrize("nodes", [1, 2, 3, 17, 400])
def test_every_node_is_an_anchor_once_with_a_positive_and_a_negative(nodes, void, sampler):
    seen = Counter()
    for seed in range(25):
        labels = batch(nodes, 1 + seed % 23, seed, void)
        triplets = sampler(labels, seeded(seed))
        assert triplets.indices.shape == (nodes, 3)
        assert triplets.indices.dtype == torch.int64
        assert triplets.valid.dtype == torch.bool
        label, sizes = labels.tolist(), Counter(labels.tolist())
        known = nodes - sizes[VOID]
        rows = zip(triplets.indices.tolist(), triplets.valid.tolist(), strict=True)
        for node, ((anchor, positive, negative), valid) in enumerate(rows):
            size = sizes[label[node]]
            assert valid == (label[node] != VOID and 1 < size < known)
            assert anchor == node
            if valid:
                assert positive != node
                assert label[positive] == label[node]
                assert label[negative] not in (label[node], VOID)
            else:
                assert (positive, negative) == (node, node)
            seen[valid] += 1
    assert seen[True] > 100 or nodes < 17 or void == 0.95
    assert seen[False]  # one class, or a class of one node


def test_each_class_is_one_component():
    torn = []
    for seed in range(60):
        labels = batch(400, 21, seed)
        label = labels.tolist()
        for sampler in SAMPLERS:
            indices, valid = sampler(labels, seeded(seed))
            edges = [(anchor, positive) for anchor, positive, _ in indices[valid].tolist()]
            assert len(edges) + sum(label.count(each) == 1 for each in set(label)) == 400
            found = components(range(400), edges)
            if sampler is class_graph_triplets:
                assert found == len(set(label))
            else:
                torn.append(found - len(set(label)))
    assert min(torn) >= 0
    assert sum(extra > 0 for extra in torn) > 50  # independent draws do not connect


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("labels", [[], [3], [3, 3, 3], [1, 2, 3], [VOID, VOID], [5, 5, VOID]])
def test_batches_without_any_triplet(labels, sampler):
    indices, valid = sampler(torch.tensor(labels, dtype=torch.int64))
    assert indices.tolist() == [[node] * 3 for node in range(len(labels))]
    assert not valid.any()
    embeddings = torch.randn(len(labels), 4, requires_grad=True)
    loss = triplet_loss(embeddings, indices, valid)
    loss.backward()
    assert loss == 0
    assert torch.equal(embeddings.grad, torch.zeros_like(embeddings))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_kinds_of_labels(dtype, sampler):
    labels = batch(50, 5, 1, 0.2)
    expected = sampler(labels, seeded(3))
    found = sampler(labels.to(dtype), seeded(3))
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.valid, expected.valid)


def test_another_void():
    labels = torch.tensor([-1, 255, 255, 0, 0, -1])
    indices, valid = class_graph_triplets(labels, ignore_index=-1)
    assert valid.tolist() == [False, True, True, True, True, False]
    assert indices[:, 1].tolist() == [0, 2, 1, 4, 3, 5]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_wrong_labels(sampler):
    for wrong in (torch.zeros(2, 2, dtype=torch.int64), torch.zeros(3)):
        with pytest.raises(ValueError, match="expected"):
            sampler(wrong)


# Chance


def sequential(labels, order):
    """Positives and negatives each node may get, the authors' way; each is drawn uniformly."""
    inserted, choices = [], {}
    for node in order:
        choices[node] = (
            [each for each in inserted if labels[each] == labels[node]],
            [each for each in inserted if labels[each] != labels[node]],
        )
        inserted.append(node)
    return {
        node: (
            same or [each for each in order if labels[each] == labels[node] and each != node],
            other or [each for each in order if labels[each] != labels[node]],
        )
        for node, (same, other) in choices.items()
    }


def independent(labels, order):
    return {
        node: (
            [each for each in order if labels[each] == labels[node] and each != node],
            [each for each in order if labels[each] != labels[node]],
        )
        for node in order
    }


@pytest.mark.parametrize(
    ("sampler", "definition"),
    [(class_graph_triplets, sequential), (random_triplets, independent)],
)
@pytest.mark.parametrize("labels", [[4, VOID, 4, 9, 2, 4, 9], [4, VOID, 4, 9, 4, 9]])
def test_chances_are_those_of_the_definition(labels, sampler, definition):
    """Exact probabilities, from all orders of insertion, against counts."""
    known = [node for node, label in enumerate(labels) if label != VOID]
    with_both = [node for node in known if labels.count(labels[node]) > 1]
    # what is drawn together: both partners of a node; three nodes' positives; their negatives
    groups = [[(node, 0), (node, 1)] for node in with_both]
    groups += [[(node, kind) for node in (0, 2, 3)] for kind in (0, 1)]
    chances = [defaultdict(float) for _ in groups]
    orders = list(itertools.permutations(known))
    for order in orders:
        choices = definition(labels, order)
        for group, chance in zip(groups, chances, strict=True):
            sets = [choices[node][kind] for node, kind in group]
            for drawn in itertools.product(*sets):
                chance[drawn] += 1 / math.prod(map(len, sets)) / len(orders)
    draws, generator = 6000, seeded(0)
    counts = [Counter() for _ in groups]
    for _ in range(draws):
        rows = sampler(torch.tensor(labels), generator).indices.tolist()
        for group, count in zip(groups, counts, strict=True):
            count[tuple(rows[node][1 + kind] for node, kind in group)] += 1
    for chance, count in zip(chances, counts, strict=True):
        assert set(count) <= set(chance)
        found, expected = zip(
            *[(count[each], draws * chance[each]) for each in chance], strict=True
        )
        assert stats.chisquare(found, expected).pvalue > 0.001


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_generator_decides_everything(sampler):
    labels = batch(60, 6, 0)
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(len(found))
        state = torch.get_rng_state()
        found.append(sampler(labels, seeded(seed)).indices)
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    generator = seeded(3)
    first, second = (sampler(labels, generator).indices for _ in range(2))
    assert torch.equal(first, found[0])
    assert not torch.equal(first, second)
    again = []
    for _ in range(2):
        torch.manual_seed(8)
        again.append(sampler(labels).indices)
    assert torch.equal(*again)


# The loss


def reference(embeddings, triplets, valid=None, margin=2.1):
    rows, total, count = embeddings.double().tolist(), 0.0, 0
    known = [True] * len(triplets) if valid is None else valid.tolist()
    for (anchor, positive, negative), ok in zip(triplets.tolist(), known, strict=True):
        if ok:
            near, far = (
                sum((x - y) ** 2 for x, y in zip(rows[anchor], rows[other], strict=True))
                for other in (positive, negative)
            )
            total += max(0.0, margin + near - far)
            count += 1
    return total / (2 * count) if count else 0.0


def some_triplets(nodes=20, classes=4, width=6, seed=0):
    labels = batch(nodes, classes, seed)
    embeddings = torch.randn(nodes, width, dtype=torch.float64)
    return embeddings, labels, class_graph_triplets(labels, seeded(seed))


@pytest.mark.parametrize("margin", [0.0, 0.2, 2.1, 7.0])
@pytest.mark.parametrize("masked", [False, True])
def test_loss_equals_the_reference(masked, margin):
    embeddings, _, (indices, valid) = some_triplets()
    valid = valid & (torch.arange(len(valid)) % 3 > 0)
    for scale in (0.3, 1.0):
        arguments = (embeddings * scale, indices, valid if masked else None, margin)
        found = triplet_loss(*arguments)
        assert found.shape == ()
        assert found.item() == pytest.approx(reference(*arguments), rel=1e-12)
        single = triplet_loss(arguments[0].float(), *arguments[1:])
        assert single.dtype == torch.float32
        assert single.item() == pytest.approx(reference(*arguments), rel=1e-5)
    if margin == 2.1:
        assert triplet_loss(embeddings, indices) == triplet_loss(embeddings, indices, margin=2.1)


def test_it_is_half_of_torchs_with_squared_distances():
    embeddings, _, (indices, valid) = some_triplets()
    embeddings *= 0.5  # some active, some not
    triplets = indices[valid]
    squared = nn.TripletMarginWithDistanceLoss(
        distance_function=lambda x, y: (x - y).square().sum(1), margin=2.1
    )
    expected = squared(*(embeddings[each] for each in triplets.unbind(1))) / 2
    torch.testing.assert_close(triplet_loss(embeddings, indices, valid), expected)
    plain = nn.TripletMarginLoss(margin=2.1)(*(embeddings[each] for each in triplets.unbind(1)))
    assert abs(plain / 2 - expected) > 0.01  # not the same thing


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF])
def test_collapsed_and_perfect_embeddings(dtype):
    """margin / 2 and (margin - 2) / 2."""
    labels = torch.arange(5).repeat(8)
    triplets = class_graph_triplets(labels, seeded(0))
    collapsed = torch.zeros(40, 5, dtype=dtype)
    collapsed[:, 2] = 1
    assert triplet_loss(collapsed, *triplets).item() == pytest.approx(1.05, rel=1e-6)
    perfect = torch.eye(5, dtype=dtype)[labels]
    assert triplet_loss(perfect, *triplets).item() == pytest.approx(0.05, rel=1e-5)
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=dtype)[labels % 2]
    two = class_graph_triplets(labels % 2, seeded(0))
    assert triplet_loss(opposite, *two).item() == 0  # 2.1 - 4 < 0


def test_embeddings_behind_a_relu_are_always_in_the_linear_regime():
    labels = batch(60, 5, 0)
    embeddings = unit_vectors(torch.randn(60, 9, dtype=torch.float64).relu())
    embeddings.requires_grad_()
    indices, valid = class_graph_triplets(labels, seeded(0))
    loss = triplet_loss(embeddings, indices, valid)
    told = triplet_statistics(embeddings, labels, indices, valid)
    linear = (2.1 + told.positive_distance - told.negative_distance) / 2
    torch.testing.assert_close(loss, linear)
    # (n - p) / N to the anchor, (p - a) / N to the positive, (a - n) / N to the negative
    (gradient,) = torch.autograd.grad(loss, embeddings)
    rows, expected = embeddings.detach(), torch.zeros_like(gradient)
    for anchor, positive, negative in indices[valid].tolist():
        expected[anchor] += (rows[negative] - rows[positive]) / valid.sum()
        expected[positive] += (rows[positive] - rows[anchor]) / valid.sum()
        expected[negative] += (rows[anchor] - rows[negative]) / valid.sum()
    torch.testing.assert_close(gradient, expected)


def test_gradient_equals_finite_differences():
    embeddings = torch.randn(6, 3, dtype=torch.float64)
    indices, valid = class_graph_triplets(torch.tensor([0, 0, 1, 1, 1, 2]), seeded(1))
    leaf = embeddings.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(triplet_loss(leaf, indices, valid), leaf)
    step = 1e-5
    for place in itertools.product(range(6), range(3)):
        shifted = []
        for sign in (1, -1):
            moved = embeddings.clone()
            moved[place] += sign * step
            shifted.append(reference(moved, indices, valid))
        slope = (shifted[0] - shifted[1]) / (2 * step)
        assert gradient[place].item() == pytest.approx(slope, abs=1e-8)
    assert gradient.abs().sum() > 0.1


def test_second_derivatives():
    indices, valid = class_graph_triplets(torch.tensor([0, 0, 1, 1]), seeded(1))
    leaf = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    function = lambda each: triplet_loss(unit_vectors(each), indices, valid)  # noqa: E731
    assert torch.autograd.gradcheck(function, leaf)
    assert torch.autograd.gradgradcheck(function, leaf)


def test_the_order_of_nodes_and_of_triplets_is_nothing():
    embeddings, _, (indices, valid) = some_triplets()
    expected = triplet_loss(embeddings, indices, valid)
    order = torch.randperm(len(embeddings))
    renamed = order.argsort()[indices]
    torch.testing.assert_close(triplet_loss(embeddings[order], renamed, valid), expected)
    rows = torch.randperm(len(indices))
    torch.testing.assert_close(triplet_loss(embeddings, indices[rows], valid[rows]), expected)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_computed_in_float32(autocast, dtype):
    embeddings, labels, (indices, valid) = some_triplets(width=300)
    embeddings = embeddings.to(dtype)
    leaf = embeddings.clone().requires_grad_()
    with torch.autocast("cpu", dtype, enabled=autocast):
        loss = triplet_loss(unit_vectors(leaf), indices, valid)
        told = triplet_statistics(unit_vectors(embeddings), labels, indices, valid)
        recall = recall_at_1(embeddings, labels)
    exact = embeddings.double() / embeddings.double().norm(dim=1, keepdim=True)
    assert loss.dtype == told.negative_distance.dtype == recall.dtype == torch.float32
    assert loss.item() == pytest.approx(reference(exact, indices, valid), rel=1e-5)
    assert recall.item() == pytest.approx(recall_at_1(embeddings.double(), labels).item())
    loss.backward()
    assert leaf.grad.dtype == dtype
    assert leaf.grad.isfinite().all()


def test_zero_vectors_stay_zero_and_have_finite_gradients():
    features = torch.randn(8, 5)
    features[2] = 0
    features.requires_grad_()
    embeddings = unit_vectors(features)
    lengths = embeddings.norm(dim=1).tolist()
    assert lengths == pytest.approx([1, 1, 0, 1, 1, 1, 1, 1])
    triplet_loss(embeddings, *class_graph_triplets(torch.arange(8) % 2)).backward()
    assert features.grad.isfinite().all()
    assert (features.grad[0] != 0).any()


def test_triplets_that_are_not_valid_do_not_matter():
    embeddings, _, (indices, valid) = some_triplets()
    valid = valid & (torch.arange(len(valid)) % 2 > 0)
    kept = indices[valid]
    other = indices.where(valid[:, None], torch.randint(len(embeddings), indices.shape))
    torch.testing.assert_close(
        triplet_loss(embeddings, other, valid), triplet_loss(embeddings, kept)
    )


def test_no_triplets_at_all():
    embeddings = torch.randn(3, 4, requires_grad=True)
    loss = triplet_loss(embeddings, torch.empty(0, 3, dtype=torch.int64))
    loss.backward()
    assert loss == 0
    assert (embeddings.grad == 0).all()


def test_shapes_that_do_not_fit():
    embeddings, labels, (indices, valid) = some_triplets()
    with pytest.raises(ValueError, match=r"\(N, D\) and \(T, 3\)"):
        triplet_loss(embeddings, indices[:, :2])
    with pytest.raises(ValueError, match=r"\(N, D\) and \(T, 3\)"):
        triplet_loss(embeddings[None], indices)
    with pytest.raises(ValueError, match="does not fit"):
        triplet_loss(embeddings, indices, valid[1:])
    for function in (recall_at_1, gather_embeddings):
        with pytest.raises(ValueError, match="do not fit"):
            function(embeddings, labels[1:])


def test_training_tears_classes_apart():
    """From nothing but the loss: d_an - d_ap rises from about 0 to more than 1."""
    labels = torch.arange(4).repeat(10)
    inputs = torch.randn(40, 8) + torch.eye(8)[labels] * 2
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    gaps, generator = [], seeded(0)
    for _ in range(100):
        embeddings = unit_vectors(net(inputs))
        indices, valid = class_graph_triplets(labels, generator)
        told = triplet_statistics(embeddings, labels, indices, valid)
        gaps.append((told.negative_distance - told.positive_distance).item())
        loss = triplet_loss(embeddings, indices, valid)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert gaps[0] < 0.3
    assert gaps[-1] > 1
    assert recall_at_1(embeddings.detach(), labels) > 0.9


# Statistics


def test_statistics_equal_plain_loops():
    for seed in range(10):
        embeddings, labels, (indices, valid) = some_triplets(30, 14, seed=seed)
        labels[3] = labels[4] = VOID
        valid = valid & (torch.arange(30) % 4 > 0)
        near, far = [], []
        for anchor, positive, negative in indices[valid].tolist():
            near.append(torch.dist(embeddings[anchor], embeddings[positive]).item() ** 2)
            far.append(torch.dist(embeddings[anchor], embeddings[negative]).item() ** 2)
        sizes = Counter(label for label in labels.tolist() if label != VOID)
        singletons = [label for label, size in sizes.items() if size == 1]
        found = triplet_statistics(embeddings, labels, indices, valid)
        assert found.positive_distance.item() == pytest.approx(sum(near) / len(near))
        assert found.negative_distance.item() == pytest.approx(sum(far) / len(far))
        nearer = [x < y for x, y in zip(near, far, strict=True)]
        assert found.accuracy.item() == pytest.approx(sum(nearer) / len(nearer))
        assert found.classes.item() == len(sizes)
        assert found.singleton_share.item() == pytest.approx(len(singletons) / len(sizes))


def test_statistics_carry_no_gradient_and_cope_with_nothing():
    embeddings = torch.randn(4, 3, requires_grad=True)
    labels = torch.full((4,), VOID)
    found = triplet_statistics(embeddings, labels, *class_graph_triplets(labels))
    assert [each.item() for each in found] == [0] * 5
    assert not any(each.requires_grad for each in found)
    empty = Triplets(torch.empty(0, 3, dtype=torch.int64), torch.empty(0, dtype=torch.bool))
    found = triplet_statistics(torch.empty(0, 3), labels[:0], *empty)
    assert [each.item() for each in found] == [0] * 5


@pytest.mark.parametrize("nodes", [2, 7, 60, 1100])  # the last in two blocks of rows
def test_recall_equals_plain_distances(nodes):
    embeddings, labels = torch.randn(nodes, 3, dtype=torch.float64), batch(nodes, 9, 2, 0.2)
    embeddings += 0.5 * labels[:, None] % 4
    known = [node for node in range(nodes) if labels[node] != VOID]
    kept, names = embeddings[known], labels[known]
    distances = torch.cdist(kept, kept, compute_mode="donot_use_mm_for_euclid_dist")
    hits = []
    for row, name in enumerate(names.tolist()):
        if (names == name).sum() > 1:
            nearest = min((d, at) for at, d in enumerate(distances[row].tolist()) if at != row)
            hits.append(names[nearest[1]].item() == name)
    found = recall_at_1(embeddings, labels)
    assert found.item() == pytest.approx(sum(hits) / max(len(hits), 1))
    if nodes == 60:
        assert 0.1 < found < 0.9


@pytest.mark.parametrize("labels", [[], [1], [1, 2], [VOID, VOID, 1], [VOID, VOID]])
def test_recall_of_nothing_is_0(labels):
    labels = torch.tensor(labels, dtype=torch.int64)
    assert recall_at_1(torch.randn(len(labels), 2), labels) == 0


# Processes


SCRIPT = """
import os, sys, types
package = sys.modules["lightning_seg"] = types.ModuleType("lightning_seg")
package.__path__ = [sys.argv[2] + "/lightning_seg"]
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from lightning_seg.losses import *

rank, folder = int(os.environ["RANK"]), sys.argv[1]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
results = []
for weight, parts, labels in torch.load(f"{folder}/cases.pt"):
    encoder = torch.nn.Linear(*weight.T.shape, bias=False, dtype=weight.dtype)
    encoder.weight.data.copy_(weight)
    parallel = DistributedDataParallel(encoder)
    embeddings = unit_vectors(parallel(parts[rank]))
    every, all_labels = gather_embeddings(embeddings, labels[rank])
    triplets = class_graph_triplets(all_labels, torch.Generator().manual_seed(5))
    loss = triplet_loss(every, *triplets)
    loss.backward()
    with torch.no_grad():
        again = gather_embeddings(embeddings, labels[rank])
    assert torch.equal(again[0], every)
    results.append((loss.detach(), encoder.weight.grad, every.detach(), all_labels))
torch.save(results, f"{folder}/rank{rank}.pt")
dist.barrier()
dist.destroy_process_group()
"""


def test_two_processes_have_the_gradient_of_one_with_all_nodes(tmp_path: Path):
    """Equal and unequal numbers of nodes, none in one of them or in both, one class, float32."""
    cases = []
    for first, second, classes, dtype in (
        (12, 12, 3, torch.float64),
        (9, 14, 3, torch.float64),
        (7, 0, 4, torch.float64),
        (0, 0, 2, torch.float64),
        (5, 6, 1, torch.float64),
        (20, 20, 4, torch.float32),
    ):
        parts = [torch.randn(nodes, 6, dtype=dtype) for nodes in (first, second)]
        labels = [batch(nodes, classes, nodes) for nodes in (first, second)]
        cases.append((torch.randn(4, 6, dtype=dtype), parts, labels))
    torch.save(cases, tmp_path / "cases.pt")
    run_two(["-c", SCRIPT, str(tmp_path), str(ROOT)], {}, timeout=120)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    learned = []
    for (weight, parts, labels), *found in zip(cases, *ranks, strict=True):
        leaf = weight.clone().requires_grad_()
        embeddings = unit_vectors(torch.cat(parts) @ leaf.T)
        loss = triplet_loss(embeddings, *class_graph_triplets(torch.cat(labels), seeded(5)))
        (gradient,) = torch.autograd.grad(loss, leaf)
        learned.append(bool(gradient.any()))
        for value, own, every, all_labels in found:
            assert torch.equal(all_labels, torch.cat(labels))
            torch.testing.assert_close(every, embeddings.detach())
            torch.testing.assert_close(value, loss.detach())
            torch.testing.assert_close(own, gradient)
    assert learned == [True, True, True, False, False, True]


def test_alone_there_is_nothing_to_gather():
    embeddings, labels = torch.randn(3, 2), torch.tensor([0, 1, 1])
    found = gather_embeddings(embeddings, labels)
    assert found[0] is embeddings
    assert found[1] is labels


# Devices


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_on_a_gpu_nothing_waits_and_nothing_differs(sampler):
    labels, embeddings = batch(4000, 21, 0, 0.1), torch.randn(4000, 64)
    expected = sampler(labels, seeded(3))
    here, there = embeddings.clone().requires_grad_(), embeddings.cuda().requires_grad_()
    on_device = labels.cuda()
    triplet_loss(unit_vectors(here), *expected).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = sampler(on_device, seeded(3))
        sampler(on_device)
        triplet_loss(unit_vectors(there), *found).backward()
        triplet_statistics(there, on_device, *found)
        recall = recall_at_1(there, on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found.indices.cpu(), expected.indices)
    assert torch.equal(found.valid.cpu(), expected.valid)
    torch.testing.assert_close(there.grad.cpu(), here.grad, rtol=1e-4, atol=1e-8)
    assert recall.item() == pytest.approx(recall_at_1(embeddings, labels).item(), abs=2e-3)
