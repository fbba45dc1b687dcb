from pathlib import Path

import pytest
import torch
from PIL import Image

from datamodules import DataError, SyntheticScenesDataModule


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("batch_size", 0),
        ("val_batch_size", 0),
        ("crop_size", 0),
        ("num_workers", -1),
        ("scale", (2.0, 0.5)),
        ("scale", (0.0, 1.0)),
        ("iterations_per_epoch", 0),
        ("unlabeled_batch_size", -1),
        ("labeled_real_batch_size", -1),
        ("split_seed", -1),
    ],
)
def test_impossible_options_are_named(option: str, value: object) -> None:
    with pytest.raises(DataError, match=rf"{option} must be .*\(option: {option}="):
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


def test_an_incomplete_training_batch_is_dropped_and_a_small_set_repeats() -> None:
    sizes = {}
    for size in (5, 3):
        module = SyntheticScenesDataModule(train_size=size, batch_size=4, num_workers=0)
        module.setup("fit")
        sizes[size] = [len(batch["id"]) for batch in module.train_dataloader()]
    assert sizes == {5: [4], 3: [4]}


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


def test_an_epoch_may_be_any_number_of_batches() -> None:
    module = SyntheticScenesDataModule(
        train_size=5, batch_size=2, num_workers=0, iterations_per_epoch=5, seed=0
    )
    module.setup("fit")
    loader = module.train_dataloader()
    assert len(loader) == 5
    names = [name for _ in range(2) for batch in loader for name in batch["id"]]
    assert len(names) == 20
    for first in range(0, 20, 5):  # each pass over the five scenes shows every one, over epochs
        assert len(set(names[first : first + 5])) == 5
    assert names[:5] != names[5:10]
