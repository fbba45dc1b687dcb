from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules import CityscapesDataModule, DataError

NAMES = (
    "road sidewalk building wall fence pole traffic_light traffic_sign vegetation terrain sky "
    "person rider car truck bus train motorcycle bicycle"
)
STORED = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
"""The id of every training class, as the benchmark's table gives them."""

FRAMES = {
    "train": ["aachen/aachen_000000_000019", "ulm/ulm_000001_000019"],
    "val": ["lindau/lindau_000000_000019"],
}


def write(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


def ids_of(name: str) -> np.ndarray:
    return np.random.default_rng(len(name)).permutation([*range(34), 255, 255]).reshape(4, 9)


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    root = tmp_path / "Städte und Straßen/cityscapes"
    for split, names in FRAMES.items():
        for name in names:
            write(root / f"leftImg8bit/{split}/{name}_leftImg8bit.png", np.zeros((4, 9, 3)))
            write(root / f"gtFine/{split}/{name}_gtFine_labelIds.png", ids_of(name))
            write(root / f"gtFine/{split}/{name}_gtFine_color.png", np.zeros((4, 9, 3)))
            write(root / f"gtFine/{split}/{name}_gtFine_instanceIds.png", np.zeros((4, 9)))
    return root


def test_the_names_and_a_few_colours(tmp_path: Path) -> None:
    module = CityscapesDataModule(str(tmp_path))
    assert [name.replace(" ", "_") for name in module.class_names] == NAMES.split()
    palette = dict(zip(module.class_names, module.palette, strict=True))
    assert palette["road"] == [128, 64, 128]
    assert palette["sky"] == [70, 130, 180]
    assert palette["bicycle"] == [119, 11, 32]


@pytest.mark.parametrize("root", ["", ".."])
def test_ids_are_paths_without_the_ending(cityscapes: Path, root: str) -> None:
    module = CityscapesDataModule(str(cityscapes / root))
    assert module.source("train").ids == FRAMES["train"]
    assert module.source("val").ids == FRAMES["val"]
    assert module.source("test").ids == FRAMES["val"]


def test_19_of_the_34_ids_are_classes(cityscapes: Path) -> None:
    source = CityscapesDataModule(str(cityscapes)).source("train")
    for index, name in enumerate(FRAMES["train"]):
        stored = ids_of(name)
        expected = np.full_like(stored, 255)
        for label, value in enumerate(STORED):
            expected[stored == value] = label
        assert np.array_equal(source[index].mask, expected)


def test_train_ids_are_read_where_every_image_has_them(cityscapes: Path) -> None:
    def train_ids(name: str) -> Path:
        path = cityscapes / f"gtFine/train/{name}_gtFine_labelTrainIds.png"
        write(path, np.array([[*range(19), 255]]).repeat(2, 0).reshape(4, 10)[:, :9])
        return path

    first, second = FRAMES["train"]
    path = train_ids(first)
    source = CityscapesDataModule(str(cityscapes)).source("train")
    assert source.masks[first].name.endswith("_gtFine_labelIds.png")
    train_ids(second)
    source = CityscapesDataModule(str(cityscapes)).source("train")
    assert source.masks[first] == path
    assert np.array_equal(source[0].mask, np.array(Image.open(path)))


@pytest.mark.parametrize("value", [34, 200, 254])
def test_a_foreign_value_names_the_file(cityscapes: Path, value: int) -> None:
    name = FRAMES["train"][0]
    write(cityscapes / f"gtFine/train/{name}_gtFine_labelIds.png", np.full((4, 9), value))
    with pytest.raises(DataError, match=rf"{name}_gtFine_labelIds\.png holds {value}"):
        CityscapesDataModule(str(cityscapes)).setup("fit")


def test_a_frame_without_labels_is_named(cityscapes: Path) -> None:
    (cityscapes / f"gtFine/train/{FRAMES['train'][1]}_gtFine_labelIds.png").unlink()
    with pytest.raises(DataError, match="1 of 2 have no mask: ulm/ulm_000001_000019"):
        CityscapesDataModule(str(cityscapes)).setup("fit")


def test_labels_without_a_frame_are_named(cityscapes: Path) -> None:
    (cityscapes / f"leftImg8bit/train/{FRAMES['train'][1]}_leftImg8bit.png").unlink()
    with pytest.raises(DataError, match="1 of 2 have no image: ulm/ulm_000001_000019"):
        CityscapesDataModule(str(cityscapes)).setup("fit")


def test_missing_labels_are_told(cityscapes: Path) -> None:
    (cityscapes / "gtFine").rename(cityscapes / "gtCoarse")
    with pytest.raises(DataError, match="gtFine/train does not exist"):
        CityscapesDataModule(str(cityscapes)).setup("fit")


def test_the_extra_images_are_there_when_asked_for(cityscapes: Path) -> None:
    with pytest.raises(DataError, match=r"train_extra does not exist(.|\n)*trainextra\.zip"):
        CityscapesDataModule(str(cityscapes), train_extra=True).extra_images()
    path = cityscapes / "leftImg8bit/train_extra/bayreuth/bayreuth_000000_000000_leftImg8bit.png"
    write(path, np.zeros((4, 9, 3)))
    extra = CityscapesDataModule(str(cityscapes), train_extra=True).extra_images()
    assert extra == {"bayreuth/bayreuth_000000_000000": path}
    assert CityscapesDataModule(str(cityscapes)).extra_images() == {}


def test_cities_may_be_links(cityscapes: Path, tmp_path: Path) -> None:
    for kind in ("leftImg8bit", "gtFine"):
        city = cityscapes / kind / "train/ulm"
        city.rename(tmp_path / kind)
        city.symlink_to(tmp_path / kind)
    assert CityscapesDataModule(str(cityscapes)).source("train").ids == FRAMES["train"]


def test_authentic_files_agree(shared: Path, tmp_path: Path) -> None:
    """A frame's published training ids are what its ids are decoded to.

    Both files of the sample were made smaller, each on its own: 77 of 32,768 pixels differ.
    """
    root = shared / "data/layouts/cityscapes"
    name = "frankfurt/frankfurt_000000_000294"
    labels = root / f"gtFine/val/{name}_gtFine_"
    published = np.array(Image.open(f"{labels}labelTrainIds.png"))
    stored = np.array(Image.open(f"{labels}labelIds.png"))
    source = CityscapesDataModule(str(root)).source("val")
    assert np.array_equal(source[0].mask, published)
    for target in (
        f"leftImg8bit/val/{name}_leftImg8bit.png",
        f"gtFine/val/{name}_gtFine_labelIds.png",
    ):
        path = tmp_path / target
        path.parent.mkdir(parents=True)
        path.symlink_to(root / target)
    source = CityscapesDataModule(str(tmp_path)).source("val")
    assert source.ids == [name]
    mask = source[0].mask
    assert (mask != published).sum() == 77
    for value in np.unique(stored):
        counts = np.bincount(published[stored == value])
        assert (mask[stored == value] == counts.argmax()).all()
