"""Two-player steps on logits smaller than the image, against steps on logits of its size."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from plain_steps import ADAM, same_weights
from small_players import analyzer, discriminator
from small_runs import fit, scenes

from lightning_seg import ASMLModule, SemiAdvModule
from lightning_seg.losses import block_cross_entropy as blocks
from lightning_seg.losses import upsampled_probabilities, upsampled_rows
from lightning_seg.networks import FCN

SEMI = {"semi_start": 0, "semi_start_adv": 0, "lambda_semi_adv": 0.01, "lambda_adv": 0.05}
CASES = {
    "asml": partial(ASMLModule, analyzer=analyzer),
    "asml, both at once": partial(ASMLModule, analyzer=analyzer, order="simultaneous"),
    "asml, literal": partial(ASMLModule, analyzer=analyzer, mode="literal"),
    "semi_adv": partial(SemiAdvModule, discriminator=discriminator, **SEMI),
    "joint": partial(SemiAdvModule, discriminator=discriminator, joint_forward=True, **SEMI),
    "teacher": partial(SemiAdvModule, discriminator=discriminator, ema_decay=0.9, **SEMI),
    "strong view": partial(
        SemiAdvModule,
        discriminator=discriminator,
        strong_view=True,
        softmax_threshold=0.13,
        **SEMI,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_both_players_take_the_same_steps(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upsampled_rows, "_ON_CPU", 700)
    passes = []
    visit = upsampled_probabilities._Probabilities.forward
    monkeypatch.setattr(
        upsampled_probabilities._Probabilities,
        "forward",
        staticmethod(lambda *args: passes.append(0) or visit(*args)),
    )
    found = {}
    for largest in (0, 10**9):  # full-size values up to which logits are upsampled as a whole
        monkeypatch.setattr(blocks, "SMALL", largest)
        torch.manual_seed(0)
        ours = CASES[name](
            partial(FCN, encoder="test_resnet"),
            num_classes=8,
            optimizer=partial(torch.optim.SGD, lr=0.02),
            opponent_optimizer=ADAM,
        )
        data = scenes()
        if not name.startswith("asml"):
            strong = {"strong_augmentation": "strong"} if name == "strong view" else {}
            sizes = {"image_size": (48, 56), "crop_size": 40, "unlabeled_batch_size": 4}
            data = scenes(labeled="1/2", splits_dir=str(tmp_path), **sizes, **strong)
        _, kept = fit(ours, tmp_path / f"{largest}", data, max_steps=2, max_epochs=-1)
        found[largest] = ours, kept.rows, len(passes)
        passes.clear()
    assert found[0][2] > 0
    assert found[10**9][2] == 0
    for step in (0, 1):
        for key, value in found[10**9][1][step].items():
            assert found[0][1][step][key] == pytest.approx(value, rel=1e-4, abs=1e-6), key
    same_weights(found[0][0].network, found[10**9][0].network, 1e-5)
    same_weights(found[0][0].opponent, found[10**9][0].opponent, 1e-5)
