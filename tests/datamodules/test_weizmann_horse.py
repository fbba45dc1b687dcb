from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from datamodules import DataError, WeizmannHorseDataModule


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """The 328 images as downloaded, 24x16 pixels each, and masks of 12x8 pixels."""
    root = tmp_path / "cavalli d'autunno è/weizmann_horse_db"
    for kind in ("rgb", "figure_ground"):
        (root / kind).mkdir(parents=True)
    image = Image.fromarray(np.full((16, 24, 3), 90, np.uint8))
    mask = np.zeros((8, 12), np.uint8)
    mask[:, 8:] = 255
    for number in range(1, 329):
        image.save(root / f"rgb/horse{number:03d}.jpg")
        Image.fromarray(mask).save(root / f"figure_ground/horse{number:03d}.jpg", quality=95)
    return root


@pytest.mark.parametrize("root", ["", ".."])
def test_the_database_is_divided_without_the_black_image(database: Path, root: str) -> None:
    module = WeizmannHorseDataModule(str(database / root))
    parts = {split: module.source(split).ids for split in ("train", "val", "test")}
    assert {split: len(ids) for split, ids in parts.items()} == {
        "train": 200,
        "val": 63,
        "test": 64,
    }
    together = sorted(name for ids in parts.values() for name in ids)
    assert together == [f"horse{number:03d}" for number in range(1, 329) if number != 318]
    assert parts["train"] != together[:200]
    assert parts == {split: module.source(split).ids for split in parts}


def test_images_take_the_size_of_their_masks(database: Path) -> None:
    source = WeizmannHorseDataModule(str(database)).source("train")
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    path = source.images[source.ids[0]]
    Image.fromarray(pixels).save(path.with_suffix(".png"))
    source.images[source.ids[0]] = path.with_suffix(".png")
    example = source[0]
    assert example.mask.shape == (8, 12)
    # half the size: the mean of two by two pixels
    mean = pixels.reshape(8, 2, 12, 2, 3).mean((1, 3))
    assert np.abs(example.image - mean).max() <= 0.5
    assert set(np.unique(example.mask)) == {0, 1}
    assert (example.mask[:, 9:] == 1).all()
    assert (example.mask[:, :7] == 0).all()


def test_a_mask_may_be_the_larger_one(database: Path) -> None:
    source = WeizmannHorseDataModule(str(database)).source("train")
    Image.new("L", (48, 32)).save(source.masks[source.ids[0]])
    example = source[0]
    assert example.image.shape == (32, 48, 3)
    assert np.abs(example.image.astype(int) - 90).max() <= 1


def test_128_and_above_is_horse(database: Path) -> None:
    source = WeizmannHorseDataModule(str(database)).source("val")
    path = source.masks[source.ids[0]].with_suffix(".png")
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(8, 32)).save(path)
    source.masks[source.ids[0]] = path
    Image.new("RGB", (32, 8)).save(source.images[source.ids[0]])
    assert source[0].mask.ravel().tolist() == [0] * 128 + [1] * 128


@pytest.mark.parametrize(("width", "fits"), [(1000, True), (1015, True), (1030, False)])
def test_the_proportions_must_agree_within_2_percent(
    database: Path, width: int, fits: bool
) -> None:
    source = WeizmannHorseDataModule(str(database)).source("train")
    Image.new("RGB", (width, 500)).save(source.images[source.ids[0]])
    Image.new("L", (100, 50)).save(source.masks[source.ids[0]])
    if fits:
        assert source[0].image.shape == (50, 100, 3)
    else:
        told = rf"{source.ids[0]}\.jpg is 1030x500 .* is 100x50; .*proportions.*2%"
        with pytest.raises(DataError, match=told):
            source[0]


def test_images_without_their_labels_keep_the_size(database: Path) -> None:
    source = WeizmannHorseDataModule(str(database)).source("train").without_labels()
    assert source[0].mask is None
    assert source[0].image.shape == (8, 12, 3)


def test_lone_files_are_named(database: Path) -> None:
    (database / "figure_ground/horse007.jpg").unlink()
    with pytest.raises(DataError, match="1 of 328 have no mask: horse007"):
        WeizmannHorseDataModule(str(database)).setup("fit")


def test_a_value_that_is_neither_names_the_file(write_dataset) -> None:
    root = write_dataset({"train": 2, "val": 1}, values=(0, 1, 2), layout="{split}/{kind}")
    with pytest.raises(DataError, match=r"train_0\.png holds 2"):
        WeizmannHorseDataModule(str(root)).setup("fit")


def test_folders_of_splits(write_dataset) -> None:
    root = write_dataset({"train": 3, "val": 2, "test": 1}, (0, 1), layout="{split}/{kind}")
    module = WeizmannHorseDataModule(str(root))
    assert [len(module.source(split)) for split in ("train", "val", "test")] == [3, 2, 1]
    assert (module.class_names, module.num_classes) == (["background", "horse"], 2)
    assert module.palette == [[0, 0, 0], [255, 255, 255]]


def test_authentic_files(shared: Path) -> None:
    """The README's numbers: the split, and a mean share of 25.1 % of horse."""
    module = WeizmannHorseDataModule(str(shared / "data/weizmann_horses"))
    sources = {split: module.source(split) for split in ("train", "val", "test")}
    assert {split: len(source) for split, source in sources.items()} == {
        "train": 200,
        "val": 63,
        "test": 64,
    }
    masks = [source[i].mask for source in sources.values() for i in range(len(source))]
    assert {value for mask in masks for value in np.unique(mask)} == {0, 1}
    assert abs(np.mean([mask.mean() for mask in masks]) - 0.251) < 5e-4


def test_authentic_files_in_the_layout_of_the_database(shared: Path, tmp_path: Path) -> None:
    """The sample's masks as 0 and 255 in JPEG files, its images at twice their size."""
    home = shared / "data/weizmann_horses/val"
    for kind in ("rgb", "figure_ground"):
        (tmp_path / kind).mkdir()
    paths = sorted((home / "masks").iterdir())[:3]
    for path in paths:
        mask = np.array(Image.open(path)) * np.uint8(255)
        Image.fromarray(mask).save(tmp_path / f"figure_ground/{path.stem}.jpg", quality=95)
        image = np.array(Image.open(home / f"images/{path.stem}.jpg"))
        twice = cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
        Image.fromarray(twice).save(tmp_path / f"rgb/{path.stem}.png")
    source = WeizmannHorseDataModule(str(tmp_path)).source("train")
    for number, path in enumerate(paths):
        assert (source[number].mask == np.array(Image.open(path))).mean() > 0.999
        image = np.array(Image.open(home / f"images/{path.stem}.jpg"), dtype=int)
        assert np.abs(source[number].image - image).max() <= 2  # one decoder is not the other
