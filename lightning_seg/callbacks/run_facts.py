"""What a run was made of: code, data and classes, for the configuration that loggers keep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_seg import __version__
from lightning_seg.provenance import commit

SPLITS = ("train", "val", "test", "unlabeled")


def run_facts(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """Return what tells this run from another one beside its configuration.

    Args:
        trainer: The Trainer, whose data module has found its images.
        module: The module that is trained.

    Returns:
        Plain values by name: `lightning_seg`, the version; `git_commit`, None outside a checkout;
        `dataset`; `images` and `split_hash` by the name of the split; `classes`, their number; and
        `weights`, the number of trained weights.
    """
    data = trainer.datamodule  # type: ignore[attr-defined]
    ids: Callable[[str], list[str]] = getattr(data, "split_ids", lambda _: [])
    splits = {name: found for name in SPLITS if (found := ids(name))}
    return {
        "lightning_seg": __version__,
        "git_commit": commit(),
        "method": type(module).__name__,
        "dataset": None if data is None else type(data).__name__.removesuffix("DataModule"),
        "images": {name: len(found) for name, found in splits.items()},
        "split_hash": {name: split_hash(found) for name, found in splits.items()},
        "classes": len(getattr(module, "class_names", ())),
        "weights": sum(each.numel() for each in module.parameters() if each.requires_grad),
    }


def split_hash(ids: Sequence[str]) -> str:
    """Return 12 digits that are equal for equal sets of names, in any order.

    Examples:
        >>> split_hash(["b", "a"]) == split_hash(["a", "b"]) != split_hash(["a"])
        True
    """
    return sha256("\n".join(sorted(ids)).encode()).hexdigest()[:12]


def class_shares(confusion: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Return the share of every class among the labelled pixels of a validation.

    Args:
        confusion: (C, C) pixels at [label, prediction].
        names: One name per class.
    """
    pixels = confusion.sum(1).double()
    shares = (pixels / pixels.sum().clamp(min=1)).tolist()
    return {name: round(share, 6) for name, share in zip(names, shares, strict=True)}
