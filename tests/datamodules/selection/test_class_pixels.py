"""Counts of every image's pixels of each class."""

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules import DataError, FolderDataModule, SyntheticScenesDataModule
from datamodules.reading.sources import Subset
from datamodules.selection.class_pixels import class_pixels


def test_the_index_is_counted_once_and_follows_the_masks(write_dataset, tmp_path: Path) -> None:
    root = write_dataset({"train": 4, "val": 1})
    module = FolderDataModule(str(root), num_classes=3, num_workers=0)
    source = module.source("train")
    counts = class_pixels(source, 3, tmp_path / "index")
    expected = [np.bincount(source[i].mask.ravel(), minlength=3)[:3] for i in range(4)]
    assert np.array_equal(counts, expected)
    (kept,) = (tmp_path / "index").glob("*.npy")
    np.save(kept, counts + 1)
    assert np.array_equal(class_pixels(source, 3, tmp_path / "index"), counts + 1)  # read, not made
    Image.new("L", (32, 24), 2).save(source.masks["train_0"])
    fresh = class_pixels(module.source("train"), 3, tmp_path / "index")
    assert fresh[0].tolist() == [0, 0, 24 * 32]


def test_the_index_of_other_scenes_or_of_a_part_is_another(write_dataset, tmp_path: Path) -> None:
    first, second = (
        SyntheticScenesDataModule(train_size=6, image_size=(32, 40), scene_seed=seed).source(
            "train"
        )
        for seed in (0, 1)
    )
    found = [class_pixels(each, 8, tmp_path / "scenes") for each in (first, second)]
    assert not np.array_equal(*found)
    root = write_dataset({"train": 4, "val": 1})
    source = FolderDataModule(str(root), num_classes=3, num_workers=0).source("train")
    part = Subset(source, ["train_1", "train_3"])
    before = class_pixels(part, 3, tmp_path / "part")
    assert np.array_equal(before, class_pixels(source, 3)[[1, 3]])
    Image.new("L", (32, 24), 1).save(source.masks["train_3"])
    assert class_pixels(part, 3, tmp_path / "part")[1].tolist() == [0, 24 * 32, 0]


def test_of_several_processes_one_counts_and_nothing_else_is_left(tmp_path: Path) -> None:
    source = SyntheticScenesDataModule(train_size=3, image_size=(32, 40)).source("train")
    calls: list[int] = []
    mask = source.mask
    source.mask = lambda index: (calls.append(index), mask(index))[1]
    threads = [
        threading.Thread(target=class_pixels, args=(source, 8, tmp_path / "index"))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(calls) == [0, 1, 2]
    names = sorted(path.suffix for path in (tmp_path / "index").iterdir())
    assert names in ([".npy"], [".lock", ".npy"])


def test_a_folder_that_cannot_be_written_names_the_option(tmp_path: Path) -> None:
    (tmp_path / "index").write_text("a file in the way")
    source = SyntheticScenesDataModule(train_size=1, image_size=(32, 40)).source("train")
    with pytest.raises(DataError, match=r"cannot be written.*\(option: splits_dir=\)"):
        class_pixels(source, 8, tmp_path / "index")
