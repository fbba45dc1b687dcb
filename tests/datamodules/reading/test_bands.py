"""Images with another number of channels than three, against the arrays that were written."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from datamodules import FolderDataModule
from datamodules.augmenting.steps import StrongView
from datamodules.errors import DataError
from datamodules.reading.decoding import Reading, image_size, read_image
from datamodules.scan import scan

HEIGHT, WIDTH = 24, 37


def pixels(channels: int, dtype: type = np.uint8, high: int = 255) -> np.ndarray:
    drawn = np.random.default_rng(channels).integers(0, high + 1, (HEIGHT, WIDTH, channels))
    return drawn.astype(dtype)


LAYOUTS = {
    "channels last": {"photometric": "minisblack", "planarconfig": "contig"},
    "channels first": {"photometric": "minisblack", "planarconfig": "separate"},
    "a page for each channel": {"photometric": "minisblack"},
    "a page for each row": {"photometric": "minisblack"},
}


def write(path: Path, array: np.ndarray, layout: str, **options: object) -> Path:
    first = layout in ("channels first", "a page for each channel")
    stored = array.transpose(2, 0, 1) if first else array
    tifffile.imwrite(path, stored, **LAYOUTS[layout], **options)
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [2, 5, 13])
def test_bands_are_read_wherever_a_tiff_keeps_them(
    tmp_path: Path, layout: str, channels: int
) -> None:
    array = pixels(channels)
    path = write(tmp_path / "a.tif", array, layout)
    found = read_image(path, reading=Reading(channels=channels))
    assert found.dtype == np.uint8
    assert np.array_equal(found, array)
    assert image_size(path, channels) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("compression", ["lzw", "zlib", "zstd", "packbits"])
def test_bands_are_read_from_compressed_files(tmp_path: Path, compression: str) -> None:
    array = pixels(6)
    path = write(tmp_path / "a.tif", array, "channels last", compression=compression)
    assert np.array_equal(read_image(path, reading=Reading(channels=6)), array)


def test_deep_bands_become_fractions_of_their_range(tmp_path: Path) -> None:
    array = pixels(4, np.uint16, 10_000)
    path = write(tmp_path / "a.tif", array, "channels last")
    stated = read_image(path, reading=Reading((0, 8000), channels=4))
    assert stated.dtype == np.float32
    np.testing.assert_allclose(stated, np.minimum(array / 8000, 1), atol=1e-7)
    # without an option 65535 is white, as far as the images are not nearly black
    bright = write(tmp_path / "b.tif", pixels(4, np.uint16, 65_535), "channels last")
    whole = read_image(bright, reading=Reading(channels=4))
    np.testing.assert_allclose(whole, pixels(4, np.uint16, 65_535) / 65_535, atol=1e-6)


def test_floating_point_and_signed_bands_need_a_range_beyond_fractions(tmp_path: Path) -> None:
    fractions = np.random.default_rng(0).random((HEIGHT, WIDTH, 4), np.float32)
    path = write(tmp_path / "a.tif", fractions, "channels first")
    np.testing.assert_array_equal(read_image(path, reading=Reading(channels=4)), fractions)
    decibels = write(tmp_path / "b.tif", fractions * 30 - 25, "channels last")
    with pytest.raises(DataError, match=r"holds -2.* as float32.*image_range="):
        read_image(decibels, reading=Reading(channels=4))
    found = read_image(decibels, reading=Reading((-25, 5), channels=4))
    np.testing.assert_allclose(found, fractions, atol=1e-6)
    fractions[3, 4, 1] = np.nan
    holed = write(tmp_path / "c.tif", fractions, "channels last")
    with pytest.raises(DataError, match="NaN or infinity"):
        read_image(holed, reading=Reading(channels=4))


def test_further_channels_are_never_dropped(tmp_path: Path) -> None:
    array = pixels(4)
    infrared = tmp_path / "infrared.tif"
    tifffile.imwrite(infrared, array, photometric="rgb", extrasamples=["unspecified"])
    with pytest.raises(DataError, match=r"holds 4 channels, expected the 3 .*channels=4"):
        read_image(infrared)
    assert np.array_equal(read_image(infrared, reading=Reading(channels=4)), array)
    # of transparency nothing is lost
    transparent = tmp_path / "transparent.tif"
    tifffile.imwrite(transparent, array, photometric="rgb", extrasamples=["unassalpha"])
    assert np.array_equal(read_image(transparent), array[..., :3])
    for layout in LAYOUTS:
        path = write(tmp_path / "b.tif", pixels(5), layout)
        with pytest.raises(DataError, match=r"channels|pages"):
            read_image(path)
    with pytest.raises(DataError, match=r"5 channels, expected 4 .*channels=5"):
        read_image(
            write(tmp_path / "b.tif", pixels(5), "channels last"), reading=Reading(channels=4)
        )
    with pytest.raises(DataError, match=r"13 pages.*channels=13"):
        read_image(write(tmp_path / "c.tif", pixels(13), "a page for each channel"))


def test_two_channels_of_grey_values_are_not_taken_for_transparency(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", pixels(2), "channels last")
    with pytest.raises(DataError, match=r"holds 2 channels.*channels=2"):
        read_image(path)
    tifffile.imwrite(path, pixels(2), photometric="minisblack", extrasamples=["unassalpha"])
    assert np.array_equal(read_image(path)[..., 0], pixels(2)[..., 0])


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp"])
def test_grey_images_have_one_channel_if_that_is_asked(tmp_path: Path, name: str) -> None:
    grey = pixels(1)[..., 0]
    path, one = tmp_path / name, Reading(channels=1)
    for image in (Image.fromarray(grey), Image.fromarray(grey).convert("RGB")):
        image.save(path)
        assert np.array_equal(read_image(path, reading=one), grey[..., None])
    Image.fromarray(pixels(3)).save(path)
    with pytest.raises(DataError, match=r"holds 3 channels, expected 1 .*channels=3"):
        read_image(path, reading=one)


def test_transparency_is_a_fourth_channel_if_that_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(pixels(4)).save(path)
    assert np.array_equal(read_image(path, reading=Reading(channels=4)), pixels(4))
    assert np.array_equal(read_image(path), pixels(4)[..., :3])
    Image.fromarray(pixels(1)[..., 0]).convert("LA").save(path)
    assert np.array_equal(read_image(path, reading=Reading(channels=1)), pixels(1))


def test_deep_grey_images_keep_their_depth(tmp_path: Path) -> None:
    grey = pixels(1, np.uint16, 65_535)[..., 0]
    path = tmp_path / "a.png"
    Image.fromarray(grey).save(path)
    found = read_image(path, reading=Reading(channels=1))
    np.testing.assert_allclose(found[..., 0], grey / 65_535, atol=1e-6)


def test_bands_are_turned_as_their_tag_says(tmp_path: Path) -> None:
    array, path = pixels(5), tmp_path / "a.tif"
    turned = [("I", 6)]
    tifffile.imwrite(
        path,
        array,
        **LAYOUTS["channels last"],
        extratags=[(274, "H", 1, number, False) for _, number in turned],
    )
    found = read_image(path, reading=Reading(channels=5))
    assert np.array_equal(found, np.rot90(array, -1))  # 6: a quarter to the right
    assert image_size(path, 5) == (WIDTH, HEIGHT)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.tif", pixels(5), "channels last")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(DataError, match=r"pip install 'lightning-seg\[tiff\]'"):
        read_image(path, reading=Reading(channels=5))


def test_a_damaged_file_is_one_sentence(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", pixels(5), "channels last", compression="lzw")
    data = bytearray(path.read_bytes())
    for end in (len(data) // 2, 40, 9):
        path.write_bytes(data[:end])
        with pytest.raises(DataError, match=r"a\.tif"):
            read_image(path, reading=Reading(channels=5))


def folder(root: Path, values: list[np.ndarray]) -> Path:
    for split in ("train", "val"):
        (root / "images" / split).mkdir(parents=True)
        (root / "masks" / split).mkdir(parents=True)
        for number, array in enumerate(values):
            write(root / "images" / split / f"{split}{number}.tif", array, "channels last")
            mask = Image.fromarray(np.zeros(array.shape[:2], np.uint8))
            mask.save(root / "masks" / split / f"{split}{number}.png")
    return root


def test_pages_that_exceed_the_limit_together_are_refused_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pages.tif"
    pages = np.zeros((60, 500, 400), np.uint8)
    tifffile.imwrite(path, pages, compression="zlib", photometric="minisblack")
    assert path.stat().st_size < 100_000  # of 12 MB
    assert read_image(path, reading=Reading(None, 200_000, 60)).shape == (500, 400, 60)
    monkeypatch.setattr(tifffile, "TiffFile", None)  # nothing is decoded
    with pytest.raises(DataError, match="holds 60 samples in each of 400x500 pixels"):
        read_image(path, reading=Reading(None, 200_000, 5))


def test_mean_and_deviation_of_bands_are_measured_over_all_pixels(tmp_path: Path) -> None:
    # channel 0 holds 0, 0, 1 and 1 of images of 1 and 3 parts of the area: mean 3/4
    dark, bright = np.zeros((20, 10, 4), np.uint8), np.zeros((20, 30, 4), np.uint8)
    bright[..., 0], bright[..., 1], dark[..., 2] = 255, 51, 102
    data = FolderDataModule(
        folder(tmp_path, [dark, bright]).as_posix(), num_classes=2, channels=4, num_workers=0
    )
    report = scan(data, workers=0)
    mean, std = report.splits["train"].mean_and_std()
    np.testing.assert_allclose(mean, [0.75, 0.15, 0.1, 0], atol=1e-9)
    # sqrt(p (1 - p)) times the step: 0.433 x 1, 0.433 x 0.2, 0.433 x 0.4
    np.testing.assert_allclose(std, [0.75**0.5 / 2, 0.75**0.5 / 10, 0.75**0.5 / 5, 0], atol=1e-7)
    assert any("image_mean=[0.7500,0.1500,0.1000,0.0000]" in note for note in report.notes)


def test_files_of_8_and_16_bits_share_a_batch_as_fractions(tmp_path: Path) -> None:
    values = [pixels(4), pixels(4, np.uint16, 65_535)]
    data = FolderDataModule(
        folder(tmp_path, values).as_posix(),
        num_classes=2, channels=4, num_workers=0, batch_size=2, val_batch_size=2,
        crop_size=(HEIGHT, WIDTH), augmentation="crop",
    )  # fmt: skip
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    expected = np.stack([values[0] / 255, values[1] / 65_535]).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(batch["image"], expected, atol=1e-6)
    trained = next(iter(data.train_dataloader()))["image"]
    assert sorted(round(float(each.mean()), 5) for each in trained) == sorted(
        round(float(each.mean()), 5) for each in expected
    )


def test_a_cache_tells_images_of_other_channels_apart(tmp_path: Path) -> None:
    root, grey = tmp_path / "data", np.tile(pixels(1), 3)
    for split in ("train", "val"):
        for kind, array in {"images": grey, "masks": np.zeros_like(grey[..., 0])}.items():
            (root / kind / split).mkdir(parents=True)
            Image.fromarray(array).save(root / kind / split / f"{split}.png")
    for channels in (3, 1, 3):
        data = FolderDataModule(
            root.as_posix(), num_classes=2, channels=channels, cache=str(tmp_path / "cache"),
            num_workers=0,
        )  # fmt: skip
        data.setup("fit")
        assert next(iter(data.val_dataloader()))["image"].shape[1] == channels


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "channels must be in"),
        ({"channels": 4, "image_mean": [0.5], "image_std": [0.1] * 4}, "1 values for 4 channels"),
        ({"image_mean": [0.5] * 3}, "together or not at all"),
        ({"image_mean": [0.5] * 3, "image_std": [0.1, 0, 0.1]}, "image_std must be above 0"),
        ({"channels": 4, "picture_channels": [0, 1, 4]}, r"must be in \[0, 3\]"),
        ({"channels": 4, "picture_channels": [0, 1]}, "3 channels, as red, green and blue, or 1"),
        ({"channels": 4, "augmentation": [{"ToGray": {"p": 0.1}}]}, "ToGray cannot change"),
        ({"channels": 2, "strong_augmentation": "strong"}, "ColorJitter cannot change"),
    ],
)  # fmt: skip
def test_options_that_contradict_each_other_are_refused(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        FolderDataModule(tmp_path.as_posix(), num_classes=2, **options)


def test_there_is_a_strong_view_for_any_number_of_channels() -> None:
    image = pixels(7)
    view = StrongView("strong_any_channels", 7)(image, 1)
    assert view.shape == image.shape
    assert not np.array_equal(view, image)
