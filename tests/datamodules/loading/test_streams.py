"""Batches of labelled and unlabelled images side by side."""

from pathlib import Path

import lightning as L
import pytest
import torch
from tiny import TinyNet

from datamodules import DataError, SyntheticScenesDataModule
from datamodules.loading.streams import Rank
from lightning_seg import CrossEntropyModule


def scenes(tmp_path: Path, **options: object) -> SyntheticScenesDataModule:
    defaults: dict[str, object] = {
        "train_size": 12,
        "val_size": 3,
        "image_size": (32, 40),
        "crop_size": 24,
        "num_workers": 0,
        "batch_size": 2,
        "unlabeled_batch_size": 3,
        "labeled_real_batch_size": 4,
        "labeled": "1/4",
        "seed": 1,
        "splits_dir": str(tmp_path / "splits"),
    }
    module = SyntheticScenesDataModule(**(defaults | options))
    module.setup("fit")
    return module


def ids(batches: list[dict], group: str) -> list[str]:
    return [name for batch in batches for name in batch[group]["id"]]


def assert_equal_streams(first: list[dict], second: list[dict]) -> None:
    assert len(first) == len(second)
    for one, two in zip(first, second, strict=True):
        assert list(one) == list(two)
        for group in one:
            assert one[group]["id"] == two[group]["id"]
            for name in set(one[group]) - {"id"}:
                assert torch.equal(one[group][name], two[group][name])


def test_groups_and_what_is_in_them(tmp_path: Path) -> None:
    batches = list(scenes(tmp_path).train_dataloader())
    assert len(batches) == 3  # nine unlabelled images in threes
    for batch in batches:
        assert list(batch) == ["labeled", "unlabeled", "labeled_real"]
        assert [len(batch[group]["id"]) for group in batch] == [2, 3, 4]
        for group in batch.values():
            assert group["image"].dtype == torch.uint8
            assert group["valid"].dtype == torch.bool
            assert group["valid"].shape == (len(group["id"]), 24, 24)
        assert "mask" not in batch["unlabeled"]
        assert batch["labeled"]["mask"].dtype == torch.int64
    assert len(set(ids(batches, "unlabeled"))) == 9
    assert not set(ids(batches, "unlabeled")) & set(ids(batches, "labeled"))


def test_the_shorter_streams_are_reshuffled_each_time_they_repeat(tmp_path: Path) -> None:
    batches = list(scenes(tmp_path, iterations_per_epoch=60).train_dataloader())
    labeled, real = ids(batches, "labeled"), ids(batches, "labeled_real")
    passes = [tuple(labeled[first : first + 3]) for first in range(0, 120, 3)]
    assert all(len(set(each)) == 3 for each in passes)
    assert len(set(passes)) == 6  # all orders of three images
    assert labeled[:40] != real[:40]
    crops = torch.cat([batch["labeled"]["image"] for batch in batches]).flatten(1)
    assert len(torch.unique(crops, dim=0)) > 100  # augmented anew


def test_ranks_share_every_stream_and_reshuffle(tmp_path: Path) -> None:
    """What one process would see, dealt out to two."""

    class Trainer:
        world_size, num_training_batches = 2, 100
        log_dir = default_root_dir = str(tmp_path)
        loggers = ()
        is_global_zero = False
        overfit_batches = 0

        def __init__(self, rank: int) -> None:
            self.global_rank = rank
            current = type("Progress", (), {"processed": 0})
            progress = type("Progress", (), {"current": current})
            self.fit_loop = type("Loop", (), {"epoch_progress": progress})

    def stream(rank: int) -> list[dict]:
        module = scenes(tmp_path, iterations_per_epoch=30)
        module.trainer = Trainer(rank)
        return list(module.train_dataloader())

    first, second = stream(0), stream(1)
    for group, size in (("labeled", 3), ("unlabeled", 9), ("labeled_real", 3)):
        dealt = zip(ids(first, group), ids(second, group), strict=True)
        whole = [name for pair in dealt for name in pair]
        passes = [tuple(whole[at : at + size]) for at in range(0, len(whole) - size + 1, size)]
        assert all(len(set(each)) == size for each in passes)
        assert len(set(passes)) > 4
    crops = [torch.cat([batch["labeled"]["image"] for batch in each]) for each in (first, second)]
    assert len(torch.unique(torch.cat(crops).flatten(1), dim=0)) > 115


