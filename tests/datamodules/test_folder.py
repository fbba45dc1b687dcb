import hashlib
import os
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


@pytest.mark.parametrize("count", [2, 4, 7, 28, 30])
def test_without_any_split_the_fifth_with_the_smallest_hashes_validates(
    write_dataset, count: int
) -> None:
    root = write_dataset({"x": count}, layout="{kind}", size=(4, 4))
    names = [f"x_{number}" for number in range(count)]
    train, val = ids(opened(root), "train"), ids(opened(root), "val")
    assert len(val) == max(1, round(count / 5))
    assert sorted(train + val) == sorted(names)
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in names}
    assert max(digests[name] for name in val) < min(digests[name] for name in train)


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


def moved(root: Path, where: str, kind: str, suffix: str) -> None:
    """Move the images or masks of every split to `where`, with a suffix."""
    for path in sorted((root / kind).rglob("*.png")):
        folder = root / where.format(split=path.parent.name)
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / f"{path.stem}{suffix}")
    shutil.rmtree(root / kind)


@pytest.mark.parametrize(
    ("ends", "options"),
    [
        ((".png", "_mask.png"), {"mask_suffix": "_mask"}),
        (("_img.png", "_lab.png"), {"mask_suffix": "_lab", "image_suffix": "_img"}),
        (("_img.png", ".png"), {"image_suffix": "_img"}),
        ((".jpg", ".png"), {"mask_suffix": ".png", "image_suffix": ".jpg"}),
        (("_x.jpg", "_x.png"), {"mask_suffix": "_x.png", "image_suffix": "_x.jpg"}),
    ],
)
@pytest.mark.parametrize("where", ["data/{split}", "{split}/data", "{split}"])
def test_images_and_masks_may_lie_in_one_folder(
    write_dataset, ends: tuple[str, str], options: dict[str, str], where: str
) -> None:
    root = write_dataset({"train": 3, "val": 2})
    for kind, end in zip(("images", "masks"), ends, strict=True):
        moved(root, where, kind, end)
    name = "data" if "data" in where else "."
    module = opened(root, images=name, masks=name, **options)
    assert ids(module, "train") == ["train_0", "train_1", "train_2"]
    source = module.source("val")
    assert [source.images[key].name for key in source.ids] == [f"val_{n}{ends[0]}" for n in (0, 1)]
    assert [source.masks[key].name for key in source.ids] == [f"val_{n}{ends[1]}" for n in (0, 1)]
    with pytest.raises(DataError, match=r"holds images and masks.*mask_suffix=_mask"):
        ids(opened(root, images=name, masks=name), "train")


def test_drives_suffixes_differ_between_splits(write_dataset) -> None:
    root = write_dataset({"training": 2, "test": 1}, layout="{split}/{kind}", values=(0, 255))
    for split in ("training", "test"):
        for path in sorted((root / split / "images").iterdir()):
            number = path.stem.rpartition("_")[2]
            Image.open(path).save(path.with_name(f"{number}_{split}.tif"))
            mask = root / split / "masks" / path.name
            (root / split / "1st_manual").mkdir(exist_ok=True)
            Image.open(mask).save(root / split / "1st_manual" / f"{number}_manual1.gif")
            path.unlink()
    module = opened(
        root,
        num_classes=None,
        mask_values=[0, 255],
        train="training",
        val="test",
        masks="1st_manual",
        image_suffix={"train": "_training", "val": "_test"},
        mask_suffix="_manual1",
    )
    for split, expected in (("train", ["0", "1"]), ("val", ["0"]), ("test", ["0"])):
        assert ids(module, split) == expected
    assert set(np.unique(module.source("test")[0].mask)) == {0, 1}


def test_a_suffix_for_something_that_is_no_split_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"names training; the splits are train, val, test"):
        opened(tmp_path, image_suffix={"training": "_a"})


