"""One of two gloo processes: trains every method on batches with unequal labels, keeps the weights.

RANK=0 WORLD_SIZE=2 ... python parity.py FOLDER

`alone` trains the same method in one process on the batches of both.
"""

from __future__ import annotations

import sys
import warnings
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from adversaries import train, weights
from lightning.pytorch.strategies import DDPStrategy
from tiny import TinyNet
from torch import Tensor

from lightning_seg import (
    ASMLModule,
    ColorizationModule,
    CPGModule,
    CrossEntropyModule,
    JigsawModule,
    LMPModule,
    MixMatchModule,
    SemiAdvModule,
)
from lightning_seg.losses import LossMaxPooling, Triplets
from lightning_seg.networks import FCDiscriminator, StructureAnalyzer, TimmEncoder

CLASSES = 8
STEPS = 3
LABELLED = [(1.0, 1 / 6), (0.6, 0.0), (0.0, 0.3)]
"""Share of labelled rows in the batches of the two processes, for each step."""
ANALYZER = {"analyzer": partial(StructureAnalyzer, widths=(4, 8, 8))}
SEMI = {"discriminator": partial(FCDiscriminator, width=4), "lambda_adv": 0.5, "lambda_semi": 0.4}
SEMI |= {"lambda_semi_adv": 0.3, "t_semi": 0.5, "semi_start": 1}
WEIGHTS = [1.0, 2.0, 0.5, 1.0, 3.0, 1.0, 0.2, 1.0]
FOR_SEGMENTATION = {
    "cross-entropy": (CrossEntropyModule, {}),
    "cross-entropy, weighted": (
        CrossEntropyModule,
        {"class_weights": WEIGHTS, "label_smoothing": 0.1},
    ),
    "lmp": (LMPModule, {}),
    "lmp, one pool": (LMPModule, {"per_image": False}),
    "cpg": (CPGModule, {"void": "reference", "on_aux": True}),
    "cpg on lmp": (CPGModule, {"pixel_loss": LossMaxPooling()}),
    "asml": (ASMLModule, ANALYZER),
    "asml, simultaneous": (ASMLModule, {**ANALYZER, "order": "simultaneous"}),
    "asml, literal": (ASMLModule, {**ANALYZER, "mode": "literal", "lambda_adv": 0.1}),
    "asml, mean over all places": (ASMLModule, {**ANALYZER, "reference_mean": True}),
    "semi_adv": (SemiAdvModule, SEMI),
    "semi_adv, joint": (SemiAdvModule, {**SEMI, "joint_forward": True}),
    "semi_adv, padding counts": (SemiAdvModule, {**SEMI, "reference_padding": True}),
}
FOR_ENCODERS = {
    "colorization": (ColorizationModule, {"width": 16, "dropout": 0.0, "locations": 40}),
    "jigsaw": (JigsawModule, {"permutations": 10, "jitter": 0.0, "gray_share": 0.0, "width": 8}),
    "mix_match": (MixMatchModule, {"num_classes": CLASSES}),
    "mix_match, one graph": (MixMatchModule, {"num_classes": CLASSES, "graph_scope": "global"}),
}
CASES = FOR_SEGMENTATION | FOR_ENCODERS
FAST = {"optimizer": torch.optim.SGD, "lr": 0.1, "freeze_batch_norm": "all"}


def module(case: str, **options):
    """Return a method, the same each time, whose batch norms stay as they are."""
    kind, settings = CASES[case]
    settings = {**FAST, **settings, **options}
    torch.manual_seed(0)
    if case in FOR_ENCODERS:
        return _repeatable(kind(TimmEncoder("test_resnet"), **settings))
    if kind in (ASMLModule, SemiAdvModule):
        settings |= {"opponent_optimizer": torch.optim.SGD, "opponent_lr": 0.1}
    return kind(TinyNet(CLASSES, aux=True, dropout=0.0), num_classes=CLASSES, **settings)


