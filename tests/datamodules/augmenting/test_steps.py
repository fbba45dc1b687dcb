"""Steps of an augmentation, alone and in order."""

import pickle

import numpy as np
import pytest
import yaml

from datamodules import DataError, SyntheticScenesDataModule
from datamodules.augmenting.steps import PRESETS, Augmentation, Augmented, Draw, StrongView
from datamodules.reading.sources import Example

IMAGE = np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8)
MASK = np.random.default_rng(1).integers(0, 4, (60, 80)).astype(np.uint8)


def crop(augmentation: Augmentation, seed: int, image=IMAGE, mask=MASK) -> Augmented:
    return augmentation(Example("a", image, mask), augmentation.draw(seed))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_lists_that_yaml_can_hold(name: str) -> None:
    steps = yaml.safe_load(yaml.safe_dump(PRESETS[name]))
    first, second = Augmentation(name, (32, 48)), Augmentation(steps, (32, 48))
    for seed in range(5):
        for one, other in zip(crop(first, seed), crop(second, seed), strict=True):
            assert np.array_equal(one, other)
        assert crop(first, seed).image.shape == (32, 48, 3)


def test_a_draw_makes_the_same_crop_each_time_and_in_any_process() -> None:
    augmentation = Augmentation(["RandomScaleCrop", {"ColorJitter": {"p": 1.0}}], (32, 32))
    draw = augmentation.draw(3)
    again = pickle.loads(pickle.dumps(draw))
    crops = [augmentation(Example("a", IMAGE, MASK), each) for each in (draw, draw, again)]
    for other in crops[1:]:
        for one, two in zip(crops[0], other, strict=True):
            assert np.array_equal(one, two)


def test_flips_come_half_of_the_time_and_take_everything_along() -> None:
    augmentation = Augmentation("crop_flip", (60, 80))
    flips = 0
    for seed in range(200):
        image, mask, valid = crop(augmentation, seed)
        flipped = bool((image != IMAGE).any())
        flips += flipped
        step = -1 if flipped else 1
        assert np.array_equal(image, IMAGE[:, ::step])
        assert np.array_equal(mask, MASK[:, ::step])
        assert valid.all()
    assert 70 < flips < 130


def test_steps_draw_independently() -> None:
    """albumentations' own seeding makes every step draw the same numbers."""
    augmentation = Augmentation(
        [{"HorizontalFlip": {"p": 0.5}}, {"VerticalFlip": {"p": 0.5}}], (60, 80)
    )
    counts = np.zeros((2, 2), int)
    for seed in range(400):
        image = crop(augmentation, seed).image
        views = {
            (horizontal, vertical): IMAGE[:: 1 - 2 * vertical, :: 1 - 2 * horizontal]
            for horizontal in (0, 1)
            for vertical in (0, 1)
        }
        (found,) = [key for key, view in views.items() if np.array_equal(view, image)]
        counts[found] += 1
    assert counts.min() > 60  # of 100 expected


def test_the_seed_decides() -> None:
    augmentation = Augmentation(["RandomScaleCrop", {"ColorJitter": {"p": 1.0}}], (32, 32))
    one, again, other = (crop(augmentation, seed).image for seed in (7, 7, 8))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("fill_mask", [0, 255])
def test_what_a_step_fills_in_is_void_and_not_valid(fill_mask: int) -> None:
    """albumentations' own default would label it as class 0."""
    steps = ["RandomScaleCrop", {"Rotate": {"limit": [45, 45], "fill_mask": fill_mask, "p": 1.0}}]
    mask = np.ones((60, 60), np.uint8)
    augmentation = Augmentation(steps, (60, 60), scale=(1.0, 1.0))
    _, turned, valid = crop(augmentation, 0, IMAGE[:, :60], mask)
    assert not valid[0, 0]
    assert valid[30, 30]
    assert np.array_equal(turned == 1, valid)
    assert set(np.unique(turned)) == {1, 255}


def test_valid_follows_a_flip() -> None:
    augmentation = Augmentation(
        [
            {"PadIfNeeded": {"min_height": 60, "min_width": 100, "position": "top_left"}},
            "RandomScaleCrop",
            {"HorizontalFlip": {"p": 1.0}},
        ],
        (60, 100),
        scale=(1.0, 1.0),
    )
    _, mask, valid = crop(augmentation, 0)
    assert valid[:, 20:].all()
    assert not valid[:, :20].any()
    assert (mask[:, :20] == 255).all()


@pytest.mark.parametrize(
    "step",
    [
        {"Resize": {"height": 120, "width": 200}},
        {"LongestMaxSize": {"max_size": 160}},
        {"SmallestMaxSize": {"max_size": 200}},
        {"Transpose": {"p": 1.0}},
        {"RandomRotate90": {"p": 1.0}},
    ],
)
def test_a_step_before_the_crop_may_change_the_size(step) -> None:
    """Columns of labels painted into the image must still lie on each other."""
    mask = np.repeat(np.arange(8, dtype=np.uint8), 10)[None].repeat(60, 0)
    image = np.repeat(mask[..., None] * 30, 3, axis=-1)
    augmentation = Augmentation([step, "RandomScaleCrop"], (64, 64))
    for seed in range(20):
        cropped, labels, valid = crop(augmentation, seed, image, mask)
        inner = valid & (labels != 255)
        shown = np.round(cropped[..., 0] / 30)
        assert (shown[inner] == labels[inner]).mean() > 0.9  # but for interpolated borders
    reach = [crop(augmentation, seed, image, mask).mask for seed in range(60)]
    assert {int(label) for each in reach for label in np.unique(each)} >= set(range(8))


