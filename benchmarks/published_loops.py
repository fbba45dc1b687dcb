"""Both adversarial methods as plain PyTorch loops, in the order of operations of the authors' code.

The loops follow a specification of the authors' code, without its conversions to numpy.
`two_players.py` compares the modules of this project with them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_seg.training.image_input import IMAGENET_MEAN, IMAGENET_STD

CLASSES, VOID = 21, 255
LENGTH = 1000
"""Iterations in which the weight of the analyzer's hinge falls to a tenth."""
Batch = dict[str, Any]

# The loss weights are those published. L_semi counts from the first step on, with a threshold that
# keeps a part of the pixels.
ADV, SEMI, SEMI_ADV, T_SEMI = 0.01, 0.1, 0.001, 0.5
HINGE, MARGIN = 0.012, 0.8
sgd = partial(torch.optim.SGD, lr=2.5e-4, momentum=0.9, weight_decay=5e-4)
adam = partial(torch.optim.Adam, lr=1e-4, betas=(0.9, 0.99))
momentum = partial(torch.optim.SGD, lr=1e-2, momentum=0.9)


class PublishedLoop(ABC):
    """The base of both loops: networks, normalisation and precision."""

    def __init__(self, net: nn.Module, opponent: nn.Module, device: str, precision: str) -> None:
        self.net, self.opponent = net.to(device).train(), opponent.to(device).train()
        mean, std = getattr(net, "mean", IMAGENET_MEAN), getattr(net, "std", IMAGENET_STD)
        self.mean = torch.tensor(mean, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(std, device=device).view(1, 3, 1, 1)
        self.autocast = torch.autocast(device, torch.bfloat16, enabled=precision == "bf16-mixed")
        self.iteration = 0

    def logits(self, image: Tensor) -> Tensor:
        return self.net((image.float() / 255 - self.mean) / self.std)["out"].float()

    @abstractmethod
    def step(self, batch: Batch) -> None:
        """Update both players on one batch; `iteration` is the number of the update."""


class PublishedSemiAdv(PublishedLoop):
    """Adversarial semi-supervision with four backward passes.

    The discriminator is frozen in both passes of the segmenter.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.optimizers = sgd(self.net.parameters()), adam(self.opponent.parameters())

    def step(self, batch: Batch) -> None:
        labeled, real = batch["labeled"], batch["labeled_real"]["mask"]
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.opponent.requires_grad_(False)
        with self.autocast:
            others = self.logits(batch["unlabeled"]["image"])
            scores = self.scores(others.softmax(1))
            known = torch.ones_like(scores, dtype=torch.bool)
            kept = scores.detach().sigmoid() >= T_SEMI
            pseudo = torch.where(kept, others.detach().max(1).indices, VOID)
            loss = SEMI_ADV * self.bce(scores, 1, known)
            loss = loss + SEMI * F.cross_entropy(others, pseudo, ignore_index=VOID)
        loss.backward()
        with self.autocast:
            logits, target = self.logits(labeled["image"]), labeled["mask"]
            loss = F.cross_entropy(logits, target, ignore_index=VOID)
            scores = self.scores(logits.softmax(1))
            loss = loss + ADV * self.bce(scores, 1, target != VOID)
        loss.backward()
        self.opponent.requires_grad_(True)
        with self.autocast:
            maps = torch.cat([logits.detach().softmax(1), others.detach().softmax(1)])
            valid = torch.cat([target != VOID, known])
            loss = self.bce(self.scores(maps), 0, valid) / 2
        loss.backward()
        with self.autocast:
            loss = self.bce(self.scores(one_hot(real)), 1, real != VOID) / 2
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()

    def scores(self, maps: Tensor) -> Tensor:
        scores = self.opponent(maps).float()
        size = maps.shape[-2:]
        return F.interpolate(scores, size, mode="bilinear", align_corners=True)[:, 0]

    def bce(self, scores: Tensor, label: int, valid: Tensor) -> Tensor:
        wanted = torch.full_like(scores, label)
        weight = valid.float()
        total = F.binary_cross_entropy_with_logits(scores, wanted, weight, reduction="sum")
        return total / weight.sum()


class PublishedASM(PublishedLoop):
    """Structure matching: two optimizers update the analyzer, then the segmenter is updated.

    The whole analyzer runs for every map, also where its reconstruction is not used.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.optimizer = momentum(self.net.parameters())
        self.weights = list(self.opponent.parameters())
        self.of_hinge, self.of_rebuilt = momentum(self.weights), momentum(self.weights)

    def step(self, batch: Batch) -> None:
        image, target = batch["labeled"]["image"], batch["labeled"]["mask"]
        with self.autocast:
            logits = self.logits(image)
            truth, void = one_hot(target), (target == VOID)[:, None].float()
            valid = [
                (void := F.max_pool2d(void, 3, stride=2, padding=1))[:, 0] == 0
                for _ in self.opponent.taps
            ]
            features, rebuilt = self.opponent(truth)
            others, _ = self.opponent(one_hot(logits.detach().max(1).indices))
            hinge = sum(
                mean_of((MARGIN - distance).relu(), ok)
                for distance, ok in zip(distances(features, others), valid, strict=True)
            )
            hinge = HINGE * 10 ** (-self.iteration / LENGTH) * hinge
            reconstruction = F.cross_entropy(rebuilt.float(), target, ignore_index=VOID)
        both = [
            torch.autograd.grad(loss, self.weights, retain_graph=True, allow_unused=True)
            for loss in (hinge, reconstruction)
        ]
        for optimizer, gradients in zip((self.of_hinge, self.of_rebuilt), both, strict=True):
            for weight, gradient in zip(self.weights, gradients, strict=True):
                weight.grad = gradient
            optimizer.step()
            optimizer.zero_grad()
        del features, rebuilt, others, hinge, reconstruction, both, gradients, gradient
        self.optimizer.zero_grad()
        self.opponent.requires_grad_(False)
        with self.autocast:
            features, _ = self.opponent(truth)
            others, _ = self.opponent(logits.softmax(1))
            loss = F.cross_entropy(logits, target, ignore_index=VOID) + sum(
                mean_of(distance, ok)
                for distance, ok in zip(distances(features, others), valid, strict=True)
            )
        loss.backward()
        self.optimizer.step()
        self.opponent.requires_grad_(True)


def one_hot(labels: Tensor) -> Tensor:
    """Return (B, C, H, W) one-hot vectors of (B, H, W) class ids, zero vectors at void pixels."""
    classes = torch.arange(CLASSES, device=labels.device).view(1, -1, 1, 1)
    return (labels[:, None] == classes).float()


def distances(features: list[Tensor], others: list[Tensor]) -> list[Tensor]:
    """Return the squared distances of unit vectors, one (B, h, w) tensor per tap."""
    with torch.autocast(features[0].device.type, enabled=False):
        units = [
            [F.normalize(each.float(), eps=1e-6) for each in maps] for maps in (features, others)
        ]
        return [(a - b).square().sum(1) for a, b in zip(*units, strict=True)]


def mean_of(values: Tensor, valid: Tensor) -> Tensor:
    """Return the mean of the valid values, 0 where none is valid."""
    return (values * valid).sum() / valid.sum().clamp(min=1)
