"""What tests share: no network, no account, small images, the shared data where it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from places import SHARED

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"


@pytest.fixture
def shared() -> Path:
    """The folder of datasets and weights beside the repository."""
    if not SHARED.is_dir():
        pytest.skip("the shared datasets are not beside this checkout")
    return SHARED


@pytest.fixture(autouse=True)
def _few_threads() -> None:
    """Tiny tensors: threads would only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's seed_everything leaves its seed behind in the environment."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")


WriteDataset = Callable[..., Path]


@pytest.fixture
def write_dataset(tmp_path: Path) -> WriteDataset:
    """Write `count` random images and masks per split under root/images/<split>, root/masks/..."""

    def write(
        splits: dict[str, int],
        values: tuple[int, ...] = (0, 1, 2),
        size: tuple[int, int] = (24, 32),
        layout: str = "{kind}/{split}",
    ) -> Path:
        rng = np.random.default_rng(0)
        root = tmp_path / "dataset"
        for split, count in splits.items():
            for number in range(count):
                image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
                mask = rng.choice(np.array(values, np.uint8), size)
                for kind, array in (("images", image), ("masks", mask)):
                    folder = root / layout.format(kind=kind, split=split)
                    folder.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(array).save(folder / f"{split}_{number}.png")
        return root

    return write
