import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules import DataError, FolderDataModule


def ids(module: FolderDataModule, split: str) -> list[str]:
    return module.source(split).ids


def opened(root: Path, **options: object) -> FolderDataModule:
    options = {"num_classes": 3, "num_workers": 0, "crop_size": 16, **options}
    return FolderDataModule(str(root), **options)


@pytest.mark.parametrize("layout", ["{kind}/{split}", "{split}/{kind}"])
def test_splits_are_found_as_subfolders(write_dataset, layout: str) -> None:
    root = write_dataset({"train": 3, "val": 2}, layout=layout)
    module = opened(root)
    assert ids(module, "train") == ["train_0", "train_1", "train_2"]
    assert ids(module, "val") == ["val_0", "val_1"]


def test_a_missing_test_split_is_the_validation_split(write_dataset) -> None:
    assert ids(opened(write_dataset({"train": 1, "val": 2})), "test") == ["val_0", "val_1"]


def test_splits_are_read_from_list_files(write_dataset) -> None:
    root = write_dataset({"x": 4}, layout="{kind}")
    (root / "train.txt").write_text("x_0\nx_2.png\n")
    (root / "val.txt").write_text("images/x_1.png masks/x_1.png\n")
    module = opened(root)
    assert ids(module, "train") == ["x_0", "x_2"]
    assert ids(module, "val") == ["images/x_1"]


def test_a_subfolder_goes_before_a_list_unless_the_list_is_named(write_dataset) -> None:
    root = write_dataset({"train": 3, "val": 1}, layout="{split}/{kind}")
    (root / "train.txt").write_text("train/images/train_0.png train/masks/train_0.png\n")
    assert len(ids(opened(root), "train")) == 3
    assert len(ids(opened(root, train="train.txt"), "train")) == 1


def test_lists_may_be_written_like_vocs_or_hold_names_with_spaces(write_dataset) -> None:
    root = write_dataset({"x": 2}, layout="{kind}")
    (root / "train.txt").write_text("/images/x_0.png /masks/x_0.png\r\n")
    for kind in ("images", "masks"):
        (root / kind / "x_1.png").rename(root / kind / "x 1.png")
    (root / "val.txt").write_text("x 1\n")
    module = opened(root)
    assert ids(module, "train") == ["images/x_0"]
    assert ids(module, "val") == ["x 1"]


def test_without_any_split_a_fifth_of_the_images_validates(write_dataset) -> None:
    root = write_dataset({"x": 150}, layout="{kind}", size=(4, 4))
    train, val = ids(opened(root), "train"), ids(opened(root), "val")
    assert 0.13 < len(val) / 150 < 0.27
    assert sorted(train + val) == sorted(f"x_{number}" for number in range(150))
    write_dataset({"y": 10}, layout="{kind}", size=(4, 4))
    assert set(val) <= set(ids(opened(root), "val"))  # none moves when images are added


def test_splits_of_other_names_are_not_divided_anew(write_dataset) -> None:
    root = write_dataset({"training": 3, "validation": 2})
    with pytest.raises(
        DataError, match=r"subfolders training, validation.*\(options: train=, val=\)"
    ):
        ids(opened(root), "train")
    assert len(ids(opened(root, train="training", val="validation"), "val")) == 2


def test_a_mistyped_test_split_is_not_replaced(write_dataset) -> None:
    with pytest.raises(DataError, match="split 'test' has no images"):
        ids(opened(write_dataset({"train": 1, "val": 1}), test="tset"), "test")


