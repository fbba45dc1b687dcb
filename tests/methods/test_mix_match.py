"""Mix-and-match tuning against plain loops over triplets."""

from __future__ import annotations

import copy
import math

import lightning as L
import numpy as np
import pytest
import torch
from small_runs import Kept, quiet_trainer
from torch.utils.data import DataLoader

from datamodules.augmenting.patches import PatchMixer
from lightning_seg import MixMatchModule, NonFiniteLossError, SetupError
from lightning_seg.networks import TimmEncoder

ENCODERS = [
    "resnet18",
    "resnet50",
    "vgg16_bn",
    "mobilenetv3_large_100",
    "tf_efficientnet_lite0",
    "convnext_tiny",
]


def patches(labels: list[int], side: int = 32, seed: int = 0) -> dict:
    """A batch of noise whose mean colour tells the class."""
    drawn = torch.Generator().manual_seed(seed)
    colors = torch.randint(0, 156, (8, 3, 1, 1), generator=torch.Generator().manual_seed(5))
    noise = torch.randint(0, 100, (len(labels), 3, side, side), generator=drawn)
    label = torch.tensor(labels, dtype=torch.int64)
    return {"image": (colors[label % 8] + noise).to(torch.uint8), "label": label, "id": ["a"]}


def module(encoder: str = "test_resnet", **options) -> MixMatchModule:
    torch.manual_seed(0)
    options = {"num_classes": 8, "optimizer": torch.optim.SGD, "lr": 0.05, **options}
    return MixMatchModule(TimmEncoder(encoder), **options)


class Before(L.Callback):
    """Keeps the network as it was before each step."""

    def __init__(self) -> None:
        self.networks = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.networks.append(copy.deepcopy(pl_module.network))


def fit(ours, folder, batches, val=None, **options):
    kept, before = Kept(), Before()
    trainer = quiet_trainer(
        folder,
        logger=kept,
        callbacks=[before],
        max_epochs=1,
        limit_val_batches=1.0 if val else 0,
        **options,
    )
    loaders = [DataLoader(each, batch_size=None) for each in (batches, val or batches)]
    trainer.fit(ours, *loaders)
    return kept, before


def embedded(network, image, gap=False):
    """The embeddings of patches, in NumPy and float64 behind the network."""
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (network.mean, network.std))
    with torch.no_grad():
        deepest = network((image.float() / 255 - mean) / std)[-1].double().numpy()
    rows = deepest.mean((2, 3)) if gap else deepest.reshape(len(deepest), -1)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def slow_loss(rows, triplets, margin=2.1):
    """The equation, one triplet at a time; and mean d_ap, mean d_an and accuracy."""
    near = [((rows[a] - rows[p]) ** 2).sum() for a, p, n in triplets]
    far = [((rows[a] - rows[n]) ** 2).sum() for a, p, n in triplets]
    hinges = [max(0.0, margin + x - y) for x, y in zip(near, far, strict=True)]
    accuracy = np.mean([x < y for x, y in zip(near, far, strict=True)])
    return sum(hinges) / (2 * len(hinges)), np.mean(near), np.mean(far), accuracy


@pytest.mark.parametrize("flatten", ["map", "gap"])
@pytest.mark.parametrize("sampler", ["graph", "random"])
def test_steps_follow_the_equation(tmp_path, flatten, sampler):
    batches = [patches([0, 0, 1, 1, 1, 2, 2, 7], seed=i) for i in range(3)]
    ours = module(flatten=flatten, sampler=sampler)
    drawn, sample = [], ours.sample
    ours.sample = lambda *args: drawn.append(sample(*args)) or drawn[-1]
    kept, before = fit(ours, tmp_path, batches)
    for step, (batch, network, triplets) in enumerate(
        zip(batches, before.networks, drawn, strict=True)
    ):
        assert triplets.valid.tolist() == [True] * 7 + [False]  # 7 is alone in its class
        network.train()
        rows = embedded(network, batch["image"], flatten == "gap")
        loss, near, far, accuracy = slow_loss(rows, triplets.indices[triplets.valid].tolist())
        row = kept.rows[step]
        assert row["train/loss"] == pytest.approx(loss, abs=1e-5)
        assert row["train/d_ap"] == pytest.approx(near, abs=1e-5)
        assert row["train/d_an"] == pytest.approx(far, abs=1e-5)
        assert row["train/accuracy"] == pytest.approx(accuracy)
        assert (row["train/classes"], row["train/singleton_share"]) == (4, 0.25)


