"""Colorization against plain loops over pixels."""

from __future__ import annotations

import colorsys
import copy
import math

import numpy as np
import pytest
import torch
from small_runs import fit, scenes
from torch.nn.functional import log_softmax

from lightning_seg import ColorizationModule, SetupError
from lightning_seg.losses import ABGrid
from lightning_seg.networks import TimmEncoder

ENCODERS = [
    "resnet18",
    "vgg16_bn",
    "mobilenetv3_large_100",
    "tf_efficientnet_lite0",
    "convnext_tiny",
]


def module(encoder: str = "test_resnet", **options) -> ColorizationModule:
    torch.manual_seed(0)
    options = {"locations": 20, "border": 4, "dropout": 0.0, "width": 16, "lr": 0.05, **options}
    return ColorizationModule(TimmEncoder(encoder), optimizer=torch.optim.SGD, **options)


def photographs(count: int = 2, size: tuple[int, int] = (24, 40)) -> torch.Tensor:
    drawn = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, 3, *size), generator=drawn).to(torch.uint8)


def slow_loss(logits: torch.Tensor, colors: list[tuple[float, ...]]) -> float:
    """The equation, one location at a time, by the standard library's colours."""
    total = 0.0
    for answer, (red, green, blue) in zip(logits, colors, strict=True):
        hue = colorsys.rgb_to_hsv(red, green, blue)[0]
        chroma = max(red, green, blue) - min(red, green, blue)
        bins = [math.floor(each * 32 * 0.99999) for each in (hue, chroma)]
        ce_hue, ce_chroma = (
            -log_softmax(half.double(), 0)[place].item()
            for half, place in zip(answer.split(32), bins, strict=True)
        )
        total += ce_chroma + 5 * chroma * ce_hue
    return total / len(colors)


def test_a_step_follows_the_equation(tmp_path):
    ours = module(lambda_head=0.01)
    places, draw = [], ours.draw
    ours.draw = lambda image: places.append(draw(image)) or places[-1]
    seen, kept = fit(ours, tmp_path, scenes(crop_size=32))
    (batch, network), (locations,) = seen.seen[0], places
    network.train()
    gray = batch["image"].float().mean(1, keepdim=True).expand(-1, 3, -1, -1) / 255
    mean, std = (
        torch.tensor(each).view(1, 3, 1, 1) for each in (network.encoder.mean, network.encoder.std)
    )
    with torch.no_grad():
        logits = network((gray - mean) / std, locations).flatten(0, 1)
    colors, kept_logits = [], []
    for number, (answer, place) in enumerate(
        zip(logits, locations.flatten(0, 1).tolist(), strict=True)
    ):
        image = number // 20
        if batch["valid"][image][tuple(place)]:
            colors.append(tuple((batch["image"][image][(slice(None), *place)] / 255).tolist()))
            kept_logits.append(answer)
    loss = slow_loss(torch.stack(kept_logits), colors)
    penalty = sum(
        weight.square().sum().item()
        for name, weight in network.named_parameters()
        if weight.ndim == 2 and not name.startswith("encoder")
    )
    assert penalty > 1
    assert kept.rows[0]["train/loss_color"] == pytest.approx(loss, rel=1e-4)
    assert kept.rows[0]["train/loss"] == pytest.approx(loss + 0.01 * penalty, rel=1e-4)


