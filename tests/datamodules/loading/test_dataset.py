"""Files that cannot be used, in the middle of a training."""

import csv
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from tiny import TinyNet

from datamodules import DataError, FolderDataModule
from lightning_seg import CrossEntropyModule


@pytest.fixture
def broken(write_dataset) -> Path:
    """Eight training images, of which number 3 is cut off and number 5 has a strange mask."""
    root = write_dataset({"train": 8, "val": 3})
    image = root / "images/train/train_3.png"
    image.write_bytes(image.read_bytes()[:500])
    mask = root / "masks/train/train_5.png"
    (root / "images/train/train_5.png").rename(mask.with_suffix(".tmp"))
    mask.unlink()
    mask.with_suffix(".tmp").rename(root / "images/train/train_5.png")
    from PIL import Image

    Image.new("L", (32, 24), 77).save(mask)
    return root


def folder(root: Path, **options: object) -> FolderDataModule:
    return FolderDataModule(
        str(root), num_classes=3, crop_size=16, batch_size=2, num_workers=0, seed=0, **options
    )


def fit(module: FolderDataModule, tmp_path: Path) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=CSVLogger(tmp_path, flush_logs_every_n_steps=1),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(CrossEntropyModule(TinyNet(3), num_classes=3, lr=0.01), module)
    return trainer


def test_raise_names_the_file(broken: Path) -> None:
    with pytest.raises(DataError, match=r"train_[35]\.png"):
        folder(broken).setup("fit")


@pytest.mark.parametrize("workers", [0, 1])
def test_raise_names_the_file_from_a_worker(broken: Path, workers: int) -> None:
    module = folder(broken)
    module.probe = lambda source: set()
    module.num_workers = workers
    module.setup("fit")
    with pytest.raises(DataError, match=r"train_[35]\.png"):
        list(module.train_dataloader())


def test_skip_takes_another_and_counts(broken: Path, tmp_path: Path) -> None:
    module = folder(broken, on_bad_sample="skip")
    with pytest.warns(UserWarning, match="left out") as told:
        trainer = fit(module, tmp_path)
    messages = [str(each.message) for each in told]
    assert any("train_3.png cannot be read" in each for each in messages)
    assert any("train_5.png holds 77" in each for each in messages)
    with (Path(trainer.log_dir) / "metrics.csv").open() as file:
        counts = [row["data/skipped"] for row in csv.DictReader(file) if row["data/skipped"]]
    assert [float(count) for count in counts] == [2, 2]  # two bad files in each epoch


def test_what_stands_in_is_not_evaluated_twice(broken: Path) -> None:
    image = broken / "images/val/val_1.png"
    image.write_bytes(image.read_bytes()[:300])
    module = folder(broken, on_bad_sample="skip")
    module.setup("validate")
    with pytest.warns(UserWarning, match="val_1.png"):
        batches = list(module.val_dataloader())
    assert [batch["id"] for batch in batches] == [["val_0"], ["val_2"], ["val_2"]]
    assert [bool((batch["mask"] == 255).all()) for batch in batches] == [False, True, False]


def test_nothing_but_bad_samples_is_an_error(broken: Path) -> None:
    for image in (broken / "images/train").iterdir():
        image.write_text("no image")
    module = folder(broken, on_bad_sample="skip")
    module.setup("fit")
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(DataError, match="not one example can be used"),
    ):
        next(iter(module.train_dataloader()))


def test_images_of_one_batch_and_different_sizes_are_told(write_dataset) -> None:
    root = write_dataset({"train": 4, "val": 1})
    module = folder(root, augmentation=["HorizontalFlip"])
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    assert batch["image"].shape == (2, 3, 24, 32)
    assert torch.equal(batch["valid"], torch.ones(2, 24, 32, dtype=torch.bool))
