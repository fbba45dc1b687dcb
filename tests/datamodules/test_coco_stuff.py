from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules import COCOStuffDataModule, DataError

WITHOUT_PIXELS = {
    "street sign",
    "hat",
    "shoe",
    "eye glasses",
    "plate",
    "mirror",
    "window",
    "desk",
    "door",
    "blender",
    "hair brush",
}
"""The things that COCO's authors took back, as COCO-Stuff's page lists them."""


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(path)


def dataset(root: Path, images: str, masks: str) -> Path:
    stored = np.array([[0, 10, 12, 89, 91, 181, 255, 255]])
    for split, count in (("train2017", 2), ("val2017", 1)):
        for number in range(count):
            write(root / images / split / f"{number:012d}.jpg", np.zeros((1, 8, 3)))
            write(root / masks / split / f"{number:012d}.png", stored)
    return root


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return dataset(tmp_path / "дані COCO/cocostuff", "images", "annotations")


@pytest.mark.parametrize("images", ["images", ""])
@pytest.mark.parametrize("masks", ["annotations", "stuffthingmaps_trainval2017"])
def test_the_usual_folders(images: str, masks: str, tmp_path: Path) -> None:
    module = COCOStuffDataModule(str(dataset(tmp_path, images, masks)))
    assert module.source("train").ids == ["000000000000", "000000000001"]
    assert module.source("val").ids == ["000000000000"]
    assert module.source("test").ids == ["000000000000"]


def test_the_folder_above_will_do(coco: Path) -> None:
    assert len(COCOStuffDataModule(str(coco.parent)).source("train")) == 2


def test_171_classes_close_the_gaps_and_182_keep_them(coco: Path) -> None:
    """Below 12 lies one unused id, below 89 there are ten, below 91 and 181 eleven."""
    closed = COCOStuffDataModule(str(coco))
    kept = COCOStuffDataModule(str(coco), num_ids=182)
    assert closed.source("val")[0].mask.tolist() == [[0, 10, 11, 79, 80, 170, 255, 255]]
    assert kept.source("val")[0].mask.tolist() == [[0, 10, 12, 89, 91, 181, 255, 255]]
    assert (closed.num_classes, kept.num_classes) == (171, 182)
    named = {0: "person", 10: "fire hydrant", 11: "stop sign", 79: "toothbrush", 80: "banner"}
    assert {index: closed.class_names[index] for index in named} == named
    assert closed.class_names[-1] == kept.class_names[-1] == "wood"
    assert set(kept.class_names) - set(closed.class_names) == WITHOUT_PIXELS


@pytest.mark.parametrize("value", [11, 90, 182, 254])
def test_a_foreign_value_names_the_file(coco: Path, value: int) -> None:
    write(coco / "annotations/train2017/000000000001.png", np.full((1, 8), value))
    with pytest.raises(DataError, match=rf"000000000001\.png holds {value}"):
        COCOStuffDataModule(str(coco)).setup("fit")
    if value < 182:
        COCOStuffDataModule(str(coco), num_ids=182).setup("fit")


def test_mmsegmentations_files_beside_the_masks_are_left_alone(coco: Path) -> None:
    write(coco / "annotations/val2017/000000000000_labelTrainIds.png", np.zeros((1, 8)))
    assert COCOStuffDataModule(str(coco)).source("val").ids == ["000000000000"]


def test_a_missing_part_is_named(coco: Path) -> None:
    (coco / "annotations/train2017/000000000001.png").unlink()
    with pytest.raises(DataError, match="1 of 2 have no mask: 000000000001"):
        COCOStuffDataModule(str(coco)).setup("fit")
    (coco / "annotations/train2017").rename(coco / "elsewhere")
    with pytest.raises(DataError, match="annotations/train2017 does not exist"):
        COCOStuffDataModule(str(coco)).setup("fit")


def test_authentic_files(shared: Path) -> None:
    home = shared / "data/layouts/cocostuff"
    module, every = COCOStuffDataModule(str(home)), COCOStuffDataModule(str(home), num_ids=182)
    listed = (home / "cocostuff10k-labels.txt").read_text().splitlines()
    names = [line.split(": ", 1)[1].strip() for line in listed if line.strip()][1:]
    assert every.class_names == names
    assert module.class_names == [name for name in names if name not in WITHOUT_PIXELS]
    for split, count in (("train", 13), ("val", 8)):
        source, stored = module.source(split), every.source(split)
        assert len(source) == count
        for number, name in enumerate(source.ids):
            values = np.array(Image.open(home / f"annotations/{split}2017/{name}.png"))
            assert np.array_equal(stored[number].mask, values)
            mask = source[number].mask
            assert np.array_equal(mask == 255, values == 255)
            for value in np.unique(values[values < 255]):
                assert module.class_names[mask[values == value].max()] == names[value]
                assert module.class_names[mask[values == value].min()] == names[value]
