"""The views of the methods against slow versions, and the pictures that are made of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_runs import tiny

from lightning_seg import ASMLModule, CPGModule, CrossEntropyModule, LMPModule, SemiAdvModule
from lightning_seg.losses import loss_max_pooling_weights, structure_matching_loss
from lightning_seg.pictures import color_table
from lightning_seg.training.undisturbed import undisturbed
from lightning_seg.views import (
    ClassView,
    ColorView,
    KindView,
    ScaleView,
    correctness,
    selected,
    sheet,
)


def example(void: bool = True) -> dict:
    drawn = torch.Generator().manual_seed(1)
    mask = torch.randint(0, 8, (1, 8, 10), generator=drawn).repeat_interleave(4, 1)
    mask = mask.repeat_interleave(4, 2)
    if void:
        mask[:, :5, :7] = 255
    image = torch.randint(0, 256, (1, 3, 32, 40), generator=drawn).to(torch.uint8)
    return {"image": image, "mask": mask, "id": ["a"]}


def views_of(kind, batch, **options):
    module = tiny(kind, **options).eval()
    with torch.no_grad():
        return module, module.views(batch)


def test_every_module_shows_truth_prediction_errors_and_confidence():
    batch = example()
    module, views = views_of(CrossEntropyModule, batch)
    assert list(views) == ["image", "truth", "prediction", "errors", "confidence"]
    mask = batch["mask"][0].numpy()
    with torch.no_grad():
        logits = module(batch["image"])[0].double().numpy()
    shares = np.exp(logits - logits.max(0)) / np.exp(logits - logits.max(0)).sum(0)
    np.testing.assert_array_equal(views["truth"].ids, mask)
    np.testing.assert_array_equal(views["prediction"].ids, logits.argmax(0))
    np.testing.assert_allclose(views["confidence"].values, shares.max(0), rtol=1e-5)
    kinds, names = views["errors"].kinds.numpy(), list(views["errors"].colors)
    for place in np.ndindex(mask.shape):
        expected = "void" if mask[place] == 255 else "wrong"
        right = mask[place] == logits[(slice(None), *place)].argmax()
        assert kinds[place] == (-1 if right else names.index(expected))


def test_an_image_without_labels_has_the_views_that_need_none():
    batch = example()
    del batch["mask"]
    for kind, own in [(LMPModule, []), (CPGModule, []), (SemiAdvModule, ["confidence of D"])]:
        _, views = views_of(kind, batch)
        assert list(views) == ["image", "prediction", "confidence", *own]


def test_the_weight_of_max_pooling_is_in_multiples_of_the_uniform_one():
    batch = example()
    module, views = views_of(LMPModule, batch, p=1.7, ratio=0.3)
    with torch.no_grad():
        logits = module(batch["image"]).double()
    valid = batch["mask"][0] != 255
    losses = -logits.log_softmax(1)[0].gather(0, batch["mask"] % 255)[0][valid]
    slow = loss_max_pooling_weights(losses, p=1.7, ratio=0.3) * valid.sum()
    view = views["weight"]
    torch.testing.assert_close(view.values[valid].double(), slow, rtol=1e-3, atol=1e-4)
    assert view.values[~valid].isnan().all()
    assert view.high == pytest.approx(0.3 ** (-1 / 1.7))  # n tau, whatever n is
    assert 1 < view.values[valid].max() <= view.high + 1e-4
    assert view.low == 0


def slow_gradient(maps: np.ndarray, size: int) -> np.ndarray:
    """The length over classes and both directions, by loops."""
    reach = size // 2
    padded = np.pad(maps, ((0, 0), (reach, reach), (reach, reach)), mode="edge")
    found = np.zeros(maps.shape[1:])
    for y, x in np.ndindex(*found.shape):
        for each in padded[:, y : y + size, x : x + size]:
            across = down = 0.0
            for dy in range(-reach, reach + 1):
                for dx in range(-reach, reach + 1):
                    if dy or dx:
                        across += dx / (dx**2 + dy**2) * each[dy + reach, dx + reach]
                        down += dy / (dx**2 + dy**2) * each[dy + reach, dx + reach]
            found[y, x] += across**2 + down**2
    return np.sqrt(found)


@pytest.mark.parametrize(("size", "straight"), [(3, 2.0), (5, 4.2)])
def test_the_gradients_of_cpg_are_in_multiples_of_a_straight_edge(size, straight):
    batch = example()
    module, views = views_of(CPGModule, batch, kernel_size=size)
    mask = batch["mask"][0].numpy()
    truth = np.stack([mask == index for index in range(8)]).astype(float)
    with torch.no_grad():
        predicted = module(batch["image"])[0].double().softmax(0).numpy()
    reach = size // 2
    void = np.pad(mask == 255, reach, mode="edge")
    touched = np.array(
        [[void[y : y + size, x : x + size].any() for x in range(40)] for y in range(32)]
    )
    edge = straight * np.sqrt(2)
    for name, maps in [("gradient of truth", truth), ("gradient of prediction", predicted)]:
        values = views[name].values.numpy()
        assert (np.isnan(values) == touched).all()
        slow = slow_gradient(maps, size) / edge
        np.testing.assert_allclose(values[~touched], slow[~touched], rtol=1e-4, atol=1e-6)
    assert ((views["boundary"].kinds == 0) == module.cpg.boundary(batch["mask"])[0]).all()
    flat = torch.zeros(1, 32, 40, dtype=torch.long)
    flat[:, :, 16:] = 1
    truth, _ = module.cpg.gradient_sizes(torch.zeros(1, 8, 32, 40), flat)
    torch.testing.assert_close(truth[0, :, 15:17], torch.ones(32, 2))


def test_the_distances_of_the_taps_add_up_to_the_matching_loss():
    batch = example()
    module, views = views_of(ASMLModule, batch)
    with torch.no_grad():
        logits, mask = module(batch["image"]), batch["mask"]
        truth = torch.stack([mask == index for index in range(8)], 1).float()
        features = [module.analyzer.features(each) for each in (truth, logits.softmax(1))]
        loss = structure_matching_loss(*features, module.analyzer.valid(mask != 255))
    taps = [views[f"tap {tap}"].values for tap in module.analyzer.taps]
    assert all(each.isnan().any() for each in taps)  # void
    total = sum(each.nanmean() for each in taps)
    torch.testing.assert_close(total, loss)


def test_the_pseudo_labels_are_those_that_training_would_select():
    batch = example()
    module, views = views_of(SemiAdvModule, batch, t_semi=0.5)
    confidence = module.confidence_map(batch["image"])[0]
    torch.testing.assert_close(views["confidence of D"].values, confidence)
    view = views["pseudo-labels (D >= 0.5)"]
    names = list(view.colors)
    mask, labels = batch["mask"][0], module(batch["image"])[0].argmax(0)
    for place in np.ndindex(32, 40):
        kind = "right" if mask[place] == labels[place] else "wrong"
        kind = "void" if mask[place] == 255 else kind
        expected = names.index(kind) if confidence[place] >= 0.5 else -1
        assert view.kinds[place] == expected


def test_a_look_changes_neither_random_numbers_nor_gradients():
    for kind in (CrossEntropyModule, LMPModule, CPGModule, ASMLModule, SemiAdvModule):
        module = tiny(kind).train()
        before, modes = torch.get_rng_state(), [part.training for part in module.modules()]
        running = {name: value.clone() for name, value in module.state_dict().items()}
        with undisturbed(module):
            assert not any(part.training for part in module.modules())
            module.views(example())
            torch.rand(3)
        assert torch.equal(before, torch.get_rng_state())
        assert modes == [part.training for part in module.modules()]
        assert all(weight.grad is None for weight in module.parameters())
        assert all(torch.equal(running[name], now) for name, now in module.state_dict().items())


def colors_in(picture: np.ndarray) -> set[tuple[int, ...]]:
    return set(map(tuple, np.unique(picture.reshape(-1, 3), axis=0).tolist()))


def test_a_scale_is_linear_and_grey_where_there_is_no_number():
    values = torch.tensor([[0.0, 1.0, 2.0, 5.0, -5.0, torch.nan]])
    drawn = np.asarray(ScaleView(values, 0, 2, "x").pixels(None, color_table(2)))[0]
    from matplotlib import colormaps

    viridis = (np.array([colormaps["viridis"](each)[:3] for each in (0, 128, 255)]) * 255).round()
    np.testing.assert_array_equal(drawn[[0, 1, 2]], viridis)
    np.testing.assert_array_equal(drawn[[4, 3]], drawn[[0, 2]])  # beyond the ends
    assert len(set(drawn[5].tolist())) == 1


@pytest.mark.parametrize("scale", [(0.0, 0.0), (1.0, 1.0)])
def test_a_scale_without_length_is_drawn(scale):
    view = ScaleView(torch.full((4, 4), 1.0), *scale, "x")
    assert sheet([{"x": view}]).shape[2] == 3


NAMES = {
    "commas": ["a, b", "c,,d"],
    "long": ["x" * 300, "y" * 300],
    "one": ["only"],
    "many": [f"class {index}" for index in range(171)],
    "scripts": ["дорога", "$x_1$"],
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("sizes", [[(24, 32)], [(24, 32), (50, 9), (1, 1), (9, 300)]])
def test_a_sheet_takes_any_names_and_images_of_different_sizes(names, sizes):
    rows = []
    for number, size in enumerate(sizes):
        mask = torch.full(size, 255) if number == 0 else torch.zeros(size, dtype=torch.long)
        labels = torch.arange(size[0] * size[1]).view(size) % len(names)
        rows.append(
            {
                "image": ColorView(torch.zeros(3, *size), "z" * 300),
                "truth": ClassView(mask),
                "prediction": ClassView(labels),
                "errors": correctness(labels, mask, 255),
                "pseudo": selected(labels, mask, 255),
            }
        )
    drawn = sheet(rows, names, width=64)
    assert drawn.dtype == np.uint8
    assert drawn.shape[1] == 5 * 70 + 6
    assert drawn.shape[0] < 2000


def test_the_colours_of_the_legend_are_in_the_picture():
    kinds = torch.tensor([[0, 1], [-1, -1]]).repeat_interleave(20, 0).repeat_interleave(20, 1)
    view = KindView(kinds, {"right": (0, 200, 0), "wrong": (200, 0, 0)})
    image = torch.zeros(3, 40, 40)
    drawn = sheet([{"image": ColorView(image), "kinds": view}], width=40)
    found = colors_in(drawn)
    assert {(0, 200, 0), (200, 0, 0)} <= found  # the legend
    at = drawn[-17 - 40 : -17, 46 + 6 :]  # the cell
    assert (at[10, 10] == (18, 178, 18)).all()  # a fifth of the grey image shines through
    assert (at[10, 30] == (178, 18, 18)).all()
    assert (at[30, 10] == at[30, 10, 0]).all()


def test_a_missing_view_leaves_its_cell_empty():
    one, two = ColorView(torch.zeros(3, 8, 8)), ColorView(torch.zeros(3, 8, 8))
    drawn = sheet([{"a": one, "b": two}, {"a": one}, {}], width=32)
    bottom = drawn[20 + 32 + 17 :, 6 + 32 + 6 :]
    assert (bottom == 255).all()
