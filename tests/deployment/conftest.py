"""A trained network, for tests of what becomes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_runs import SMALL_WORDS

import cli

WORDS = [
    *SMALL_WORDS[:-1],
    "--model.network=LRASPP",
    "--model.network.encoder=test_efficientnet",
]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory):
    """A run of one step, its checkpoint, and some photographs of drawn scenes."""
    folder = tmp_path_factory.mktemp("run")
    words = [*WORDS, f"--trainer.default_root_dir={folder}"]
    words[words.index("--model.network=LRASPP")] = "--model.network=lightning_seg.networks.LRASPP"
    fitted = cli.main(["fit", *words, "--trainer.max_steps=1"])
    path = Path(fitted.trainer.checkpoint_callback.best_model_path)
    image = np.random.default_rng(0).integers(0, 256, (75, 98, 3), dtype=np.uint8)
    Image.fromarray(image).save(folder / "photo.png")
    return fitted.model.eval(), path, folder, image