@pytest.mark.parametrize("sampler", ["graph", "random"])
@pytest.mark.parametrize(
    ("batches", "trainer"),
    [
        (1, {"max_epochs": 6}),  # the number of the batch stays 0
        (6, {"max_epochs": 1, "accumulate_grad_batches": 6}),  # the number of the step stays 0
    ],
)
def test_the_triplets_of_a_batch_change_from_step_to_step(tmp_path, sampler, batches, trainer):
    ours = module(sampler=sampler, lr=0.0)
    drawn, sample = [], ours.sample
    ours.sample = lambda *args: drawn.append(sample(*args)) or drawn[-1]
    same = DataLoader([patches([0] * 4 + [1] * 4)] * batches, batch_size=None)
    quiet_trainer(tmp_path, limit_val_batches=0, **trainer).fit(ours, same, same)
    assert len(drawn) == 6
    assert len({tuple(each.indices.flatten().tolist()) for each in drawn}) == 6


def test_the_step_is_that_of_autograd_on_the_equation(tmp_path):
    batch = patches([0, 0, 1, 1, 2, 2])
    ours = module()
    reference = copy.deepcopy(ours.network)
    fit(ours, tmp_path, [batch])
    triplets = ours.sample(batch["label"], (0, 0, 0)).indices
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (reference.mean, reference.std))
    rows = reference((batch["image"] / 255 - mean) / std)[-1].flatten(1)
    rows = rows / rows.norm(dim=1, keepdim=True)
    near = ((rows[triplets[:, 0]] - rows[triplets[:, 1]]) ** 2).sum(1)
    far = ((rows[triplets[:, 0]] - rows[triplets[:, 2]]) ** 2).sum(1)
    loss = torch.clamp(2.1 + near - far, min=0).sum() / 12
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.05)
    loss.backward()
    optimizer.step()
    moved = 0.0
    start = module().network
    for (name, found), wanted, old in zip(
        ours.network.named_parameters(), reference.parameters(), start.parameters(), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6, msg=name)
        moved = max(moved, (wanted - old).abs().max().item())
    assert moved > 1e-4


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_embeds_and_all_its_weights_learn(name):
    ours = module(name)
    rows = ours(patches([0, 0, 1, 1], side=64)["image"])
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(4))
    (rows * torch.arange(rows.shape[1])).sum().backward()
    without = [each for each, weight in ours.named_parameters() if weight.grad is None]
    assert without == []  # else plain DDP would stop


def test_triplets_are_a_function_of_seed_and_step(monkeypatch):
    ours, labels = module(), torch.arange(40) % 5
    assert torch.equal(
        ours.sample(labels, (3, 1, 0)).indices, ours.sample(labels, (3, 1, 0)).indices
    )
    others = [ours.sample(labels, step).indices for step in ((3, 1, 1), (3, 2, 0), (4, 1, 0), ())]
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    others.append(ours.sample(labels, (3, 1, 0)).indices)
    found = [each.tolist() for each in others]
    assert all(found.count(each) == 1 for each in found)
    state = torch.get_rng_state()
    ours.sample(labels, (0,))
    assert torch.equal(torch.get_rng_state(), state)


def components(triplets) -> int:
    """Connected components of the graph of anchors and positives."""
    parent = list(range(len(triplets.indices)))

    def root(node):
        while parent[node] != node:
            node = parent[node]
        return node

    for anchor, positive, _ in triplets.indices.tolist():
        parent[root(anchor)] = root(positive)
    return len({root(node) for node in parent})


