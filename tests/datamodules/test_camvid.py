from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules import CamVidDataModule, DataError


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


@pytest.fixture
def tutorial(tmp_path: Path) -> Path:
    """The folder of SegNet's tutorial: masks beside the images, in folders of their own."""
    root = tmp_path / "SegNet Übung/CamVid"
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (12, 2)).save(root / split / f"{split}_{number}.png")
            stored = np.stack([np.arange(12), np.arange(12)[::-1]]).astype(np.uint8)
            Image.fromarray(stored).save(root / f"{split}annot/{split}_{number}.png")
        (root / f"{split}.txt").write_text(f"/SegNet/CamVid/{split}/x.png /SegNet/y.png\n")
    return root


@pytest.mark.parametrize("root", ["", ".."])
def test_the_folders_of_the_tutorial(tutorial: Path, root: str) -> None:
    module = CamVidDataModule(str(tutorial / root))
    assert module.source("train").ids == ["train_0", "train_1", "train_2"]
    assert module.source("val").ids == ["val_0", "val_1"]
    assert module.source("test").ids == ["test_0"]
    mask = module.source("val")[0].mask
    assert mask.tolist() == [[*range(11), 255], [255, *range(10, -1, -1)]]


def test_the_tutorials_test_images_are_what_is_predicted(tutorial: Path) -> None:
    module = CamVidDataModule(str(tutorial), num_workers=0)
    module.setup("predict")
    assert [batch["id"] for batch in module.predict_dataloader()] == [["test_0"]]


def test_lone_files_of_the_tutorial_are_named(tutorial: Path) -> None:
    (tutorial / "trainannot/train_1.png").unlink()
    with pytest.raises(DataError, match="1 of 3 have no mask: train_1"):
        CamVidDataModule(str(tutorial)).setup("fit")


def test_a_value_that_is_no_class_names_the_file(tutorial: Path) -> None:
    Image.new("L", (12, 2), 12).save(tutorial / "valannot/val_1.png")
    with pytest.raises(DataError, match=r"valannot/val_1\.png holds 12"):
        CamVidDataModule(str(tutorial)).setup("fit")
