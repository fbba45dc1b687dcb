from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules import ADE20KDataModule, DataError


@pytest.fixture
def ade20k(tmp_path: Path) -> Path:
    root = tmp_path / "mes données/ADEChallengeData2016"
    stored = np.arange(151, dtype=np.uint8).reshape(1, 151)
    for split, short, count in (("training", "train", 2), ("validation", "val", 1)):
        for kind, ending, array in (
            ("images", "jpg", np.zeros((1, 151, 3), np.uint8)),
            ("annotations", "png", stored),
        ):
            folder = root / kind / split
            folder.mkdir(parents=True)
            for number in range(1, count + 1):
                Image.fromarray(array).save(folder / f"ADE_{short}_{number:08d}.{ending}")
    return root


def test_names_and_colours(tmp_path: Path) -> None:
    module = ADE20KDataModule(str(tmp_path))
    assert module.num_classes == 150
    named = dict(zip(module.class_names, module.palette, strict=True))
    assert list(named)[:3] == ["wall", "building", "sky"]
    assert list(named)[-1] == "flag"
    known = {"wall": 3 * [120], "sky": [6, 230, 230], "person": [150, 5, 61], "flag": [92, 0, 255]}
    assert known.items() <= named.items()


@pytest.mark.parametrize("root", ["", ".."])
def test_the_splits_are_folders(ade20k: Path, root: str) -> None:
    module = ADE20KDataModule(str(ade20k / root))
    assert module.source("train").ids == ["ADE_train_00000001", "ADE_train_00000002"]
    assert module.source("val").ids == ["ADE_val_00000001"]
    assert module.source("test").ids == ["ADE_val_00000001"]


def test_one_is_taken_away_and_0_is_void(ade20k: Path) -> None:
    mask = ADE20KDataModule(str(ade20k)).source("train")[0].mask
    assert mask.tolist() == [[255, *range(150)]]


def test_a_foreign_value_names_the_file(ade20k: Path) -> None:
    path = ade20k / "annotations/training/ADE_train_00000002.png"
    Image.new("L", (151, 1), 151).save(path)
    with pytest.raises(DataError, match=r"ADE_train_00000002\.png holds 151"):
        ADE20KDataModule(str(ade20k)).setup("fit")


def test_lone_files_are_named(ade20k: Path) -> None:
    (ade20k / "annotations/training/ADE_train_00000001.png").unlink()
    (ade20k / "images/training/ADE_train_00000002.jpg").unlink()
    with pytest.raises(DataError) as error:
        ADE20KDataModule(str(ade20k)).setup("fit")
    for part in (
        "1 of 2 have no image: ADE_train_00000002",
        "1 of 2 have no mask: ADE_train_00000001",
    ):
        assert part in str(error.value)


def test_authentic_files(shared: Path) -> None:
    home = shared / "data/layouts/ade20k/ADEChallengeData2016"
    module = ADE20KDataModule(str(home.parent))
    rows = (home / "objectInfo150.txt").read_text().splitlines()[1:]
    assert module.class_names == [row.split("\t")[4].split(",")[0].strip() for row in rows]
    source = module.source("val")
    assert source.ids == [f"ADE_val_0000000{number}" for number in (1, 2, 3)]
    for number, name in enumerate(source.ids):
        # 0 - 1 is 255 in eight bits
        stored = np.array(Image.open(home / f"annotations/validation/{name}.png"))
        assert np.array_equal(source[number].mask, stored - np.uint8(1))
