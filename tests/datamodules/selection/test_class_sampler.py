"""Drawing classes before images."""

from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from scipy import stats
from tiny import TinyNet

from datamodules import DataError, SyntheticScenesDataModule
from datamodules.selection.class_pixels import class_pixels
from datamodules.selection.samplers import ClassSampler
from lightning_seg import CrossEntropyModule, SetupError
from lightning_seg.callbacks import ComplementarySampling

# five images; class 2 only in the last, class 3 nowhere
PRESENCE = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0]], bool)


def numbers(sampler: ClassSampler, epochs: int) -> list[int]:
    found = []
    for epoch in range(epochs):
        sampler.begin(epoch)
        found += [key.number for key in sampler]
    return found


def test_each_class_is_drawn_alike_and_then_an_image_of_it() -> None:
    sampler = ClassSampler(range(5), PRESENCE, seed=0, length=100)
    counts = np.bincount(numbers(sampler, 60), minlength=5)
    shares = np.array([1 / 5 + 1 / 2, 1 / 5, 1 / 5, 1 / 5 + 1 / 2, 1 / 5 + 1]) / 3
    assert stats.chisquare(counts, shares * counts.sum()).pvalue > 0.001


def test_weights_hold_from_the_next_epoch_on() -> None:
    sampler = ClassSampler(range(5), PRESENCE, seed=0, length=50)
    running = iter(sampler)
    next(running)
    sampler.weigh([0, 0, 1, 5])
    assert set(running_numbers := [key.number for key in running]) != {4}, running_numbers
    sampler.begin(1)
    assert {key.number for key in sampler} == {4}
    sampler.weigh([0, 0, 0, 1])  # of a class that nothing shows: as if unweighed
    sampler.begin(2)
    assert len({key.number for key in sampler}) == 5


def test_draws_are_a_function_of_seed_epoch_and_rank() -> None:
    def keys(rank: int, skip: int = 0) -> list:
        sampler = ClassSampler(
            range(5), PRESENCE, seed=3, rank=rank, num_replicas=2, length=40, stream=0
        )
        sampler.begin(2, skip)
        return list(sampler)

    assert keys(0) == keys(0)
    assert keys(0)[7:] == keys(0, skip=7)
    assert not {key.seed for key in keys(0)} & {key.seed for key in keys(1)}


def test_the_state_holds_the_weights() -> None:
    first = ClassSampler(range(5), PRESENCE, seed=0, length=30)
    first.weigh([1, 2, 3, 0])
    first.begin(1)
    first.weigh([5, 1, 1, 0])
    second = ClassSampler(range(5), PRESENCE, seed=0, length=30)
    second.load_state_dict(first.state_dict())
    for sampler in (first, second):
        sampler.begin(1, skip=4)
    assert list(first) == list(second)
    for sampler in (first, second):
        sampler.begin(2)
    assert list(first) == list(second)


def test_a_resume_within_an_epoch_keeps_weights_that_wait_for_the_next_one() -> None:
    """A validation within epoch 1 weighs the classes; the run is cut off four keys later."""
    whole = ClassSampler(range(5), PRESENCE, seed=0, length=30)
    whole.begin(1)
    running = iter(whole)
    first = [next(running) for _ in range(4)]
    whole.weigh([0, 0, 1, 0])  # the last image alone
    state = whole.state_dict()
    rest = list(running)
    whole.begin(2)
    assert {key.number for key in whole} == {4}
    assert {key.number for key in rest} > {4}

    resumed = ClassSampler(range(5), PRESENCE, seed=0, length=30)
    resumed.load_state_dict(state)
    resumed.begin(1, skip=len(first))
    assert list(resumed) == rest
    resumed.begin(2)
    assert {key.number for key in resumed} == {4}


def scenes(tmp_path: Path, **options: object) -> SyntheticScenesDataModule:
    return SyntheticScenesDataModule(
        train_size=24,
        val_size=4,
        image_size=(48, 64),
        crop_size=32,
        batch_size=4,
        num_workers=0,
        seed=0,
        splits_dir=str(tmp_path / "splits"),
        **options,
    )


def fit(tmp_path: Path, data: SyntheticScenesDataModule, **options: object) -> None:
    torch.manual_seed(0)
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **{"max_epochs": 2, **options},
    )
    trainer.fit(CrossEntropyModule(TinyNet(8), num_classes=8, lr=0.01), data)


@pytest.mark.parametrize("options", [{}, {"labeled": "1/2", "unlabeled_batch_size": 2}])
def test_training_draws_rare_classes_more_often(tmp_path: Path, options: dict) -> None:
    def shares(sampling: str) -> np.ndarray:
        data = scenes(tmp_path, sampling=sampling, iterations_per_epoch=40, **options)
        data.setup("fit")
        loader = data.train_dataloader()
        groups = [batch.get("labeled", batch) for batch in loader]
        source = data.source("train")
        where = {name: number for number, name in enumerate(source.ids)}
        drawn = [where[name] for group in groups for name in group["id"]]
        shown = class_pixels(source, 8) > 0
        return shown[drawn].mean(0)

    plain, classes = shares("images"), shares("classes")
    rare = int(np.argmin(np.where(plain > 0, plain, 1)))
    assert classes[rare] > plain[rare] + 0.05


def test_validation_weighs_the_classes(tmp_path: Path) -> None:
    data = scenes(tmp_path, sampling="classes")
    weights: list[list[float]] = []
    weigh = data.weigh_classes
    data.weigh_classes = lambda found: (weights.append(list(found)), weigh(found))
    fit(tmp_path, data, callbacks=[ComplementarySampling(mix=1.0)])
    assert len(weights) == 2
    for found in weights:
        assert sum(found) == pytest.approx(1)
        assert len(set(found)) > 1
    assert data._class_samplers[0].state_dict()["now"] == pytest.approx(weights[0])


def test_weighing_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\(option: sampling=classes\)"):
        fit(tmp_path, scenes(tmp_path), callbacks=[ComplementarySampling()])
    with pytest.raises(SetupError, match="mix"):
        ComplementarySampling(mix=2)