def test_roboflows_export_is_read_as_it_is(write_dataset) -> None:
    root = write_dataset({"train": 2, "valid": 1})
    moved(root, "{split}", "images", "_jpg.rf.0a1b.jpg")
    moved(root, "{split}", "masks", "_jpg.rf.0a1b_mask.png")
    (root / "train/_classes.csv").write_text("Pixel Value, Class\n0, ground\n1, cat\n2, dog\n")
    module = opened(
        root,
        num_classes=None,
        images=".",
        masks=".",
        val="valid",
        mask_suffix="_mask",
        color_map=str(root / "train/_classes.csv"),
    )
    module.setup("fit")
    assert module.class_names == ["ground", "cat", "dog"]
    assert set(np.unique(module.source("val")[0].mask)) == {0, 1, 2}


def test_a_colour_map_of_values_names_void_by_name_or_value(write_dataset) -> None:
    root = write_dataset({"train": 1, "val": 1})
    (root / "_classes.csv").write_text("0, ground\n1, cat\n2, dog\n")
    for void in (["ground"], ["ground", 9]):
        module = opened(root, num_classes=None, color_map=str(root / "_classes.csv"), void=void)
        assert module.class_names == ["cat", "dog"]
        assert set(np.unique(module.source("train")[0].mask)) == {0, 1, 255}


def test_void_may_be_negative(write_dataset) -> None:
    root = write_dataset({"train": 2, "val": 1})
    for path in sorted((root / "masks").rglob("*.png")):
        values = np.array(Image.open(path), np.int32)
        values[0] = -9999
        Image.fromarray(values).save(path.with_suffix(".tif"))
        path.unlink()
    with pytest.raises(DataError, match="holds -9999"):
        opened(root).setup("fit")
    for options in ({"void": [-9999]}, {"unknown_values": "void"}):
        module = opened(root, **options)
        module.setup("fit")
        assert set(np.unique(module.source("val")[0].mask)) == {0, 1, 2, 255}


def test_the_colours_of_large_masks_are_listed_at_once(write_dataset) -> None:
    root = write_dataset({"train": 12, "val": 1})
    picture = np.zeros((1500, 2000, 3), np.uint8)
    picture[::7] = (200, 30, 4)
    picture[:, ::5] = (0, 99, 1)
    for path in sorted((root / "masks").rglob("*.png")):
        Image.fromarray(picture).save(path, compress_level=1)
    with pytest.raises(DataError, match=r"\(0, 0, 0\), \(0, 99, 1\), \(200, 30, 4\)"):
        opened(root, num_classes=None)


LABELME = '{"version": "5.4", "shapes": [{"label": "a"}], "imagePath": "..\\\\x\\\\train_0.png"}'


@pytest.mark.parametrize("classes", [3, None])
@pytest.mark.parametrize("beside", [True, False])
def test_polygons_given_as_masks_are_called_what_they_are(
    write_dataset, classes: int | None, beside: bool
) -> None:
    root = write_dataset({"train": 2, "val": 1})
    shutil.rmtree(root / "masks")
    shutil.copytree(root / "images", root / "masks")
    for path in sorted((root / "masks").rglob("*.png")):
        path.with_suffix(".json").write_text(LABELME)
        if not beside:
            path.unlink()
    with pytest.raises(DataError, match=r"LabelMe's JSON files of polygons.*not masks") as error:
        opened(root, num_classes=classes).setup("fit")
    assert "masks=" in str(error.value) or classes is None


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.json", '{"images": [], "annotations": [], "categories": []}', "COCO"),
        ("a.xml", "<annotation/>", "XML"),
        ("a.txt", "0 0.5 0.5", "YOLO"),
        ("a.npy", "", "NumPy"),
    ],
)
def test_other_annotations_are_called_what_they_are(write_dataset, name, text, told) -> None:
    root = write_dataset({"train": 2, "val": 1})
    for split in ("train", "val"):
        shutil.rmtree(root / "masks" / split)
        (root / "masks" / split).mkdir()
        (root / "masks" / split / name).write_text(text)
    with pytest.raises(DataError, match=told):
        opened(root).setup("fit")


def test_one_class_is_refused_with_the_way_out(write_dataset) -> None:
    root = write_dataset({"train": 1, "val": 1}, values=(0,))
    for options in ({"num_classes": 1}, {"mask_values": [0]}, {"class_names": ["a"]}):
        with pytest.raises(DataError, match=r"1 class, expected 2.*num_classes=2"):
            opened(root, **{"num_classes": None, **options})


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["a", "b", "a"], "names a more than once"),
        (["a", "", "b"], "empty class name"),
        (["a", False, "b"], "class name False: YAML reads no"),
        (["a", None, "b"], "class name None"),
    ],
)
def test_class_names_can_be_told_apart(write_dataset, names: list[object], told: str) -> None:
    with pytest.raises(DataError, match=told):
        opened(write_dataset({"train": 1}), class_names=names)


