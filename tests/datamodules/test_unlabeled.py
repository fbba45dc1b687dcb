"""Images without labels: folders, lists, shards, and the share that validates."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import quiet_trainer

from datamodules import DataError, UnlabeledDataModule, UnlabeledShards
from lightning_seg import ColorizationModule, CrossEntropyModule, SetupError
from lightning_seg.networks import TimmEncoder


def write(folder: Path, count: int, mode: str = "RGB", size=(40, 30)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
        Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8)).save(
            folder / f"{number:03d}.png"
        )
    return folder


def module(images=None, **options) -> UnlabeledDataModule:
    defaults = {"batch_size": 4, "crop_size": 24, "num_workers": 0, "seed": 0}
    data = UnlabeledDataModule(images, **{**defaults, **options})
    data.setup("fit")
    return data


def names(loader) -> list[str]:
    return [name for batch in loader for name in batch["id"]]


def test_every_image_is_trained_on_or_validated(tmp_path):
    data = module(str(write(tmp_path / "a", 60)))
    batches = list(data.train_dataloader())
    for batch in batches:
        assert set(batch) == {"image", "valid", "id"}
        assert batch["image"].shape == (4, 3, 24, 24)
        assert batch["image"].dtype == torch.uint8
    train, val = names(batches), names(data.val_dataloader())
    assert len(val) == len(set(val))
    assert 1 <= len(val) <= 15
    assert set(train) | set(val) == {f"{number:03d}" for number in range(60)}
    assert not set(train) & set(val)
    assert next(iter(data.val_dataloader()))["image"].shape == (1, 3, 30, 40)
    assert (data.num_classes, data.class_names, data.palette) == (0, [], None)


def test_a_validation_image_stays_one_when_others_are_added(tmp_path):
    before = set(names(module(str(write(tmp_path, 60))).val_dataloader()))
    after = set(names(module(str(write(tmp_path, 90))).val_dataloader()))
    assert before < after


@pytest.mark.parametrize(("count", "val"), [(1, 0), (2, 1), (3, 1)])
def test_few_images(tmp_path, count, val):
    data = module(str(write(tmp_path, count)), val_share=0.01)
    loader = data.val_dataloader()
    assert len(names(loader)) == val
    assert len(set(names(data.train_dataloader()))) == count - val


def test_no_validation_and_other_images_for_it(tmp_path):
    folder = str(write(tmp_path / "a", 5))
    data = module(folder, val_share=0)
    assert data.val_dataloader() == []
    other = str(write(tmp_path / "b" / "c", 3))
    data = module([folder], val_images=other)
    assert len(names(data.val_dataloader())) == 3
    assert len(set(names(data.train_dataloader()))) == 5


def test_grey_files_become_three_equal_channels(tmp_path):
    write(tmp_path, 6, "L")
    for batch in module(str(tmp_path), augmentation="crop").train_dataloader():
        assert batch["image"].shape[1] == 3
        assert (batch["image"][:, 0] == batch["image"][:, 2]).all()


def test_workers_do_not_change_the_batches(tmp_path):
    folder = str(write(tmp_path, 12))
    alone, shared = (
        list(module(folder, num_workers=workers).train_dataloader()) for workers in (0, 2)
    )
    for one, two in zip(alone, shared, strict=True):
        assert one["id"] == two["id"]
        assert torch.equal(one["image"], two["image"])


def shard(path: Path, count: int) -> UnlabeledShards:
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            buffer = io.BytesIO()
            Image.new("RGB", (40, 30), (number, 7, 9)).save(buffer, "PNG")
            info = tarfile.TarInfo(f"{number}.png")
            info.size = buffer.tell()
            tar.addfile(info, io.BytesIO(buffer.getvalue()))
    return UnlabeledShards(str(path), size=count)


def test_shards_are_a_stream_without_validation(tmp_path):
    pytest.importorskip("webdataset")
    data = module(shards=shard(tmp_path / "0.tar", 12))
    found = names(data.train_dataloader())
    assert sorted(found) == sorted(f"{number}.png" for number in range(12)) or len(found) == 12
    assert data.val_dataloader() == []
    without = module(shards=UnlabeledShards(str(tmp_path / "0.tar")))
    with pytest.raises(DataError, match="how long is an epoch"):
        without.train_dataloader()
    assert len(list(module(shards=without.shards, iterations_per_epoch=5).train_dataloader())) == 5


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_an_encoder_is_trained(tmp_path, kind):
    if kind == "shards":
        pytest.importorskip("webdataset")
        data = module(shards=shard(tmp_path / "0.tar", 8))
    else:
        data = module(str(write(tmp_path / "a", 12)))
    ours = ColorizationModule(TimmEncoder("test_resnet"), locations=8, border=2, width=8)
    trainer = quiet_trainer(tmp_path, max_epochs=1)
    trainer.fit(ours, data)
    assert trainer.global_step == len(data.train_dataloader())
    assert ("val/loss" in trainer.callback_metrics) == (kind == "folder")


def test_what_is_wrong_is_told(tmp_path):
    folder = str(write(tmp_path / "a", 2))
    for options in ({}, {"images": folder, "shards": object()}):
        with pytest.raises(
            DataError, match=r"give either images or shards \(options: images=FOLDER, shards=\)"
        ):
            UnlabeledDataModule(**options)
    with pytest.raises(
        DataError, match=r"val_share must be in \[0, 1\), not 1 \(option: val_share=\)"
    ):
        UnlabeledDataModule(folder, val_share=1)
    with pytest.raises(DataError, match=r"no images at .*\(option: images=\)"):
        module(str(tmp_path / "nowhere"))
    (tmp_path / "a" / "000.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"000.png"):
        module(folder, val_share=0)


@pytest.mark.parametrize(
    "option", ["labeled", "stratified", "sampling", "unlabeled_batch_size", "patches", "predict"]
)
def test_options_about_labels_are_not_accepted(tmp_path, option):
    with pytest.raises(TypeError, match=rf"unexpected keyword argument '{option}'"):
        UnlabeledDataModule(str(write(tmp_path, 2)), **{option: 1})


def test_batch_size_is_that_of_the_unlabelled_images(tmp_path):
    data = module(str(write(tmp_path, 9)), batch_size=3)
    assert data.batch_size == 3
    assert [len(batch["id"]) for batch in data.train_dataloader()][:2] == [3, 3]


@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_overfitting_batches_is_refused_without_advice_about_labels(tmp_path):
    trainer = quiet_trainer(tmp_path, overfit_batches=1, max_steps=1)
    ours = ColorizationModule(TimmEncoder("test_resnet"), locations=8, border=2, width=8)
    with pytest.raises(DataError, match=r"\(option: trainer\.overfit_batches=0\)$"):
        trainer.fit(ours, module(str(write(tmp_path, 4))))


def test_methods_that_need_masks_say_so(tmp_path):
    data = module(str(write(tmp_path, 4)))
    with pytest.raises(SetupError, match="trains on masks, and the data has no classes"):
        CrossEntropyModule(num_classes=data.num_classes)
