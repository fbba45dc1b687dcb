import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import SBDataset, VOCSegmentation

from datamodules import DataError, VOCDataModule

LISTS = {"train": ["a", "b"], "val": ["c", "d"], "trainval": ["a", "b", "c", "d"]}


def colormap() -> list[list[int]]:
    """VOC's rule: the bits of an index are dealt out to red, green and blue, highest bit first."""
    colors = []
    for index in range(21):
        bits = [index >> place & 1 for place in range(6)]
        colors.append([bits[c] << 7 | bits[c + 3] << 6 for c in range(3)])
    return colors


def write_mask(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values.astype(np.uint8), "P")
    image.putpalette([channel for color in colormap() for channel in color])
    image.save(path)


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5)).save(path)


def mask_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice([*range(21), 255], (5, 6))


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """VOC2012 with the images a, b for training and c, d for validation; e belongs to no list."""
    home = tmp_path / "Daten für VOC/VOCdevkit/VOC2012"
    for number, name in enumerate("abcde"):
        write_image(home / f"JPEGImages/{name}.jpg")
        write_mask(home / f"SegmentationClass/{name}.png", mask_of(number))
    lists = home / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for name, ids in LISTS.items():
        (lists / f"{name}.txt").write_text("\n".join(ids) + "\n")
    return home


@pytest.fixture
def sbd(tmp_path: Path) -> Path:
    """SBD with a, e, g for training, where g is not in VOC, and c, f for validation."""
    home = tmp_path / "sbd/benchmark_RELEASE/dataset"
    (home / "cls").mkdir(parents=True)
    for number, name in enumerate("acefg", 100):
        write_image(home / f"img/{name}.jpg")
        parts = {
            "Boundaries": np.zeros(20, object),
            "Segmentation": (mask_of(number) % 21).astype(np.uint8),
            "CategoriesPresent": np.array([[1]]),
        }
        savemat(home / f"cls/{name}.mat", {"GTcls": parts})
    (home / "train.txt").write_text("a\ne\ng\n")
    (home / "val.txt").write_text("c\nf\n")
    return home


def test_the_palette_is_vocs_and_the_names_are_known(voc: Path) -> None:
    module = VOCDataModule(str(voc))
    assert module.palette == colormap()
    assert module.class_names[0] == "background"
    assert [module.class_names[index] for index in (1, 8, 15, 20)] == [
        "aeroplane",
        "cat",
        "person",
        "tvmonitor",
    ]


@pytest.mark.parametrize("root", ["", "..", "../.."])
@pytest.mark.parametrize("train", ["train", "trainval"])
def test_the_lists_name_the_images(voc: Path, root: str, train: str) -> None:
    module = VOCDataModule(str(voc / root), train=train)
    assert module.source("train").ids == LISTS[train]
    assert module.source("val").ids == LISTS["val"]
    assert module.source("test").ids == LISTS["val"]


def test_torchvision_finds_the_same_files(voc: Path) -> None:
    for split in ("train", "val"):
        reference = VOCSegmentation(str(voc.parents[1]), image_set=split)
        source = VOCDataModule(str(voc)).source(split)
        assert [os.path.realpath(path) for path in reference.images] == [
            os.path.realpath(source.images[name]) for name in source.ids
        ]
        assert [os.path.realpath(path) for path in reference.targets] == [
            os.path.realpath(source.masks[name]) for name in source.ids
        ]


def test_masks_are_palette_indices_and_255_is_void(voc: Path) -> None:
    source = VOCDataModule(str(voc)).source("train")
    assert [np.array_equal(source[i].mask, mask_of(i)) for i in (0, 1)] == [True, True]


def test_what_was_cut_off_is_left_out_where_that_is_asked_for(voc: Path) -> None:
    """As the check of a dataset asks, which goes on behind files without a counterpart."""
    (voc / "SegmentationClass/a.png").unlink()
    module = VOCDataModule(str(voc))
    module.skip_unpaired = True
    assert module.source("train").ids == ["b"]


