import cv2
import numpy as np
import pytest

from datamodules import DataError, SyntheticScenesDataModule
from datamodules.synthetic_scenes import BOAT, POLE, SIGN, SKY, WATER


@pytest.fixture(scope="module")
def masks() -> np.ndarray:
    source = SyntheticScenesDataModule(num_workers=0).source("train")
    return np.stack([source[index].mask for index in range(120)])


def test_a_scene_depends_on_seed_split_and_index_only() -> None:
    def scene(split: str, index: int, **options):
        return SyntheticScenesDataModule(num_workers=0, **options).source(split)[index]

    first, again = scene("train", 3), scene("train", 3, train_size=9, seed=5)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.mask, again.mask)
    for other in (scene("val", 3), scene("train", 4), scene("train", 3, scene_seed=1)):
        assert not np.array_equal(first.image, other.image)


def test_there_are_eight_classes_and_void_at_some_borders(masks: np.ndarray) -> None:
    assert set(np.unique(masks)) == {*range(8), 255}
    with_void = (masks == 255).any(axis=(1, 2)).mean()
    assert 0.2 < with_void < 0.8


def test_signs_are_rare_and_poles_thin(masks: np.ndarray) -> None:
    assert 0 < (masks == SIGN).mean() < 0.01
    # three pixels wide at most: two overlapping poles aside, an erosion by four columns leaves none
    kernel = np.ones((1, 7), np.uint8)
    left = sum(cv2.erode((mask == POLE).astype(np.uint8), kernel).sum() for mask in masks)
    assert left < 0.001 * (masks == POLE).sum()


def test_signs_touch_poles_and_boats_touch_water(masks: np.ndarray) -> None:
    square = np.ones((5, 5), np.uint8)
    for mask in masks:
        for thing, home in ((SIGN, POLE), (BOAT, WATER)):
            count, parts = cv2.connectedComponents((mask == thing).astype(np.uint8))
            for part in range(1, count):
                around = cv2.dilate((parts == part).astype(np.uint8), square) > 0
                near = set(mask[around].tolist())
                # a pole in front may cut a thing in two, an outline may hide its home
                assert near & {home, POLE, 255}, (thing, near)


def test_water_has_the_colour_of_the_sky() -> None:
    source = SyntheticScenesDataModule(num_workers=0).source("train")
    distances = []
    for index in range(40):
        image, mask = source[index].image, source[index].mask
        if (mask == WATER).sum() > 200:
            distances.append(image[mask == WATER].mean(0) - image[mask == SKY].mean(0))
    assert len(distances) > 10
    assert np.abs(np.mean(distances, axis=0)).max() < 10


def test_tiny_scenes_are_refused() -> None:
    with pytest.raises(DataError, match=r"image_size"):
        SyntheticScenesDataModule(image_size=(16, 16))
