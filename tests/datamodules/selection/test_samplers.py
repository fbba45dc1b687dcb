import numpy as np
import pytest
import torch

from datamodules import SyntheticScenesDataModule
from datamodules.reading.sources import Source
from datamodules.selection.samplers import KeySampler


def scenes(**options) -> SyntheticScenesDataModule:
    sizes = {"train_size": 12, "val_size": 5, "image_size": (32, 40), "crop_size": 24}
    options = {"num_workers": 0, "batch_size": 4, "seed": 1, **sizes, **options}
    module = SyntheticScenesDataModule(**options)
    module.setup("fit")
    return module


def stream(module: SyntheticScenesDataModule, epochs: int = 1) -> list[torch.Tensor]:
    loader = module.train_dataloader()
    return [batch["image"] for _ in range(epochs) for batch in loader]


def equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


def test_workers_do_not_change_the_stream() -> None:
    assert equal(stream(scenes(num_workers=2), epochs=2), stream(scenes(), epochs=2))


def test_the_seed_decides_and_epochs_differ() -> None:
    batches = stream(scenes(), epochs=2)
    assert equal(batches, stream(scenes(), epochs=2))
    assert not equal(batches, stream(scenes(seed=2), epochs=2))
    flat = torch.cat(batches).flatten(1)
    assert len(torch.unique(flat, dim=0)) == 24  # no crop comes twice in two epochs


def test_seed_everything_is_the_default_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert equal(stream(scenes(seed=None)), stream(scenes(seed=7)))


def test_loaders_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    module = scenes(num_workers=1)
    list(module.train_dataloader())
    list(module.val_dataloader())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_continues_where_its_state_was_taken(workers: int) -> None:
    straight = stream(scenes(), epochs=2)
    loader = scenes(num_workers=workers).train_dataloader()
    next(iter(loader))
    resumed = scenes(num_workers=workers).train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    rest = [batch["image"] for _ in range(2) for batch in resumed]
    assert equal(rest, straight[1:])


def test_a_finished_epoch_resumes_with_the_whole_next_one() -> None:
    loader = scenes().train_dataloader()
    assert len(list(loader)) == 3
    resumed = scenes().train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    assert equal([batch["image"] for batch in resumed], stream(scenes(), epochs=2)[3:])


@pytest.mark.parametrize(("size", "ranks"), [(10, 3), (12, 4), (2, 3), (7, 1)])
def test_ranks_share_an_epoch_without_loss(size: int, ranks: int) -> None:
    samplers = [KeySampler(range(size), 0, True, rank, ranks) for rank in range(ranks)]
    keys = [list(sampler) for sampler in samplers]
    assert {len(each) for each in keys} == {-(-size // ranks)}
    numbers = [key.number for each in keys for key in each]
    assert set(numbers) == set(range(size))
    seeds = [key.seed for each in keys for key in each]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize(("size", "ranks"), [(10, 3), (1, 2), (7, 1)])
def test_evaluation_counts_every_image_once(size: int, ranks: int) -> None:
    samplers = [KeySampler(range(size), 0, False, rank, ranks) for rank in range(ranks)]
    keys = [key for sampler in samplers for key in sampler]
    assert sorted(key.number for key in keys if key.counted) == list(range(size))
    assert len({len(sampler) for sampler in samplers}) == 1


def test_an_uncounted_copy_is_all_void() -> None:
    module = scenes()
    dataset = module.val_dataloader().dataset
    key = next(iter(module.val_dataloader().sampler))
    counted, copy = dataset[key], dataset[key._replace(counted=False)]
    assert torch.equal(counted["image"], copy["image"])
    assert (copy["mask"] == 255).all()
    assert not (counted["mask"] == 255).all()


def test_training_crops_follow_image_and_mask_together() -> None:
    """Paint the class id into the image: after scale, crop and flip both must still agree."""
    module = scenes(scale=(1.0, 1.0))
    dataset = module.train_dataloader().dataset
    original = dataset.source

    class Painted(Source):
        ids = original.ids

        def read(self, index: int, reduce: int = 1):
            example = original[index]
            return example._replace(image=np.repeat(example.mask[..., None], 3, axis=-1))

    dataset.source = Painted()
    for key in module.train_dataloader().sampler:
        item = dataset[key]
        assert item["image"].shape == (3, 24, 24)
        assert torch.equal(item["image"][0].long(), item["mask"])


def test_small_images_are_padded_with_void() -> None:
    module = scenes(crop_size=64, scale=(1.0, 1.0))
    batch = next(iter(module.train_dataloader()))
    assert batch["mask"].shape == (4, 64, 64)
    assert (batch["mask"] == 255).sum() >= 4 * (64 * 64 - 32 * 40)


@pytest.mark.parametrize(
    ("size", "ranks", "length"), [(7, 1, 20), (7, 3, 5), (10, 2, 3), (1, 4, 2)]
)
def test_an_endless_stream_is_whole_passes_in_new_orders(
    size: int, ranks: int, length: int
) -> None:
    """Put the ranks' keys of some epochs back in one sequence and cut it into passes."""
    samplers = [KeySampler(range(size), 0, True, rank, ranks, length) for rank in range(ranks)]
    keys = []
    for epoch in range(12):
        for sampler in samplers:
            sampler.begin(epoch)
        columns = [list(sampler) for sampler in samplers]
        assert {len(column) for column in columns} == {length}
        keys += [key for row in zip(*columns, strict=True) for key in row]
    passes = [
        [key.number for key in keys[first : first + size]]
        for first in range(0, len(keys) - size + 1, size)
    ]
    assert len(passes) >= 7
    assert all(sorted(each) == list(range(size)) for each in passes)
    if size > 5:
        assert len({tuple(each) for each in passes}) == len(passes)
    assert len({key.seed for key in keys}) == len(keys)


def test_streams_of_one_seed_differ() -> None:
    orders = [[key.number for key in KeySampler(range(50), 0, True, stream=n)] for n in range(3)]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_an_endless_stream_can_be_entered_anywhere() -> None:
    whole, entered = (KeySampler(range(7), 3, True, 1, 2, length=10) for _ in range(2))
    whole.begin(4)
    entered.begin(4, skip=6)
    assert list(entered) == list(whole)[6:]