def test_the_graph_connects_every_class_and_random_triplets_do_not():
    labels = torch.randint(0, 8, (200,), generator=torch.Generator().manual_seed(0))
    graph, random = module(), module(sampler="random")
    assert {components(graph.sample(labels, (step,))) for step in range(20)} == {8}
    assert np.mean([components(random.sample(labels, (step,))) for step in range(20)]) > 9


@pytest.mark.parametrize("labels", [[3, 3, 3, 3], [0, 1, 2, 3], [0]])
def test_a_batch_without_triplets_costs_nothing_and_moves_nothing(tmp_path, labels):
    ours = module()
    before = copy.deepcopy(ours.network.state_dict())
    kept, _ = fit(ours, tmp_path, [patches(labels, side=64)])
    assert kept.rows[0]["train/loss"] == 0
    for name, weight in ours.network.named_parameters():
        assert torch.equal(weight, before[name])
        assert weight.grad is None or weight.grad.abs().max() == 0


def number(patch):
    """The number by which patches are ordered, digit by digit."""
    places = ((place + 1) * 7919 % 65521 for place in range(patch.numel()))
    return sum(map(math.prod, zip(patch.flatten().tolist(), places, strict=True))) % 2**40


def test_validation_scores_the_patches_of_all_batches(tmp_path):
    batches = [patches([0, 0, 1, 5], seed=1), patches([], seed=2), patches([1, 0, 1], seed=3)]
    ours = module()
    kept, _ = fit(ours, tmp_path, [patches([0, 0, 1, 1])], val=batches)
    batches = [batch for batch in batches if len(batch["label"])]
    labels = np.concatenate([batch["label"].numpy() for batch in batches])
    rows = np.concatenate([embedded(ours.network.eval(), batch["image"]) for batch in batches])
    order = np.argsort([number(image) for batch in batches for image in batch["image"]])
    labels, rows = labels[order], rows[order]  # by the pixels, whichever process has a patch
    squares = ((rows[:, None] - rows) ** 2).sum(-1)
    np.fill_diagonal(squares, np.inf)
    counted = [i for i in range(7) if (labels == labels[i]).sum() > 1]
    assert len(counted) == 6
    recall = np.mean([labels[squares[i].argmin()] == labels[i] for i in counted])
    triplets = ours.sample(torch.from_numpy(labels), ())
    loss, near, far, _ = slow_loss(rows, triplets.indices[triplets.valid].tolist())
    row = kept.rows[0]
    assert row["val/recall_at_1"] == pytest.approx(recall)
    assert row["val/loss"] == pytest.approx(loss, abs=1e-5)
    assert row["val/d_ap"] == pytest.approx(near, abs=1e-5)
    assert row["val/d_an"] == pytest.approx(far, abs=1e-5)
    assert row["val/singleton_share"] == pytest.approx(1 / 3)
    view = ours.overviews()["embedding"]
    assert view.labels.tolist() == labels.tolist()
    _, _, axes = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    slow = (rows - rows.mean(0)) @ axes[:2].T
    np.testing.assert_allclose(view.points.abs().numpy(), np.abs(slow), atol=1e-3)
    picture = view.picture(ours.class_names, None)
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20


def test_the_patches_of_an_image_are_shown_with_their_classes():
    ours = module()
    batch = {**patches([0, 2, 1]), "id": ["a"]}
    views = ours.views(batch)
    assert list(views) == ["patch 1", "patch 2", "patch 3"]
    assert [view.note for view in views.values()] == [ours.class_names[i] for i in (0, 2, 1)]
    torch.testing.assert_close(views["patch 2"].image, batch["image"][1])


def test_validation_keeps_a_limited_number_of_patches(tmp_path):
    ours = module(val_patches=3)
    val = [patches([0, 1]), patches([1, 0]), patches([5, 5])]
    fit(ours, tmp_path, [patches([0, 0, 1, 1])], val=val)
    assert sorted(ours._embedded[1].tolist()) == [0, 1, 1]


