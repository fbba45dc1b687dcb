from pathlib import Path

import numpy as np
from PIL import Image

from datamodules import CamVidDataModule


def test_the_official_split_and_palette(shared: Path) -> None:
    module = CamVidDataModule(root=str(shared / "data/camvid"), num_workers=0)
    sizes = {split: len(module.source(split)) for split in ("train", "val", "test")}
    assert sizes == {"train": 367, "val": 101, "test": 233}
    assert module.num_classes == 11
    source = module.source("val")
    stored = Image.open(source.masks[source.ids[0]])
    assert stored.getpalette()[:33] == [channel for rgb in module.palette for channel in rgb]
    assert np.array_equal(source[0].mask == 255, np.array(stored) == 11)


def test_pixel_shares_are_those_of_the_dataset(shared: Path) -> None:
    """The shares in percent that stand in the dataset's README, void left out."""
    source = CamVidDataModule(root=str(shared / "data/camvid"), num_workers=0).source("val")
    counts = sum(np.bincount(source[i].mask.ravel(), minlength=256) for i in range(len(source)))
    shares = 100 * counts / counts.sum()
    expected = [9.177, 25.962, 0.564, 28.953, 8.719, 16.336, 0.892, 3.078, 1.746, 0.651, 2.217]
    assert np.allclose(shares[:11], expected, atol=6e-4)
    assert abs(shares[255] - 1.703) < 6e-4
