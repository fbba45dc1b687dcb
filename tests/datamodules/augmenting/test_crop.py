"""Crop-before-scale against the obvious way: scale everything, pad, cut."""

import random

import cv2
import numpy as np
import pytest
from scipy import stats

from datamodules import DataError
from datamodules.augmenting.crop import PAD_COLOR, Crop, RandomScaleCrop


def photograph(height: int, width: int) -> np.ndarray:
    """Smooth shapes and noise: what interpolation errors would show on."""
    rng = np.random.default_rng(height * width)
    image = cv2.resize(rng.uniform(0, 255, (height // 6 + 2, width // 6 + 2, 3)), (width, height))
    return np.clip(image + rng.normal(0, 15, image.shape), 0, 255).astype(np.uint8)


def nearest(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The label below the centre of each scaled pixel, one by one."""
    height, width = size
    scaled = np.empty(size, np.uint8)
    for row in range(height):
        for column in range(width):
            y = (2 * row + 1) * mask.shape[0] // (2 * height)  # exact in integers
            x = (2 * column + 1) * mask.shape[1] // (2 * width)
            scaled[row, column] = mask[y, x]
    return scaled


def scale_then_crop(crop: Crop, image: np.ndarray, mask: np.ndarray):
    height, width = crop.scaled
    scaled = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    labels = nearest(mask, crop.scaled)
    canvas = np.empty((*crop.size, 3), np.uint8)
    canvas[:] = PAD_COLOR
    padded = np.full(crop.size, 255, np.uint8)
    valid = np.zeros(crop.size, bool)
    for row in range(crop.size[0]):
        y = row + crop.top
        if 0 <= y < height:
            begin, end = max(0, -crop.left), min(crop.size[1], width - crop.left)
            canvas[row, begin:end] = scaled[y, begin + crop.left : end + crop.left]
            padded[row, begin:end] = labels[y, begin + crop.left : end + crop.left]
            valid[row, begin:end] = True
    return canvas, padded, valid


@pytest.mark.parametrize("shape", [(60, 90), (37, 41), (120, 33), (5, 7), (1, 1)])
@pytest.mark.parametrize("size", [(32, 32), (50, 20)])
def test_pixels_are_those_of_scale_then_crop(shape, size) -> None:
    image = photograph(*shape)
    mask = np.random.default_rng(0).integers(0, 5, shape).astype(np.uint8)
    draw = RandomScaleCrop(size, (0.3, 3.0))
    worst, total = 0, []
    for seed in range(25):
        rng = np.random.default_rng(seed)
        crop = draw.place(rng, shape, 1.0 if seed == 0 else draw.factor(rng))
        expected, labels, valid = scale_then_crop(crop, image, mask)
        difference = np.abs(crop.image(image).astype(int) - expected)
        worst = max(worst, difference.max())
        total.append(difference.mean())
        assert np.array_equal(crop.mask(mask), labels)
        assert np.array_equal(crop.valid(), valid)
        if crop.source == crop.scaled:
            assert difference.max() == 0
    assert worst <= 1
    assert np.mean(total) < 0.3


def test_scale_and_window_have_albumentations_distribution() -> None:
    """The same image by albumentations: equal distributions of scale and of both offsets."""
    import albumentations

    shape, size = (80, 120), (40, 48)
    pipeline = albumentations.Compose(
        [
            albumentations.RandomScale((-0.5, 1.0), p=1, mask_interpolation=cv2.INTER_NEAREST),
            albumentations.PadIfNeeded(*size),
            albumentations.RandomCrop(*size),
        ]
    )
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    ramp = np.dstack([rows, columns, rows])  # a float image tells where each pixel comes from

    def measure(image: np.ndarray) -> tuple[float, float, float]:
        return image[30, 20, 0] - image[10, 20, 0], image[20, 24, 0], image[20, 24, 1]

    theirs, ours = [], []
    draw = RandomScaleCrop(size, (0.5, 2.0))
    for seed in range(1500):
        # its set_random_seed would tie the crop's place to the factor
        pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        theirs.append(measure(pipeline(image=ramp)["image"]))
        rng = np.random.default_rng(seed)
        crop = draw.place(rng, shape, draw.factor(rng))
        slope = shape[0] / crop.scaled[0], shape[1] / crop.scaled[1]
        at = [(20 + crop.top + 0.5) * slope[0] - 0.5, (24 + crop.left + 0.5) * slope[1] - 0.5]
        ours.append((20 * slope[0], *at))
    for mine, their in zip(np.transpose(ours), np.transpose(theirs), strict=True):
        assert stats.ks_2samp(mine, their).pvalue > 0.001


def test_factors_of_a_step() -> None:
    draw = RandomScaleCrop(8, (0.5, 2.0), step=0.25)
    rng = np.random.default_rng(0)
    found, counts = np.unique([draw.factor(rng) for _ in range(7000)], return_counts=True)
    assert found.tolist() == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]
    assert stats.chisquare(counts).pvalue > 0.001


def test_adv_semi_segs_twelve_factors() -> None:
    draw = RandomScaleCrop(8, (0.5, 1.6), step=0.1)
    rng = np.random.default_rng(0)
    found = {round(draw.factor(rng), 6) for _ in range(2000)}
    assert sorted(found) == [0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6]


def test_a_reduced_image_shows_the_same_place() -> None:
    """An image averaged by two and cropped at a quarter of the size, against averaging by four."""
    image = cv2.GaussianBlur(photograph(240, 320), (0, 0), 4)
    half = image.reshape(120, 2, 160, 2, 3).mean((1, 3)).round().astype(np.uint8)
    quarter = image.reshape(60, 4, 80, 4, 3).mean((1, 3))
    crop = Crop((240, 320), (60, 80), 10, 20, (30, 40))
    assert np.abs(crop.image(half, reduced=2) - quarter[10:40, 20:60]).max() < 2


@pytest.mark.parametrize("options", [{"size": 0}, {"scale": (2.0, 0.5)}, {"step": 0.0}])
def test_impossible_options(options) -> None:
    with pytest.raises(DataError):
        RandomScaleCrop(**{"size": 8, **options})


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 7, 13])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_images_of_any_number_of_channels_are_cut_channel_by_channel(
    channels: int, kind: type
) -> None:
    # OpenCV 5 rounds the places of pixels to 1/32 for 2 channels and for more than 4
    values = np.random.default_rng(0).random((40, 50, channels))
    image = (values * 255).astype(kind) if kind == np.uint8 else values.astype(kind)
    place = Crop((40, 50), (61, 33), 7, -4, (64, 48))
    found = place.image(image)
    assert (found.dtype, found.shape) == (kind, (64, 48, channels))
    inside = place.inside()
    for i in range(channels):
        alone = place.image(np.ascontiguousarray(image[..., i : i + 1]))
        assert np.array_equal(found[inside][..., i], alone[inside][..., 0])
        as_rgb = place.image(image[..., [i, i, i]])
        np.testing.assert_allclose(
            found[inside][..., i].astype(float), as_rgb[inside][..., 0], atol=1e-5
        )
    # padding has the mean of the part of the image that the crop shows
    means = found[inside].reshape(-1, channels).mean(0)
    outside = found[~place.valid()]
    assert np.abs(outside - means).max() <= (1 if kind == np.uint8 else 1e-5)
