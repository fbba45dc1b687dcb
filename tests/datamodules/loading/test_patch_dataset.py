"""Batches of patches: how many, of what, and that they repeat."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from datamodules import DataError, PatchMixer, SyntheticScenesDataModule
from datamodules.base import SegmentationDataModule
from datamodules.loading.streams import Rank
from datamodules.reading.sources import Example, Source

VOID = 255


class Arrays(Source):
    """Images whose pixels tell their class: label k is the colour (10 k, 10 k, 10 k)."""

    def __init__(self, masks: list[np.ndarray]) -> None:
        self.masks = masks

    @property
    def ids(self) -> list[str]:
        return [f"image{number}" for number in range(len(self.masks))]

    def read(self, index: int, reduce: int = 1) -> Example:
        mask = self.masks[index].astype(np.uint8)
        image = np.repeat((mask % 25 * 10)[..., None], 3, axis=2)
        return Example(self.ids[index], image, mask)


class Given(SegmentationDataModule):
    """A data module of these masks, for training and for validation."""

    def __init__(self, train, val=None, **options) -> None:
        defaults = {
            "batch_size": 2,
            "crop_size": 32,
            "augmentation": "crop_flip",
            "num_workers": 0,
            "seed": 3,
            "patches": PatchMixer(4, (8, 16), 12, background_index=None),
        }
        super().__init__(**{**defaults, **options})
        self.given = {"train": train, "val": val or train, "test": val or train}

    @property
    def class_names(self) -> list[str]:
        return [f"class {number}" for number in range(6)]

    def source(self, split) -> Source:
        return Arrays(self.given[split])


def blocks(seed: int = 0, size=(40, 48)) -> np.ndarray:
    """A mask of four classes in quarters, a few pixels void."""
    mask = np.zeros(size, np.uint8)
    mask[: size[0] // 2, : size[1] // 2] = 1 + seed % 2
    mask[size[0] // 2 :, size[1] // 2 :] = 3 + seed % 3
    mask[:3] = VOID
    return mask


def ready(data: SegmentationDataModule) -> SegmentationDataModule:
    data.setup("fit")
    return data


def batches(data: SegmentationDataModule, epochs: int = 1) -> list[dict]:
    loader = data.train_dataloader()
    found = [batch for _ in range(epochs) for batch in loader]
    data.teardown("fit")
    return found


def assert_same(first: list[dict], second: list[dict]) -> None:
    assert [batch["id"] for batch in first] == [batch["id"] for batch in second]
    for one, two in zip(first, second, strict=True):
        for name in ("image", "label", "skipped"):
            assert torch.equal(one[name], two[name])


def test_a_batch_holds_the_same_number_of_labelled_patches_of_every_image():
    found = batches(ready(Given([blocks(i) for i in range(6)])), epochs=4)
    assert len(found) == 12
    for batch in found:
        assert set(batch) == {"image", "label", "id", "skipped"}
        assert batch["image"].shape == (8, 3, 12, 12)
        assert batch["image"].dtype == torch.uint8
        assert batch["label"].shape == (8,)
        assert batch["label"].dtype == torch.int64
        assert len(batch["id"]) == 2
        assert batch["skipped"].tolist() == [0, 0]
        assert batch["label"].max() < 6
    labels = torch.cat([batch["label"] for batch in found])
    assert len(labels.unique()) >= 4
    # the centre of a patch, of even side, is about the middle of its resized pixels
    middle = torch.cat(
        [batch["image"][:, 0, 5:7, 5:7].flatten(1).double().median(1)[0] for batch in found]
    )
    assert ((middle / 10 - labels).abs() < 1).double().mean() > 0.8
    assert len({tuple(batch["label"].tolist()) for batch in found}) > 8


@pytest.mark.parametrize("options", [{}, {"labeled": "1/2", "sampling": "classes"}])
def test_workers_do_not_change_the_batches(tmp_path, options):
    masks = [blocks(i) for i in range(8)]
    options = {**options, "splits_dir": str(tmp_path)}
    alone, shared = (
        batches(ready(Given(masks, num_workers=workers, **options)), 2) for workers in (0, 2)
    )
    assert_same(alone, shared)
    assert not torch.equal(alone[0]["image"], alone[-1]["image"])


def test_seeds_epochs_and_ranks_differ():
    masks = [blocks(i) for i in range(8)]

    def first(seed=3, rank=0) -> dict:
        data = ready(Given(masks, seed=seed))
        data._rank = lambda: Rank(rank, 2)
        return batches(data)[0]

    pictures = [first(), first(seed=4), first(rank=1)]
    assert_same([first()], pictures[:1])
    assert len({picture["image"].numpy().tobytes() for picture in pictures}) == 3


def test_a_run_goes_on_in_the_middle_of_an_epoch():
    masks = [blocks(i) for i in range(8)]
    whole = batches(ready(Given(masks)), 2)
    data = ready(Given(masks))
    loader = data.train_dataloader()
    for _ in zip(range(3), loader, strict=False):
        pass
    state = loader.state_dict()
    again = ready(Given(masks)).train_dataloader()
    again.load_state_dict(state)
    assert_same([*again, *again], whole[3:])


def test_an_image_without_labels_is_replaced_by_the_next():
    void = np.full((40, 48), VOID)
    found = batches(ready(Given([void, blocks(0), void, void, blocks(1), blocks(2)])), 3)
    for batch in found:
        assert batch["image"].shape[0] == 8
        assert set(batch["id"]) <= {"image1", "image4", "image5"}
    skipped = sorted(torch.cat([batch["skipped"] for batch in found]).tolist())
    assert skipped == sorted(3 * [1, 0, 2, 1, 0, 0])


def test_void_alone_is_told():
    data = ready(Given([np.full((40, 48), VOID)] * 3))
    with pytest.raises(DataError, match=r"not one of 3 training images has a labelled pixel"):
        batches(data)


@pytest.mark.parametrize(
    "mask",
    [
        pytest.param(np.full((5, 7), 2), id="smaller than a patch"),
        pytest.param(np.full((40, 48), 2), id="one class"),
        pytest.param(np.where(np.arange(40 * 40) == 0, 2, VOID).reshape(40, 40), id="one pixel"),
    ],
)
def test_hard_images_have_their_patches(mask):
    (batch,) = batches(ready(Given([mask] * 2, crop_size=40)))
    assert batch["label"].tolist() == [2] * 8


def test_validation_is_the_same_each_time_and_empty_without_labels():
    void = np.full((30, 30), VOID)
    val = [blocks(0, (50, 60)), void, blocks(1, (44, 20))]
    data = ready(Given([blocks()] * 2, val, val_batch_size=2))
    first, second = (list(data.val_dataloader()) for _ in "ab")
    assert [batch["id"] for batch in first] == [["image0", "image1"], ["image2"]]
    assert [len(batch["label"]) for batch in first] == [4, 4]
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one["image"], two["image"])
        assert torch.equal(one["label"], two["label"])
    assert not torch.equal(first[0]["image"], first[1]["image"])
    data = ready(Given([blocks()] * 2, [void]))
    (batch,) = data.val_dataloader()
    assert batch["image"].shape == (0, 3, 12, 12)
    assert batch["label"].shape == (0,)
    data.setup("test")
    assert len(list(data.test_dataloader())) == 1


def test_copies_that_even_out_the_ranks_have_no_patches():
    data = Given([blocks()] * 2, [blocks(0)])
    data._rank = lambda: Rank(1, 2)
    (batch,) = ready(data).val_dataloader()
    assert len(batch["label"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unlabeled_batch_size": 2}, r"labelled images alone.*unlabeled_batch_size=0"),
        ({"labeled_real_batch_size": 2}, r"labelled images alone.*labeled_real_batch_size=0"),
    ],
)
def test_streams_without_labels_are_refused(options, message):
    with pytest.raises(DataError, match=message):
        Given([blocks()], **options)


def test_background_must_be_a_class_and_patches_are_not_predicted():
    data = Given([blocks()] * 2, patches=PatchMixer(4, (8, 16), 12, background_index=6))
    with pytest.raises(DataError, match="background_index is 6, but there are 6 classes"):
        data.setup("fit")
    with pytest.raises(DataError, match=r"images are predicted \(option: patches=null\)"):
        Given([blocks()] * 2).setup("predict")


def test_masks_are_needed():
    class Bare(Arrays):
        def read(self, index, reduce=1):
            return super().read(index)._replace(mask=None)

    data = Given([blocks()] * 2)
    data.source = lambda split: Bare([blocks()] * 2)
    data.setup("fit")
    with pytest.raises(DataError, match=r"image\d has no mask"):
        batches(data)


def test_any_data_module_cuts_patches_and_keeps_its_classes():
    options = {"train_size": 6, "val_size": 2, "test_size": 2, "image_size": (64, 96)}
    mixer = PatchMixer(5, (16, 32), 24, background_index=0, max_overlap=0.5)
    data = SyntheticScenesDataModule(
        **options, patches=mixer, batch_size=2, crop_size=48, num_workers=0, seed=1
    )
    images = SyntheticScenesDataModule(**options)
    assert data.class_names == images.class_names
    assert data.num_classes == images.num_classes
    assert data.palette == images.palette
    found = batches(ready(data))
    assert [batch["image"].shape for batch in found] == [(10, 3, 24, 24)] * 3
    assert sorted(name for batch in found for name in batch["id"]) == images.source("train").ids
    assert all(batch["label"].max() < data.num_classes for batch in found)
    again = SyntheticScenesDataModule(**options, patches=mixer, num_workers=0, seed=1)
    for stage in ("validate", "test"):
        for each in (data, again):
            each.setup(stage)
    for loaders in (
        (data.val_dataloader(), again.val_dataloader()),
        (data.test_dataloader(), again.test_dataloader()),
    ):
        for one, two in zip(*loaders, strict=True):
            assert one["image"].shape == (5, 3, 24, 24)
            assert torch.equal(one["image"], two["image"])


def test_skipped_broken_images_are_counted_too():
    class Broken(Arrays):
        def read(self, index, reduce=1):
            if index == 0:
                raise DataError("broken")
            return super().read(index)

    data = Given([blocks(i) for i in range(4)], on_bad_sample="skip")
    data.source = lambda split: Broken(data.given[split])
    data.setup("fit")
    with pytest.warns(UserWarning, match="a bad sample is left out"):
        found = batches(data)
    assert sum(batch["skipped"].sum() for batch in found) == 1
    assert all(len(batch["label"]) == 8 for batch in found)


def test_the_trainers_ranks_are_asked():
    data = Given([blocks(i) for i in range(4)])
    data.trainer = SimpleNamespace(global_rank=1, world_size=4)
    assert data._rank() == Rank(1, 4)