@pytest.mark.parametrize("size", [(24, 40), (5, 9), (1, 2)])
def test_locations_are_uniform_inside_the_border(size):
    ours = module(locations=4000)
    found = ours.draw(torch.zeros(2, 3, *size))
    assert found.shape == (2, 4000, 2)
    assert found.dtype == torch.int64
    for axis, side in enumerate(size):
        border = min(4, side // 4)
        inside = np.arange(border, side - border)
        values, counts = np.unique(found[..., axis], return_counts=True)
        assert values.tolist() == inside.tolist()
        expected = 8000 / len(inside)
        assert np.abs(counts - expected).max() < 5 * math.sqrt(expected)
    assert not torch.equal(found, ours.draw(torch.zeros(2, 3, *size)))
    drawn = [ours.draw(torch.zeros(2, 3, *size), torch.Generator().manual_seed(1)) for _ in "ab"]
    assert torch.equal(*drawn)


def test_padding_does_not_count():
    ours, image = module(), photographs(1)
    locations = ours.draw(image)
    valid = torch.zeros(1, 24, 40, dtype=torch.bool)
    loss, count = ours.color_loss(image, locations, valid)
    assert (loss.item(), count.item()) == (0, 0)
    loss.backward()
    assert all(weight.grad.abs().max() == 0 for weight in ours.network.encoder.parameters())
    valid[..., :20] = True
    loss, count = ours.color_loss(image, locations, valid)
    inside = locations[:, locations[0, :, 1] < 20]
    assert 0 < count.item() == inside.shape[1] < 20
    torch.testing.assert_close(loss, ours.color_loss(image, inside)[0])


def test_only_grey_values_are_seen():
    ours, image = module(), photographs()
    locations = ours.draw(image)
    assert ours.input_mode == "gray"
    turned = image[:, [2, 0, 1]]
    torch.testing.assert_close(ours(image, locations), ours(turned, locations))


def test_unlabelled_images_are_taken_where_there_are_some(tmp_path):
    data = scenes(labeled="1/2", unlabeled_batch_size=2, crop_size=32, splits_dir=str(tmp_path))
    _, kept = fit(module(), tmp_path, data)
    assert kept.rows[0]["train/loss"] > 0


def test_validation_repeats_itself(tmp_path):
    ours = module()
    # a second training that changes nothing
    _, first = fit(ours, tmp_path, scenes(), limit_val_batches=1.0, max_epochs=1, max_steps=-1)
    ours.lr = 0.0
    running = copy.deepcopy(ours.state_dict())
    ours.trainer.validate(ours, scenes(), verbose=False)
    again = ours.trainer.callback_metrics["val/loss"].item()
    assert max(row.get("val/loss", 0) for row in first.rows.values()) == pytest.approx(again)
    assert all(torch.equal(value, running[name]) for name, value in ours.state_dict().items())


def test_the_views_are_what_the_network_sees_and_predicts():
    ours = module()
    image = photographs()[:1] / 255
    views = ours.eval().views({"image": image, "id": ["a"]})
    assert list(views) == ["grey input", "prediction", "image"]
    torch.testing.assert_close(views["image"].image, image[0])
    for channel in views["grey input"].image:
        torch.testing.assert_close(channel, image[0].mean(0))
    torch.testing.assert_close(views["prediction"].image, ours.recolored(image)[0])


@pytest.mark.parametrize("target", [None, ABGrid()])
def test_colours_that_follow_from_the_grey_value_are_learnt(target):
    ours = module(target=target, locations=64, border=0, width=64, lr=0.01)
    optimizer = torch.optim.Adam(ours.parameters(), lr=0.01)
    drawn = torch.Generator().manual_seed(0)
    red, blue = torch.tensor([0.9, 0.3, 0.3]), torch.tensor([0.1, 0.2, 0.6])

    def scene() -> torch.Tensor:
        cells = torch.rand(4, 1, 4, 4, generator=drawn) < 0.5
        mask = cells.repeat_interleave(8, 2).repeat_interleave(8, 3)
        return torch.where(mask, red.view(1, 3, 1, 1), blue.view(1, 3, 1, 1))

    for _ in range(80):
        image = scene()
        loss, _ = ours.color_loss(image, ours.draw(image))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ours.eval()
    image = scene()
    found = ours.recolored(image)
    assert found.shape == image.shape
    centres = (found - image)[:, :, 4::8, 4::8].abs()
    gray = (image.mean(1, keepdim=True) - image)[:, :, 4::8, 4::8].abs()
    assert centres.mean() < 0.35 * gray.mean()


def test_recolouring_keeps_the_grey_value_and_any_size():
    ours, image = module(), photographs(1, (13, 30))
    found = ours.eval().recolored(image)
    assert found.shape == (1, 3, 13, 30)
    assert 0 <= found.min() <= found.max() <= 1
    inside = ((found > 0) & (found < 1)).all(1)
    assert inside.float().mean() > 0.2
    torch.testing.assert_close(
        found.mean(1)[inside], (image.float().mean(1) / 255)[inside], atol=2e-3, rtol=0
    )


@pytest.mark.parametrize("name", ENCODERS)
def test_every_weight_of_every_encoder_learns(name):
    ours = module(name)
    image = photographs(2, (64, 64))
    loss, _ = ours.color_loss(image, ours.draw(image))
    loss.backward()
    without = [name for name, weight in ours.named_parameters() if weight.grad is None]
    assert without == []  # else plain DDP would stop


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"locations": 0}, "locations must be at least 1"),
        ({"border": -1}, "border must be at least 0"),
        ({"dropout": 1.0}, "dropout must be in"),
        ({"lambda_head": -0.1}, "lambda_head must be at least 0"),
    ],
)
def test_impossible_settings_are_told(options, message):
    with pytest.raises(SetupError, match=message):
        module(**options)
