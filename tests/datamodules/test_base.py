from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import DataError, SyntheticScenesDataModule
from datamodules.transforms import augment, train_pipeline


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("batch_size", 0),
        ("val_batch_size", 0),
        ("crop_size", 0),
        ("num_workers", -1),
        ("scale", (2.0, 0.5)),
        ("scale", (0.0, 1.0)),
        ("color_jitter", 1.5),
    ],
)
def test_impossible_options_are_named(option: str, value: object) -> None:
    with pytest.raises(DataError, match=option):
        SyntheticScenesDataModule(**{option: value})


def test_batches_are_bytes_ids_and_int64_labels() -> None:
    module = SyntheticScenesDataModule(train_size=3, batch_size=2, crop_size=(16, 24))
    module.num_workers = 0
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    assert batch["image"].dtype == torch.uint8
    assert batch["image"].shape == (2, 3, 16, 24)
    assert batch["mask"].dtype == torch.int64
    assert batch["mask"].shape == (2, 16, 24)
    assert len(batch["id"]) == 2
    assert isinstance(batch["id"][0], str)


def test_an_incomplete_training_batch_is_dropped_but_a_small_set_is_used() -> None:
    sizes = {}
    for size in (5, 3):
        module = SyntheticScenesDataModule(train_size=size, batch_size=4, num_workers=0)
        module.setup("fit")
        sizes[size] = [len(batch["id"]) for batch in module.train_dataloader()]
    assert sizes == {5: [4], 3: [3]}


def test_an_empty_split_is_an_error() -> None:
    with pytest.raises(DataError, match="split 'val' of SyntheticScenesDataModule has no images"):
        SyntheticScenesDataModule(val_size=0).setup("fit")


def test_prediction_takes_photographs_of_many_sizes(tmp_path: Path) -> None:
    def sizes(*shapes: tuple[int, int]) -> list[int]:
        for number, shape in enumerate(shapes):
            Image.new("RGB", shape).save(tmp_path / f"{number}.png")
        module = SyntheticScenesDataModule(predict=str(tmp_path), val_batch_size=2, num_workers=0)
        module.setup("predict")
        return [len(batch["id"]) for batch in module.predict_dataloader()]

    assert sizes((8, 8), (8, 8)) == [2]
    assert sizes((8, 8), (8, 9)) == [1, 1]


def test_setup_looks_for_the_images_once(tmp_path: Path) -> None:
    """The command sets the data up before the trainer does."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    module = SyntheticScenesDataModule(predict=str(tmp_path), num_workers=0)
    module.setup("predict")
    (tmp_path / "a.png").unlink()
    module.setup("predict")
    assert len(module.predict_dataloader().dataset) == 1


def test_scales_are_uniform_between_the_limits() -> None:
    """The part of a large crop that is not padding tells the factor."""
    image = np.zeros((64, 64, 3), np.uint8)
    pipeline = train_pipeline((200, 200), scale=(0.5, 2.0), horizontal_flip=False)
    mask = np.ones((64, 64), np.uint8)
    factors = []
    for seed in range(200):
        _, scaled = augment(pipeline, image, mask, seed)
        factors.append(np.sqrt((scaled == 1).sum()) / 64)
    assert min(factors) < 0.55
    assert max(factors) > 1.95
    assert 0.49 <= min(factors) <= max(factors) <= 2.01
    assert abs(np.mean(factors) - 1.25) < 0.1


def test_colour_jitter_changes_the_image_but_not_the_mask() -> None:
    def batch(jitter: float) -> dict:
        module = SyntheticScenesDataModule(
            color_jitter=jitter, batch_size=2, num_workers=0, scale=(1.0, 1.0), seed=0
        )
        module.setup("fit")
        return next(iter(module.train_dataloader()))

    plain, jittered = batch(0.0), batch(0.5)
    assert torch.equal(plain["mask"], jittered["mask"])
    assert not torch.equal(plain["image"], jittered["image"])