def test_folders_may_be_links(voc: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for folder in voc.iterdir():
        (linked / folder.name).symlink_to(folder)
    assert VOCDataModule(str(linked)).source("train").ids == ["a", "b"]


def test_a_value_that_is_no_class_names_the_file(voc: Path) -> None:
    write_mask(voc / "SegmentationClass/b.png", np.full((5, 6), 21))
    with pytest.raises(DataError, match=r"SegmentationClass/b\.png holds 21"):
        VOCDataModule(str(voc)).setup("fit")


@pytest.mark.parametrize(
    ("file", "told"),
    [("JPEGImages/b.jpg", "have no image: b"), ("SegmentationClass/b.png", "have no mask: b")],
)
def test_listed_images_without_a_file_are_named(voc: Path, file: str, told: str) -> None:
    (voc / file).unlink()
    with pytest.raises(DataError, match=rf"train\.txt: 1 of 2 {told}"):
        VOCDataModule(str(voc)).setup("fit")


@pytest.mark.parametrize("gone", ["JPEGImages", "SegmentationClass"])
def test_a_missing_folder_is_named(voc: Path, gone: str) -> None:
    (voc / gone).rename(voc / "elsewhere")
    with pytest.raises(DataError, match=rf"VOC2012/{gone} does not exist"):
        VOCDataModule(str(voc.parent)).setup("fit")


def test_a_missing_list_is_named(voc: Path) -> None:
    (voc / "ImageSets/Segmentation/val.txt").unlink()
    with pytest.raises(DataError, match=r"Segmentation/val\.txt does not exist"):
        VOCDataModule(str(voc)).setup("fit")


def augment(voc: Path, ids: str) -> None:
    for number, name in enumerate(ids, 50):
        write_mask(voc / f"SegmentationClassAug/{name}.png", mask_of(number))


def test_trainaug_without_a_list_is_all_but_validation(voc: Path) -> None:
    augment(voc, "abcde")
    source = VOCDataModule(str(voc), train="trainaug").source("train")
    assert source.ids == ["a", "b", "e"]
    assert np.array_equal(source[2].mask, mask_of(54))
    assert VOCDataModule(str(voc), train="trainaug").source("val").ids == ["c", "d"]


@pytest.mark.parametrize("folder", ["Segmentation", "SegmentationAug"])
@pytest.mark.parametrize("name", ["trainaug", "train_aug"])
@pytest.mark.parametrize("line", ["{0}", "/JPEGImages/{0}.jpg /SegmentationClassAug/{0}.png"])
def test_trainaug_reads_a_list(voc: Path, folder: str, name: str, line: str) -> None:
    augment(voc, "abcde")
    path = voc / f"ImageSets/{folder}/{name}.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(line.format(each) + "\n" for each in "ae"))
    assert VOCDataModule(str(voc), train="trainaug").source("train").ids == ["a", "e"]


def test_a_training_list_with_validation_images_is_refused(voc: Path) -> None:
    augment(voc, "abcde")
    (voc / "ImageSets/Segmentation/trainaug.txt").write_text("a\nc\nd\n")
    with pytest.raises(DataError, match=r"trainaug\.txt names 2 images of the validation.*c, d"):
        VOCDataModule(str(voc), train="trainaug").setup("fit")


@pytest.mark.parametrize("root", ["", "..", "../.."])
def test_trainaug_from_sbds_own_files(voc: Path, sbd: Path, root: str) -> None:
    module = VOCDataModule(str(voc), train="trainaug", sbd=str(sbd / root))
    source = module.source("train")
    assert source.ids == ["a", "b", "e", "f", "g"]
    kinds = {name: source.masks[name].suffix for name in source.ids}
    assert kinds == {"a": ".png", "b": ".png", "e": ".mat", "f": ".mat", "g": ".mat"}
    assert source.images["e"] == voc / "JPEGImages/e.jpg"
    assert source.images["g"].samefile(sbd / "img/g.jpg")
    assert np.array_equal(source[0].mask, mask_of(0))
    assert np.array_equal(source[4].mask, mask_of(104) % 21)


def test_torchvision_reads_the_same_mat_files(voc: Path, sbd: Path) -> None:
    reference = SBDataset(str(sbd), image_set="train", mode="segmentation")
    source = VOCDataModule(str(voc), train="trainaug", sbd=str(sbd)).source("train")
    for index, name in ((1, "e"), (2, "g")):
        assert np.array_equal(source[source.ids.index(name)].mask, np.array(reference[index][1]))


def test_a_wrong_value_in_a_mat_file_names_it(voc: Path, sbd: Path) -> None:
    savemat(sbd / "cls/g.mat", {"GTcls": {"Segmentation": np.full((5, 6), 40, np.uint8)}})
    with pytest.raises(DataError, match=r"g\.mat holds 40"):
        VOCDataModule(str(voc), train="trainaug", sbd=str(sbd)).setup("fit")


def test_missing_extensions_say_what_to_download(voc: Path, sbd: Path, tmp_path: Path) -> None:
    parts = ("sbd=", "benchmark.tgz", "home.bharathh.info", "cls/")
    with pytest.raises(DataError) as neither:
        VOCDataModule(str(voc), train="trainaug").setup("fit")
    with pytest.raises(DataError) as nowhere:
        VOCDataModule(str(voc), train="trainaug", sbd=str(tmp_path / "gone")).setup("fit")
    for part in parts:
        assert part in str(neither.value)
        assert part in str(nowhere.value)
    assert str(voc / "SegmentationClassAug") in str(neither.value)
    (sbd / "val.txt").unlink()
    with pytest.raises(DataError, match=r"val\.txt does not exist(.|\n)*\(option: sbd=\)"):
        VOCDataModule(str(voc), train="trainaug", sbd=str(sbd)).setup("fit")


def test_sbd_alone_changes_nothing_and_is_refused(voc: Path, sbd: Path) -> None:
    with pytest.raises(DataError, match=r"sbd is for .* trainaug, .*\(option: train=trainaug\)"):
        VOCDataModule(str(voc), sbd=str(sbd))


def test_authentic_files(shared: Path) -> None:
    home = shared / "data/layouts/voc/VOCdevkit/VOC2012"
    module = VOCDataModule(str(shared / "data/layouts/voc"), num_workers=0)
    assert module.source("train").ids == ["2011_000003", "2011_000006"]
    source = module.source("val")
    stored = Image.open(home / "SegmentationClass/2011_000025.png")
    assert stored.getpalette()[:63] == [channel for color in module.palette for channel in color]
    assert np.array_equal(source[0].mask, np.array(stored))
    assert np.unique(source[0].mask).tolist() == [0, 6, 7, 255]  # bus and car
    augmented = VOCDataModule(str(home), train="trainaug")
    assert augmented.source("train").ids == ["2011_000003", "2011_000006"]