def _repeatable(ours):
    """Let the random draws of an image depend on the image alone."""
    if isinstance(ours, ColorizationModule):
        draw = ours.draw

        def alike(image: Tensor) -> Tensor:
            parts = [each[None] for each in image]
            return torch.cat([draw(each, _generator(each)) for each in parts])

        ours.draw = alike
    return ours


def _generator(image: Tensor) -> torch.Generator:
    return torch.Generator().manual_seed(int(image.long().sum()))


def batches(case: str, rank: int) -> list[dict]:
    """Return the batches of a process, the labelled part of which is unequal."""
    found = []
    for step, shares in enumerate(LABELLED):
        torch.manual_seed(10 * step + rank)
        if case.startswith("mix_match"):
            labels = [[0, 0, 1, 1, 1, 2], [3, 4, 4, 5, 6, 7], [5, 5, 5, 5, 5, 5]][(step + rank) % 3]
            image = torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8)
            found.append({"image": image, "label": torch.tensor(labels), "id": ["x"] * 6})
            continue
        groups = {name: _group(shares[rank]) for name in ("labeled", "unlabeled", "labeled_real")}
        found.append(groups if case in FOR_SEGMENTATION else groups["unlabeled"])
    return found


def _group(share: float) -> dict:
    mask = torch.randint(CLASSES, (2, 5, 5)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    rows = torch.arange(80).view(2, 40, 1).expand(2, 40, 40)
    valid = rows < 80 * share
    image = torch.randint(256, (2, 3, 40, 40), dtype=torch.uint8)
    return {"image": image, "id": ["x"] * 2, "valid": valid, "mask": mask.where(valid, 255)}


def together(case: str) -> list[dict]:
    """Return the batches of one process that has those of both."""
    return [_joined(a, b) for a, b in zip(batches(case, 0), batches(case, 1), strict=True)]


def _joined(one: dict, other: dict) -> dict:
    joined = {}
    for key, value in one.items():
        if isinstance(value, dict):
            joined[key] = _joined(value, other[key])
        else:
            joined[key] = torch.cat([value, other[key]]) if torch.is_tensor(value) else value * 2
    return joined


def _puzzles(rank: int):
    """Replace torch.randint: image i of both processes together has puzzle i."""
    return lambda high, size, device=None: (torch.arange(size[0]) + 2 * rank) % high


def fit(case: str, data: list[dict], rank: int = 0, **options) -> dict[str, Tensor]:
    """Train; return the weights before and after."""
    across = options.pop("across_ranks", True)
    ours = module(case, across_ranks=across)
    if case == "mix_match" and not options:  # one process, with the graph of each half
        sample = ours.sample

        def both(labels: Tensor, step: tuple[int, ...]) -> Triplets:
            parts = [sample(labels[6 * each :][:6], (*step[:2], each)) for each in (0, 1)]
            indices = torch.cat([part.indices + 6 * each for each, part in enumerate(parts)])
            return Triplets(indices, torch.cat([part.valid for part in parts]))

        ours.sample = both
    with patch("torch.randint", _puzzles(rank)) if case == "jigsaw" else warnings.catch_warnings():
        train(ours, data, STEPS, precision="64-true", max_epochs=1, **options)
    return weights(ours)


def alone(case: str) -> dict[str, Tensor]:
    """Return the weights of one process that has the batches of both."""
    return fit(case, together(case))


def main(folder: Path, rank: int) -> None:
    """Train every case; write `rank<r>.pt`, the weights by the name of the case."""
    found = {}
    for case in CASES:
        for across in (True, False):
            strategy = DDPStrategy(process_group_backend="gloo")
            data = batches(case, rank)
            options = {"devices": 2, "strategy": strategy, "use_distributed_sampler": False}
            found[case, across] = fit(case, data, rank, across_ranks=across, **options)
    torch.save(found, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    import os

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(os.environ["RANK"]))
