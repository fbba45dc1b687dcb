"""Images without labels: those that lost their labels, and extra ones."""

import shutil
from pathlib import Path

import pytest
from lightning.pytorch.cli import LightningCLI

from datamodules import DataError, FolderDataModule, ImageDataModule
from lightning_seg import SegmentationModule


def ids(batches: list[dict], group: str) -> list[str]:
    return [name for batch in batches for name in batch[group]["id"]]


def test_extra_images_without_labels(write_dataset, tmp_path: Path) -> None:
    root = write_dataset({"train": 3, "val": 2})
    folder = tmp_path / "more images, größer"
    shutil.copytree(root / "images/train", folder)
    (folder / "train_0.png").rename(folder / "other.png")

    def module(**options: object) -> FolderDataModule:
        found = FolderDataModule(
            str(root),
            num_classes=3,
            crop_size=16,
            batch_size=1,
            num_workers=0,
            unlabeled_batch_size=1,
            splits_dir=str(tmp_path / "splits"),
            **options,
        )
        found.setup("fit")
        return found

    only = list(module(unlabeled=str(folder)).train_dataloader())
    assert sorted(Path(name).stem for name in ids(only, "unlabeled")) == [
        "other",
        "train_1",
        "train_2",
    ]
    both = module(unlabeled=[str(folder)], labeled=1)
    assert len(both._sources["unlabeled"]) == 5
    assert len(set(both._sources["unlabeled"].ids)) == 5
    with pytest.raises(
        DataError,
        match=r"1 of 1 unlabelled images are labelled or evaluated.*\(option: unlabeled=\)",
    ):
        module(unlabeled=str(root / "images/train/train_0.png"))
    with pytest.raises(DataError, match="labelled or evaluated"):
        module(unlabeled=str(root / "images/val"), labeled=1)
    with pytest.raises(DataError, match=r"no images at .*\(option: unlabeled=\)"):
        module(unlabeled=str(tmp_path / "nowhere"))
    with pytest.raises(
        DataError,
        match=r"there are no unlabelled images.*\(options: labeled=1/8, unlabeled=FOLDER\)",
    ):
        module()


def test_several_folders_with_the_same_names_and_list_files(write_dataset, tmp_path: Path) -> None:
    root = write_dataset({"train": 2, "val": 1})
    for number in range(2):
        shutil.copytree(root / "images/train", tmp_path / f"camera {number}")
    listed = tmp_path / "list.txt"
    listed.write_text("camera 0/train_1.png\ncamera 1/train_1.png\n")

    def count(unlabeled: str | list[str]) -> int:
        cli_words = [
            "--data=FolderDataModule",
            f"--data.root={root}",
            "--data.num_classes=3",
            "--data.num_workers=0",
            "--data.unlabeled_batch_size=1",
            f"--data.unlabeled={unlabeled}",
            "--model=CrossEntropyModule",
            "--model.num_classes=3",
        ]
        cli = LightningCLI(
            SegmentationModule,
            ImageDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            run=False,
            args=cli_words,
        )
        cli.datamodule.setup("fit")
        return len(set(cli.datamodule._sources["unlabeled"].ids))

    assert count(str(listed)) == 2
    assert count(f"['{tmp_path}/camera 0','{tmp_path}/camera 1']") == 4


def test_images_that_never_had_labels_get_void_masks(write_dataset, tmp_path: Path) -> None:
    root = write_dataset({"train": 4, "val": 1})
    extra = tmp_path / "extra"
    shutil.copytree(root / "images/val", extra)
    module = FolderDataModule(
        str(root),
        num_classes=3,
        crop_size=16,
        num_workers=0,
        labeled=1,
        unlabeled=str(extra),
        unlabeled_batch_size=4,
        unlabeled_masks=True,
        splits_dir=str(tmp_path / "splits"),
    )
    module.setup("fit")
    (batch,) = module.train_dataloader()
    for name, mask in zip(batch["unlabeled"]["id"], batch["unlabeled"]["mask"], strict=True):
        assert bool((mask == 255).all()) == ("extra" in name)