@pytest.mark.parametrize(
    ("options", "length"),
    [
        ({"epoch": "unlabeled"}, 3),
        ({"epoch": "labeled"}, 2),  # three images in twos, rounded up
        ({"iterations_per_epoch": 7}, 7),
        ({"unlabeled_batch_size": 0, "labeled_real_batch_size": 0}, 1),
        ({"unlabeled_batch_size": 0}, 2),
        ({"unlabeled_batch_size": 50, "batch_size": 50}, 1),
    ],
)
def test_an_epoch_is_what_the_user_says(tmp_path: Path, options: dict, length: int) -> None:
    loader = scenes(tmp_path, **options).train_dataloader()
    assert len(loader) == length
    assert len(list(loader)) == length


@pytest.mark.parametrize("workers", [0, 3])
def test_all_streams_resume_in_the_middle(tmp_path: Path, workers: int) -> None:
    options = {"iterations_per_epoch": 5, "strong_augmentation": "strong"}
    loader = scenes(tmp_path, **options).train_dataloader()
    straight = [batch for _ in range(3) for batch in loader]
    running = scenes(tmp_path, **options, num_workers=workers).train_dataloader()
    for _ in running:
        pass
    other = iter(running)
    next(other), next(other)
    resumed = scenes(tmp_path, **options, num_workers=workers).train_dataloader()
    resumed.load_state_dict(running.state_dict())
    assert_equal_streams([batch for _ in range(2) for batch in resumed], straight[7:])


def test_strong_views_and_hidden_masks(tmp_path: Path) -> None:
    module = scenes(tmp_path, strong_augmentation="strong", unlabeled_masks=True)
    batch = next(iter(module.train_dataloader()))
    unlabeled = batch["unlabeled"]
    assert unlabeled["image_strong"].shape == unlabeled["image"].shape
    assert not torch.equal(unlabeled["image_strong"], unlabeled["image"])
    assert unlabeled["mask"].shape == (3, 24, 24)
    assert "image_strong" not in batch["labeled"]


def test_padding_of_unlabelled_crops_is_not_valid(tmp_path: Path) -> None:
    module = scenes(tmp_path, crop_size=(48, 40), augmentation="crop_flip")
    batch = next(iter(module.train_dataloader()))
    for group in batch.values():
        assert group["valid"].sum((1, 2)).tolist() == [32 * 40] * len(group["id"])
        assert group["valid"][:, 8:40].all()
    assert (batch["labeled"]["mask"][~batch["labeled"]["valid"]] == 255).all()


@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_overfitting_batches_is_refused(tmp_path: Path) -> None:
    trainer = L.Trainer(accelerator="cpu", overfit_batches=1, logger=False, max_steps=1)
    with pytest.raises(
        DataError, match=r"overfit_batches.*\(options: trainer\.overfit_batches=0, labeled=8\)"
    ):
        trainer.fit(CrossEntropyModule(TinyNet(8), num_classes=8), scenes(tmp_path))


def test_a_supervised_method_trains_on_the_labelled_group(tmp_path: Path) -> None:
    """Bit-equal to a run without the unlabelled images: the labelled stream is the same."""

    def trained(**options: object) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        module = CrossEntropyModule(TinyNet(8), num_classes=8, lr=0.01)
        trainer = L.Trainer(
            accelerator="cpu",
            max_steps=4,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(module, scenes(tmp_path, iterations_per_epoch=2, **options))
        return module.state_dict()

    with_others = trained()
    alone = trained(unlabeled_batch_size=0, labeled_real_batch_size=0)
    assert all(torch.equal(with_others[name], alone[name]) for name in alone)
    # the lists of the run lie beside it
    kept = (tmp_path / "split/labeled.txt").read_text().split()
    assert kept == scenes(tmp_path).split.labeled


@pytest.mark.parametrize(
    ("images", "replicas", "batch_size", "batches"), [(10, 1, 4, 3), (10, 3, 2, 2), (1, 4, 8, 1)]
)
def test_batches_of_a_pass_are_rounded_up(images, replicas, batch_size, batches) -> None:
    assert Rank(0, replicas).batches(images, batch_size) == batches
