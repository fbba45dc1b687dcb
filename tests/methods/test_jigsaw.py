"""Jigsaw puzzles against plain loops over tiles."""

from __future__ import annotations

import copy
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_runs import fit, scenes

from lightning_seg import JigsawModule, SetupError
from lightning_seg.networks import TimmEncoder


def module(encoder: str = "test_resnet", **options) -> JigsawModule:
    torch.manual_seed(0)
    defaults = {"permutations": 8, "grid": 2, "tile_size": 32, "width": 16, "lr": 0.05}
    return JigsawModule(TimmEncoder(encoder), optimizer=torch.optim.SGD, **{**defaults, **options})


def test_a_step_follows_the_equation(tmp_path):
    """Cells of 24 pixels, tiles of 18, resized by PyTorch: all drawn again in the same order."""
    ours = module(gray_share=0.5)
    before = {}
    step = ours.training_step

    def remembering(batch, batch_idx):
        before["state"] = torch.get_rng_state()
        return step(batch, batch_idx)

    ours.training_step = remembering
    seen, kept = fit(ours, tmp_path, scenes(crop_size=48, image_size=(64, 72)))
    batch, network = seen.seen[0]
    torch.set_rng_state(before["state"])
    image = batch["image"].float() / 255
    offsets = torch.rand(4, 4, 2)
    gray = torch.rand(4, 1, 1, 1, 1) < 0.5
    puzzle = torch.randint(8, (4,))
    assert 0 < gray.sum() < 4
    mean, std = (
        torch.tensor(each).view(3, 1, 1) for each in (network.encoder.mean, network.encoder.std)
    )
    tiles = torch.empty(4, 4, 3, 32, 32)
    for b in range(4):
        cut = []
        for t in range(4):
            top = 24 * (t // 2) + int(offsets[b, t, 0] * 7)
            left = 24 * (t % 2) + int(offsets[b, t, 1] * 7)
            tile = image[b, :, top : top + 18, left : left + 18]
            tile = F.interpolate(tile[None], (32, 32), mode="bilinear", antialias=True)[0]
            cut.append(tile.mean(0).expand(3, -1, -1) if gray[b] else tile)
        for t in range(4):
            tiles[b, t] = (cut[ours.permutations[puzzle[b], t]] - mean) / std
    network.train()
    with torch.no_grad():
        logits = network(tiles)
    loss = -torch.stack([F.log_softmax(logits[b], 0)[puzzle[b]] for b in range(4)]).mean()
    assert kept.rows[0]["train/loss"] == pytest.approx(loss.item(), rel=1e-4)
    right = np.mean([logits[b].argmax() == puzzle[b] for b in range(4)])
    assert kept.rows[0]["train/accuracy"] == pytest.approx(right)


@pytest.mark.parametrize(("share", "gray"), [(0.0, 0), (1.0, 4)])
def test_share_of_grey_images(tmp_path, share, gray):
    ours, seen = module(gray_share=share), []
    forward = ours.network.forward
    ours.network.forward = lambda tiles: seen.append(tiles) or forward(tiles)
    fit(ours, tmp_path, scenes(crop_size=48, image_size=(64, 72)))
    rgb = seen[0] * ours.image_std + ours.image_mean
    spread = (rgb.amax(2) - rgb.amin(2)).flatten(1).amax(1)
    assert (spread < 1e-5).sum() == gray


def test_puzzles_are_learnt():
    """Colours that tell the place."""
    ours = module(lr=0.01, gray_share=0.0)
    optimizer = torch.optim.Adam(ours.parameters(), lr=0.003)
    drawn = torch.Generator().manual_seed(0)
    colors = torch.tensor([[0.8, 0.2, 0.2], [0.2, 0.8, 0.2], [0.2, 0.2, 0.8], [0.7, 0.7, 0.1]])
    place = colors.T.view(1, 3, 2, 2).repeat_interleave(24, 2).repeat_interleave(24, 3)
    right = []
    for _ in range(60):
        image = place + 0.1 * torch.randn(8, 3, 48, 48, generator=drawn)
        puzzle = torch.randint(8, (8,), generator=drawn)
        offsets = torch.rand(8, 4, 2, generator=drawn)
        tiles = ours.cut(image.clamp(0, 1), offsets)
        shuffled = torch.stack(
            [each[order] for each, order in zip(tiles, ours.permutations[puzzle], strict=True)]
        )
        logits = ours(shuffled)
        loss = F.cross_entropy(logits, puzzle)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        right.append((logits.argmax(1) == puzzle).float().mean().item())
    assert np.mean(right[:3]) < 0.5
    assert np.mean(right[-10:]) > 0.9


def test_validation_repeats_itself(tmp_path):
    ours = module()
    data = scenes(crop_size=48, image_size=(64, 72))
    fit(ours, tmp_path, data, limit_val_batches=1.0)
    running = copy.deepcopy(ours.state_dict())
    scores = [ours.trainer.validate(ours, data, verbose=False)[0] for _ in range(2)]
    assert scores[0] == scores[1]
    assert 0 <= scores[0]["val/accuracy"] <= 1
    assert all(torch.equal(value, running[name]) for name, value in ours.state_dict().items())


def test_a_solved_puzzle_is_shown_as_such(tmp_path):
    ours = module(tile_size=24, jitter=0.0)
    image = torch.rand(1, 3, 48, 48)
    seed = zlib.crc32(b"a")
    puzzle = torch.randint(8, (1,), generator=torch.Generator().manual_seed(seed)).item()
    ours.network.forward = lambda tiles: F.one_hot(torch.tensor([puzzle]), 8).float()
    views = ours.views({"image": image, "id": ["a"]})
    assert list(views) == ["puzzle", "prediction", "solution"]
    assert views["prediction"].note == "solved"
    shuffled, guess, solved = (view.image for view in views.values())
    torch.testing.assert_close(guess, solved)
    plain = torch.cat(
        [
            torch.cat(list(row), 2)
            for row in solved.unfold(1, 28, 28)
            .unfold(2, 28, 28)[..., 2:-2, 2:-2]
            .permute(1, 2, 0, 3, 4)
        ],
        1,
    )
    torch.testing.assert_close(plain, image[0])
    assert not torch.allclose(shuffled, solved)


@pytest.mark.parametrize(
    "name",
    ["resnet18", "vgg16_bn", "mobilenetv3_large_100", "tf_efficientnet_lite0", "convnext_tiny"],
)
def test_every_weight_of_every_encoder_learns(name):
    ours = module(name, tile_size=64)
    logits = ours(torch.rand(2, 4, 3, 64, 64))
    assert logits.shape == (2, 8)
    F.cross_entropy(logits, torch.tensor([3, 5])).backward()
    without = [name for name, weight in ours.named_parameters() if weight.grad is None]
    assert without == []  # else plain DDP would stop


def test_the_permutations_come_back_with_a_checkpoint(tmp_path):
    ours, other = module(permutation_seed=0), module(permutation_seed=1)
    assert not torch.equal(ours.permutations, other.permutations)
    other.load_state_dict(ours.state_dict())
    assert torch.equal(ours.permutations, other.permutations)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"permutations": 1}, "permutations="),
        ({"permutations": 25}, "permutations="),
        ({"grid": 4}, "grid="),
        ({"jitter": 1.0}, "jitter must be in"),
        ({"gray_share": 1.5}, "gray_share must be in"),
        ({"tile_size": 0}, "tile_size must be at least 1"),
    ],
)
def test_impossible_settings_are_told(options, message):
    with pytest.raises(SetupError, match=message):
        module(**options)