def test_a_link_to_its_own_folder_adds_nothing(write_dataset) -> None:
    root = write_dataset({"train": 2, "val": 1})
    for kind in ("images", "masks"):
        (root / kind / "train" / "again").symlink_to(root / kind / "train")
        (root / kind / "train" / "up").symlink_to("..")
    assert ids(opened(root), "train") == ["train_0", "train_1"]


def test_a_pipe_among_the_images_is_named(write_dataset) -> None:
    root = write_dataset({"train": 2, "val": 1})
    (root / "images/train/train_1.png").unlink()
    os.mkfifo(root / "images/train/train_1.png")
    with pytest.raises(DataError, match=r"train_1\.png is a named pipe"):
        opened(root).setup("fit")


@pytest.mark.parametrize(
    "options",
    [
        {"crop_size": 0},
        {"crop_size": 10**6},
        {"crop_size": (16, 10**9)},
        {"scale": (1.0, float("inf"))},
        {"seed": 2**32},
        {"seed": -1},
        {"batch_size": 10**9},
        {"num_workers": 10**6},
        {"image_range": (5, 5)},
        {"max_pixels": 0},
    ],
)
def test_absurd_options_are_one_message(tmp_path: Path, options: dict[str, object]) -> None:
    (name,) = options
    with pytest.raises(DataError, match=rf"{name} must be.*\(option: {name}=") as error:
        opened(tmp_path, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [1, (1, 16), (16, 1)])
def test_a_crop_of_one_pixel_is_a_crop(write_dataset, size: int | tuple[int, int]) -> None:
    root = write_dataset({"train": 8, "val": 1})
    module = opened(root, crop_size=size, batch_size=4)
    module.setup("fit")
    for _ in range(3):
        for batch in module.train_dataloader():
            assert batch["image"].shape[2:] == batch["mask"].shape[1:] == batch["valid"].shape[1:]


def test_prediction_goes_on_past_files_that_cannot_be_used(write_dataset, tmp_path: Path) -> None:
    root = write_dataset({"train": 1, "val": 1, "test": 5})
    shutil.rmtree(root / "masks/test")
    (root / "images/test/test_1.png").write_text("no picture")
    for size in (1, 2, 5):
        for policy in ("raise", "skip"):
            module = opened(root, val_batch_size=size, on_bad_sample=policy)
            module.setup("predict")
            batches = list(module.predict_dataloader())
            failed = [pair for batch in batches for pair in batch.get("failed", [])]
            assert [name for name, _ in failed] == ["test_1"]
            assert "test_1.png cannot be read" in failed[0][1]
            done = [name for batch in batches for name in batch["id"] if name != "test_1"]
            assert sorted(done) == ["test_0", "test_2", "test_3", "test_4"]
            assert all(batch["image"].shape[0] == len(batch["id"]) for batch in batches)


def test_a_mask_that_cannot_be_used_does_not_spoil_a_prediction(write_dataset) -> None:
    root = write_dataset({"train": 1, "val": 1, "test": 2})
    (root / "masks/test/test_0.png").write_text("no picture")
    module = opened(root, val_batch_size=2)
    module.setup("predict")
    (batch,) = module.predict_dataloader()
    assert batch["id"] == ["test_0", "test_1"]
    assert "failed" not in batch
    with pytest.raises(DataError, match=r"test_0\.png cannot be read"):
        module.setup("test")


def test_a_colour_map_is_also_found_below_the_root(write_dataset) -> None:
    root = write_dataset({"train": 1, "val": 1})
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\na:1,2,3::\nb:0,0,0::\n")
    assert opened(root, num_classes=None, color_map="labelmap.txt").class_names == ["a", "b"]
    with pytest.raises(DataError, match=r"colour map gone\.txt does not exist"):
        opened(root, num_classes=None, color_map="gone.txt")