def test_transforms_that_look_at_the_labels_see_them() -> None:
    mask = np.zeros((60, 80), np.uint8)
    mask[50:53, 70:73] = 1
    steps = [{"CropNonEmptyMaskIfExists": {"height": 16, "width": 16, "p": 1.0}}]
    augmentation = Augmentation(steps, (16, 16))
    assert all((crop(augmentation, seed, IMAGE, mask).mask == 1).any() for seed in range(20))


def test_parts_of_an_augmentation_draw_different_numbers() -> None:
    noise = {"MultiplicativeNoise": {"multiplier": [0.5, 1.5], "p": 1.0}}
    augmentation, strong = Augmentation([noise], (60, 80)), StrongView([noise])
    flat = np.full((60, 80, 3), 120, np.uint8)
    weak = [crop(augmentation, seed, flat, None).image.mean() for seed in range(100)]
    other = [strong(flat, seed).mean() for seed in range(100)]
    assert abs(np.corrcoef(weak, other)[0, 1]) < 0.3


def test_advice_of_albumentations_is_no_error() -> None:
    Augmentation(["RandomScaleCrop", {"ShiftScaleRotate": {"p": 1.0}}], (32, 32))


def test_without_labels_there_is_no_mask() -> None:
    image, mask, valid = crop(Augmentation("standard", (90, 90)), 3, IMAGE, None)
    assert mask is None
    assert image.shape == (90, 90, 3)
    assert 0 < valid.sum() <= valid.size


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ("standrad", "no such preset"),
        ([{"HorizontalFlipp": {}}], "did you mean HorizontalFlip"),
        ([{"PadIfNeeded": {"value": 0}}], r"PadIfNeeded does not take.*value.*it takes.*fill"),
        ([{"RandomScaleCrop": {"scales": [1, 2]}}], r"RandomScaleCrop does not take.*it takes"),
        ([{"HorizontalFlip": {"p": 2.0}}], "HorizontalFlip does not take"),
        ([{"OneOf": {"transforms": [{"Blur": {"limit": 3}}]}}], "Blur does not take"),
        (["RandomScaleCrop", "RandomScaleCrop"], "more than once"),
        ([{"HorizontalFlip": {}, "Blur": {}}], "one name"),
    ],
)
def test_wrong_steps_are_errors(steps, told: str) -> None:
    with pytest.raises(DataError, match=rf"{told}.*\(option: augmentation=\)"):
        Augmentation(steps, (32, 32))
    with pytest.raises(DataError, match=r"\(option: unlabeled_augmentation=\)"):
        Augmentation(steps, (32, 32), option="unlabeled_augmentation")


def test_a_scale_given_twice_is_an_error() -> None:
    with pytest.raises(DataError, match=r"leave one out \(options: scale=, augmentation=\)"):
        SyntheticScenesDataModule(scale=(1.0, 2.0), augmentation="deeplab")
    with pytest.raises(DataError, match="has no RandomScaleCrop"):
        SyntheticScenesDataModule(scale=(1.0, 2.0), augmentation=["HorizontalFlip"])


@pytest.mark.parametrize("step", ["Normalize", "ToTensorV2"])
def test_normalising_in_the_loader_is_an_error(step: str) -> None:
    with pytest.raises(DataError, match=r"on the device \(option: augmentation=\)"):
        crop(Augmentation(["RandomScaleCrop", step], (32, 32)), 0)


def test_nested_steps_and_live_transforms() -> None:
    import albumentations

    blur = {"GaussianBlur": {"sigma_limit": [2.0, 2.0], "p": 1.0}}
    named = Augmentation([{"OneOf": {"transforms": [blur], "p": 1.0}}], (32, 32))
    live = Augmentation([albumentations.GaussianBlur(sigma_limit=(2.0, 2.0), p=1.0)], (32, 32))
    assert np.array_equal(crop(named, 0).image, crop(live, 0).image)
    assert not np.array_equal(crop(named, 0).image, IMAGE)


def test_the_strong_view_keeps_the_geometry() -> None:
    strong = StrongView("strong")
    changed = [strong(IMAGE, seed) for seed in range(10)]
    assert all(each.shape == IMAGE.shape for each in changed)
    assert sum(not np.array_equal(each, IMAGE) for each in changed) > 7
    assert np.array_equal(changed[3], strong(IMAGE, 3))
    with pytest.raises(DataError, match=r"moves pixels.*\(option: strong_augmentation=\)"):
        StrongView([{"OneOf": {"transforms": ["Blur", "VerticalFlip"]}}])


def test_jpegs_are_reduced_only_where_the_scale_allows() -> None:
    augmentation = Augmentation("standard", (32, 32), scale=(0.1, 2.0))
    factors = [0.1, 0.125, 0.2, 0.25, 0.4, 0.5, 0.51, 1.0, 2.0]
    assert [augmentation.reduction(Draw(0, factor)) for factor in factors] == [
        8,
        4,
        4,
        2,
        2,
        1,
        1,
        1,
        1,
    ]
    rotated = Augmentation([{"Rotate": {}}, "RandomScaleCrop"], (32, 32), scale=(0.1, 2.0))
    assert rotated.reduction(Draw(0, 0.1)) == 1