@pytest.mark.parametrize(
    "line",
    [
        "images/x_0.png,masks/x_0.png",
        "images/x_0.png\tmasks/x_0.png",
        "images/x_0.png",
        "{root}/images/x_0.png",
        "{root}/images/x_0.png {root}/masks/x_0.png",
        "x_0.png",
    ],
)
def test_lists_hold_paths_in_many_forms(write_dataset, line: str) -> None:
    root = write_dataset({"x": 2}, layout="{kind}")
    (root / "train.txt").write_text("\ufeff" + line.format(root=root) + "\n", encoding="utf-8")
    source = opened(root).source("train")
    assert [Path(source.images[key]).name for key in source.ids] == ["x_0.png"]
    assert [Path(source.masks[key]).name for key in source.ids] == ["x_0.png"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"x_0\nx_0\n", "x_0 more than once"),
        (b"images/x_0.png masks/x_0.png\nimages/x_0.png masks/x_1.png\n", "more than once"),
        (b"images/x_0.png masks/gone.png\n", "does not exist"),
        (b"\xe9\n", "not UTF-8"),
    ],
)
def test_bad_lists_are_told(write_dataset, text: bytes, told: str) -> None:
    root = write_dataset({"x": 2}, layout="{kind}")
    (root / "train.txt").write_bytes(text)
    with pytest.raises(DataError, match=told):
        ids(opened(root), "train")


def test_ids_of_listed_files_stay_inside(write_dataset) -> None:
    root = write_dataset({"x": 2}, layout="{kind}")
    lists = root / "lists"
    lists.mkdir()
    (lists / "train.txt").write_text("../images/x_0.png ../masks/x_0.png\n")
    assert ids(opened(lists, train="train.txt"), "train") == ["x_0"]


def test_one_list_alone_does_not_leave_its_images_to_validation(write_dataset) -> None:
    root = write_dataset({"x": 5}, layout="{kind}")
    (root / "train.txt").write_text("x_0\n")
    with pytest.raises(DataError, match="split 'val' has no images"):
        ids(opened(root), "val")


def test_a_list_that_names_a_missing_image(write_dataset) -> None:
    root = write_dataset({"x": 2}, layout="{kind}")
    (root / "train.txt").write_text("x_0\nx_9\n")
    with pytest.raises(DataError, match=r"train\.txt names x_9.*no image"):
        ids(opened(root), "train")


def test_an_empty_split_tells_where_it_looked(write_dataset) -> None:
    root = write_dataset({"train": 1, "val": 1})
    (root / "images/train/train_0.png").unlink()
    (root / "masks/train/train_0.png").unlink()
    with pytest.raises(DataError, match=r"split 'train' has no images: looked in .*images/train"):
        ids(opened(root), "train")


def test_a_missing_root_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist \(option: root=\)"):
        opened(tmp_path / "nowhere").setup("fit")


def test_two_images_of_one_name_are_told(write_dataset) -> None:
    root = write_dataset({"train": 1, "val": 1})
    Image.new("RGB", (4, 4)).save(root / "images/train/train_0.jpg")
    with pytest.raises(DataError, match=r"train_0\.jpg and .*train_0\.png have the same name"):
        ids(opened(root), "train")


def test_image_without_mask_and_mask_without_image(write_dataset) -> None:
    root = write_dataset({"train": 3, "val": 1})
    (root / "masks/train/train_1.png").unlink()
    (root / "images/train/train_2.png").unlink()
    with pytest.raises(DataError) as error:
        ids(opened(root), "train")
    for part in (
        "1 of 2 images",
        "a mask in",
        "train_1",
        "1 of 2 masks",
        "train_2",
        "unpaired=skip",
    ):
        assert part in str(error.value)
    assert ids(opened(root, unpaired="skip"), "train") == ["train_0"]


def test_mask_names_may_have_a_suffix(write_dataset) -> None:
    root = write_dataset({"train": 1, "val": 1})
    for mask in (root / "masks").rglob("*.png"):
        mask.rename(mask.with_name(f"{mask.stem}_mask.png"))
    assert ids(opened(root, mask_suffix="_mask"), "train") == ["train_0"]


def test_sizes_that_differ_are_told_before_training(write_dataset) -> None:
    root = write_dataset({"train": 1, "val": 1})
    Image.new("L", (9, 7)).save(root / "masks/train/train_0.png")
    with pytest.raises(DataError, match=r"train_0\.png is 32x24 .* is 9x7"):
        opened(root).setup("fit")


def test_a_mask_value_outside_the_classes_is_told_before_training(write_dataset) -> None:
    root = write_dataset({"train": 2, "val": 1}, values=(0, 1, 4))
    with pytest.raises(DataError, match=r"train_\d\.png holds 4"):
        opened(root).setup("fit")


