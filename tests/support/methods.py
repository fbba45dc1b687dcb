"""The methods, as `configs/method` lists them: a new file there is tested without another line."""

from __future__ import annotations

from pathlib import Path

import yaml
from places import ROOT

import lightning_seg
from lightning_seg import PretrainingModule, TwoPlayerModule


def _module(piece: Path) -> type:
    content = yaml.safe_load(piece.read_text())["model"]
    return getattr(lightning_seg, content["class_path"].rpartition(".")[2])


PIECES = {path.stem: _module(path) for path in sorted((ROOT / "configs/method").glob("*.yaml"))}
FOR_ENCODERS = [name for name, kind in PIECES.items() if issubclass(kind, PretrainingModule)]
FOR_SEGMENTATION = [name for name in PIECES if name not in FOR_ENCODERS]
TWO_PLAYERS = [name for name, kind in PIECES.items() if issubclass(kind, TwoPlayerModule)]
SUPERVISED = [
    kind
    for name, kind in PIECES.items()
    if name in FOR_SEGMENTATION and not issubclass(kind, TwoPlayerModule)
]
"""The methods that learn from labelled images alone, with one optimizer."""


def tiny_words(name: str) -> list[str]:
    """Return the options of `fit` that make a method's piece small enough for a test."""
    words = [
        "-c",
        f"{ROOT}/configs/method/{name}.yaml",
        "--model.lr=0.01",
        "--data.labeled=1/2",
        "--data.image_size=[64,96]",
        "--data.crop_size=64",
        "--data.train_size=8",
        "--data.val_size=2",
        "--data.batch_size=2",
        "--data.num_workers=0",
        "--trainer.accelerator=cpu",
        "--trainer.logger=false",
        "--trainer.enable_progress_bar=false",
    ]
    if name not in FOR_ENCODERS:
        return [*words, "--model.network=tiny.TinyNet"]
    words += ["--model.encoder.name=test_resnet"]
    return [*words, "--model.permutations=10"] if name == "jigsaw" else words