@pytest.mark.parametrize("labels", [[], [2]])
def test_validation_with_next_to_nothing_is_legal(tmp_path, labels):
    ours = module()
    kept, _ = fit(ours, tmp_path, [patches([0, 0, 1, 1])], val=[patches(labels)])
    assert kept.rows[0]["val/loss"] == 0
    assert ours.overviews() == {}


def test_equal_patches_give_half_the_margin(tmp_path):
    batch = patches([0, 0, 1, 1])
    batch["image"] = batch["image"][:1].expand(4, -1, -1, -1)
    kept, _ = fit(module(), tmp_path, [batch])
    assert kept.rows[0]["train/loss"] == pytest.approx(1.05, abs=1e-5)
    kept, _ = fit(module(margin=0.3), tmp_path, [batch])
    assert kept.rows[0]["train/loss"] == pytest.approx(0.15, abs=1e-5)


def test_half_precision_embeds_in_float32(tmp_path):
    ours = module()
    with torch.autocast("cpu", torch.bfloat16):
        rows = ours(patches([0, 1])["image"])
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(2))


def test_classes_move_apart():
    """Invariant 15 of the specification: 8 images of two colours, 100 steps."""
    rng = np.random.default_rng(0)
    mixer = PatchMixer(4, (8, 16), 32, background_index=None)
    images = []
    for _ in range(8):
        mask = np.zeros((32, 32), np.uint8)
        mask[:, rng.integers(10, 22) :] = 1
        colors = np.array([[180, 90, 60], [60, 110, 180]])
        image = (colors[mask] + rng.normal(0, 25, (32, 32, 3))).clip(0, 255).astype(np.uint8)
        images.append((image, mask))
    ours = module("resnet18")
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.01, momentum=0.9)
    gaps = []
    for step in range(100):
        cut = [mixer(*each, rng) for each in images]
        image = torch.from_numpy(np.concatenate([each.images for each in cut])).permute(0, 3, 1, 2)
        labels = torch.from_numpy(np.concatenate([each.labels for each in cut]))
        rows = ours(image)
        triplets = ours.sample(labels, (step,))
        near, far = (
            (rows[triplets.indices[:, 0]] - rows[triplets.indices[:, k]]).square().sum(1).mean()
            for k in (1, 2)
        )
        gaps.append((far - near).item())
        loss = (2.1 + near - far) / 2  # all hinges are active
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert gaps[0] < 0.3
    assert np.mean(gaps[-10:]) > 0.5


def test_gray_input_is_the_mean_of_the_channels():
    ours, image = module(input_mode="gray"), patches([0, 1])["image"]
    gray = (image.float().mean(1, keepdim=True) / 255).expand(-1, 3, -1, -1)
    torch.testing.assert_close(ours(image), module()(gray))
    assert not torch.allclose(ours(image), module()(image), atol=1e-3)


def test_nan_stops_the_training(tmp_path):
    ours = module()
    next(ours.network.parameters()).data.fill_(math.nan)
    with pytest.raises(NonFiniteLossError, match=r"step 0 \(images a"):
        fit(ours, tmp_path, [patches([0, 0, 1, 1])])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": -1}, "margin must be at least 0"),
        ({"sampler": "all"}, "sampler must be graph or random"),
        ({"graph_scope": "node"}, "graph_scope must be local or global"),
        ({"flatten": "mean"}, "flatten must be map or gap"),
        ({"val_patches": 1}, "val_patches must be at least 2"),
        ({"input_mode": "grey"}, "input_mode must be rgb or gray"),
    ],
)
def test_impossible_settings_are_told(options, message):
    with pytest.raises(SetupError, match=message):
        module(**options)


def test_prediction_is_refused(tmp_path):
    trainer = quiet_trainer(tmp_path)
    with pytest.raises(SetupError, match="trains an encoder, which predicts no labels"):
        trainer.predict(module(), DataLoader([patches([0])], batch_size=None))