def test_void_is_255_unless_that_is_a_class(write_dataset) -> None:
    root = write_dataset({"train": 1, "val": 1}, values=(0, 255))
    binary = opened(root, num_classes=None, mask_values=[0, 255])
    assert set(np.unique(binary.source("train")[0].mask)) == {0, 1}
    void = opened(root, num_classes=2, void=[255])
    assert set(np.unique(void.source("train")[0].mask)) == {0, 255}


def test_binary_masks_of_0_and_255_are_not_trained_as_void(write_dataset) -> None:
    root = write_dataset({"train": 2, "val": 1}, values=(0, 255))
    with pytest.raises(DataError, match=r"mask_values=\[0,255\], void=\[255\]"):
        opened(root, num_classes=2).setup("fit")


@pytest.mark.parametrize(
    ("values", "told"), [((0, 255), r"hold the values 0, 255"), ((3, 5, 8), r"values 3, 5, 8")]
)
def test_without_classes_the_error_says_what_the_masks_hold(write_dataset, values, told) -> None:
    with pytest.raises(
        DataError, match=rf"{told}.*\(options: num_classes=, mask_values=, color_map=\)"
    ):
        opened(write_dataset({"train": 2}, values=values), num_classes=None)


def test_colour_coded_masks(write_dataset, tmp_path: Path) -> None:
    root = write_dataset({"train": 1, "val": 1})
    color = np.array([[200, 0, 0], [0, 100, 0], [0, 0, 50]], np.uint8)
    for mask in (root / "masks").rglob("*.png"):
        Image.fromarray(color[np.array(Image.open(mask))]).save(mask)
    stored = np.array(Image.open(root / "masks/train/train_0.png"))
    (tmp_path / "map.csv").write_text("name,r,g,b\nnone,0,0,50\nroad,200,0,0\ncar,0,100,0\n")
    module = opened(root, num_classes=None, color_map=str(tmp_path / "map.csv"), void=["none"])
    assert module.class_names == ["road", "car"]
    assert module.palette == [[200, 0, 0], [0, 100, 0]]
    mask = module.source("train")[0].mask
    for value, rgb in ((0, color[0]), (1, color[1]), (255, color[2])):
        assert np.array_equal(mask == value, (stored == rgb).all(-1))
    with pytest.raises(DataError, match="colour-coded"):
        opened(root).setup("fit")
    with pytest.raises(DataError, match="RGB and hold the colours"):
        opened(root, num_classes=None)


def test_class_names_must_fit_the_classes(write_dataset) -> None:
    with pytest.raises(DataError, match=r"3 classes, but .*class_names.*2"):
        opened(write_dataset({"train": 1}), class_names=["a", "b"])


def test_a_test_folder_without_masks_can_be_predicted(write_dataset) -> None:
    root = write_dataset({"train": 1, "val": 1, "test": 2})
    shutil.rmtree(root / "masks/test")
    module = opened(root)
    module.setup("predict")
    batches = list(module.predict_dataloader())
    assert [batch["id"] for batch in batches] == [["test_0"], ["test_1"]]
    assert "mask" not in batches[0]


def test_grey_images_and_other_file_types(write_dataset) -> None:
    root = write_dataset({"train": 2, "val": 1})
    for image in (root / "images").rglob("*.png"):
        Image.open(image).convert("L").save(image.with_suffix(".tif"))
        image.unlink()
    module = opened(root)
    module.setup("fit")
    assert next(iter(module.val_dataloader()))["image"].shape == (1, 3, 24, 32)


def test_different_sizes_cannot_share_a_validation_batch(write_dataset) -> None:
    root = write_dataset({"train": 1, "val": 2})
    Image.new("RGB", (8, 8)).save(root / "images/val/val_0.png")
    Image.new("L", (8, 8)).save(root / "masks/val/val_0.png")
    module = opened(root, val_batch_size=2)
    module.setup("validate")
    with pytest.raises(DataError, match=r"val_0 8x8, val_1 32x24.*val_batch_size=1"):
        list(module.val_dataloader())
