"""Every file is read as it stores its samples, or refused."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from image_files import packed, png, pnm, tiff
from PIL import Image

from datamodules import DataError
from datamodules.reading.decoding import (
    Reading,
    image_size,
    is_turned,
    read_image,
    unstated_range,
)
from datamodules.reading.mask_files import read_mask

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4)
IDS = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
GRADIENT = np.linspace(0, 4095, 64).astype(np.uint16).reshape(8, 8)


def written(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("RGB", [10, 20, 30]),
        ("RGBA", [10, 20, 30]),
        ("L", [18, 18, 18]),  # 0.299 * 10 + 0.587 * 20 + 0.114 * 30
        ("P", [10, 20, 30]),
    ],
)
def test_every_colour_mode_is_read_as_rgb(tmp_path: Path, mode: str, expected: list[int]) -> None:
    picture = Image.new("RGB", (4, 3), (10, 20, 30))
    if mode == "P":
        picture = picture.quantize(4)
    picture.convert(mode).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.shape == (3, 4, 3)
    assert image.dtype == np.uint8
    assert image[1, 2].tolist() == expected


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0, :, 0].tolist() == [0, 1, 128, 255]


def test_fractions_are_scaled_to_bytes(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, 0.2, 1.0]], np.float32)).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 51, 255]


def test_an_image_without_a_scale_is_told(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, np.nan]], np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif.*must hold finite"):
        read_image(tmp_path / "a.tif")


def test_photographs_are_turned_as_their_exif_data_say(tmp_path: Path) -> None:
    """Orientation 6: the stored left edge is the shown top edge."""
    stored = np.zeros((8, 16, 3), np.uint8)
    stored[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    image = read_image(tmp_path / "a.png")
    assert image.shape == (16, 8, 3)
    assert image[:8].min() == 255
    assert image[8:].max() == 0
    assert image_size(tmp_path / "a.png") == (16, 8)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_truncated_image_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"broken{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"broken\{suffix} cannot be read"):
        read_image(path)


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("not an image")
    with pytest.raises(DataError, match=r"a\.jpg cannot be read"):
        read_image(tmp_path / "a.jpg")


def test_index_palette_and_grey_rgb_masks_give_the_same_values(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "index.png")
    palette = Image.fromarray(GREY)
    palette.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    palette.save(tmp_path / "palette.png")
    Image.fromarray(np.stack([GREY] * 3, axis=-1)).save(tmp_path / "grey_rgb.png")
    Image.fromarray(GREY.astype(np.uint16)).save(tmp_path / "sixteen.png")
    for name in ("index", "palette", "grey_rgb", "sixteen"):
        assert np.array_equal(read_mask(tmp_path / f"{name}.png"), GREY), name


def test_a_bilevel_mask_holds_zero_and_one(tmp_path: Path) -> None:
    Image.fromarray(GREY > 5).save(tmp_path / "a.png")
    assert np.array_equal(read_mask(tmp_path / "a.png"), GREY > 5)
    assert read_mask(tmp_path / "a.png").dtype == np.uint8


def test_a_palette_is_looked_up_where_colours_are_asked_for(tmp_path: Path) -> None:
    palette = Image.fromarray(np.array([[0, 1]], np.uint8))
    palette.putpalette([1, 2, 3, 4, 5, 6])
    palette.save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png", as_color=True).tolist() == [[[1, 2, 3], [4, 5, 6]]]


def three(array: np.ndarray) -> np.ndarray:
    return np.stack([array] * 3, axis=-1)


MASKS = {
    "rgb16.png": png(three(IDS), 16),
    "rgba16.png": png(np.dstack([three(IDS), IDS * 0 + 7]), 16),
    "la16.png": png(np.dstack([IDS, IDS * 0]), 16),
    "la8.png": png(np.dstack([IDS, IDS * 0]), 8),
    "grey16.png": png(IDS, 16),
    "grey8.png": png(IDS, 8),
    "grey4.png": png(IDS, 4),
    "grey2.png": png(IDS, 2),
    "palette2.png": png(IDS, 2, palette=bytes(range(9)), alpha=b"\0\x80"),
    "palette8.png": png(IDS, 8, palette=bytes(range(9)), alpha=b"\0"),
    "two.pgm": pnm(IDS, 2),
    "plain.pgm": pnm(IDS, 2, plain=True),
    "thousand.pgm": pnm(IDS, 1000),
    "deep.pgm": pnm(IDS, 65535),
    "three.ppm": pnm(three(IDS), 3),
    "plain.ppm": pnm(three(IDS), 7, plain=True),
    "int16.tif": tiff(IDS.astype(np.int16)),
    "int32.tif": tiff(IDS.astype(np.int32)),
    "uint32.tif": tiff(IDS.astype(np.uint32)),
    "big_endian.tif": tiff(IDS.astype(np.uint16), order=">"),
    "big_endian_32.tif": tiff(IDS.astype(np.uint32), order=">"),
    "float.tif": tiff(IDS.astype(np.float32)),
    "rgb16.tif": tiff(three(IDS).astype(np.uint16)),
    "rgb16_big_endian.tif": tiff(three(IDS).astype(np.uint16), order=">"),
    "float_rgb.tif": tiff(three(IDS).astype(np.float32)),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_of_any_depth_holds_the_samples_that_were_stored(tmp_path: Path, name: str) -> None:
    stored = read_mask(written(tmp_path, name, MASKS[name]))
    assert stored.shape == IDS.shape
    assert stored.tolist() == IDS.tolist()


def test_opencvs_masks_of_three_channels_and_16_bits(tmp_path: Path) -> None:
    for name in ("a.png", "a.tif"):
        assert cv2.imwrite(str(tmp_path / name), three(IDS).astype(np.uint16))
        assert read_mask(tmp_path / name).tolist() == IDS.tolist()


def test_a_gif_of_grey_values_does_not_hold_the_numbers_of_its_palette(tmp_path: Path) -> None:
    """Pillow writes only the colours that are used, under new numbers."""
    Image.fromarray(IDS * 2).save(tmp_path / "a.gif")
    assert read_mask(tmp_path / "a.gif").tolist() == (IDS * 2).tolist()


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32, np.float32])
def test_negative_values_of_a_mask_stay_negative(tmp_path: Path, kind: type) -> None:
    array = np.array([[-1, 0, 1]], kind)
    assert read_mask(written(tmp_path, "a.tif", tiff(array))).tolist() == [[-1, 0, 1]]


def test_unsigned_samples_of_32_bits_do_not_become_negative(tmp_path: Path) -> None:
    array = np.array([[0, 2**32 - 1]], np.uint32)
    assert read_mask(written(tmp_path, "a.tif", tiff(array))).tolist() == [[0, 2**32 - 1]]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("cmyk.tif", None, "CMYK"),
        ("white.tif", tiff(IDS, t262=0), "white as 0"),
        ("bits.pbm", b"P1\n3 2\n0 1 0\n1 0 1\n", "black as 1"),
        ("nan.tif", tiff(np.array([[np.nan, 1]], np.float32)), "NaN"),
        ("half.tif", tiff(np.array([[0.5, 1]], np.float32)), "fractional"),
        ("huge.tif", tiff(np.array([[-3.4e38, 1]], np.float32)), "-3.4e"),
        ("short.pgm", pnm(IDS, 2)[:-1], "5 samples instead of 6"),
        ("cut.png", png(three(IDS), 16)[:50], "cannot be read"),
    ],
)
def test_a_mask_that_would_have_to_be_converted_is_refused(
    tmp_path: Path, name: str, content: bytes | None, told: str
) -> None:
    if content is None:
        Image.new("CMYK", (3, 2)).save(tmp_path / name)
    else:
        written(tmp_path, name, content)
    with pytest.raises(DataError, match=told) as error:
        read_mask(tmp_path / name)
    assert name in str(error.value)


def test_colours_of_16_bits_fit_a_colour_map_of_8(tmp_path: Path) -> None:
    colors = np.array([[[200, 0, 10], [0, 255, 1]]], np.uint8)
    for factor in (1, 257):
        path = written(tmp_path, f"{factor}.png", png(colors.astype(np.uint16) * factor, 16))
        assert read_mask(path, as_color=True).tolist() == colors.tolist()
    odd = written(tmp_path, "odd.png", png(colors.astype(np.uint16) * 3, 16))
    with pytest.raises(DataError, match="colours of 8 bits"):
        read_mask(odd, as_color=True)


def pages(folder: Path) -> list[Path]:
    frames = [Image.fromarray(IDS), Image.fromarray(255 - IDS), Image.fromarray(IDS * 9)]
    for name in ("a.gif", "a.tif", "a.png", "a.webp"):
        frames[0].save(folder / name, save_all=True, append_images=frames[1:])
    written(folder, "b.tif", tiff(*[np.array(frame) for frame in frames]))
    written(folder, "deep.tif", tiff(*[np.array(frame, np.uint16) for frame in frames]))
    return sorted(folder.iterdir())


def test_a_file_of_several_pages_is_refused_with_their_number(tmp_path: Path) -> None:
    for path in pages(tmp_path):
        for read in (read_image, read_mask):
            with pytest.raises(DataError, match=rf"{path.name} holds 3 pages or frames"):
                read(path)
    two = written(tmp_path, "two.pgm", 2 * pnm(IDS, 255))
    with pytest.raises(DataError, match=r"two\.pgm holds several images"):
        read_mask(two)


def test_a_smaller_copy_within_a_tiff_is_no_page(tmp_path: Path) -> None:
    content = bytearray(tiff(IDS, IDS[:1], t254=0))
    at = content.rindex(b"\xfe\x00\x04\x00\x01\x00\x00\x00")
    content[at + 8] = 1  # the second page is a reduced version of the first
    assert read_mask(written(tmp_path, "a.tif", bytes(content))).tolist() == IDS.tolist()


DEEP = {
    "rgb16.png": png(three(GRADIENT), 16),
    "grey16.png": png(GRADIENT, 16),
    "rgb16.tif": tiff(three(GRADIENT)),
    "grey16.tif": tiff(GRADIENT),
    "int16.tif": tiff(GRADIENT.astype(np.int16)),
    "int32.tif": tiff(GRADIENT.astype(np.int32)),
    "float.tif": tiff(GRADIENT.astype(np.float32)),
    "float_rgb.tif": tiff(three(GRADIENT).astype(np.float32)),
    "tagged.tif": tiff(GRADIENT, t281=4095),
    "tagged_rgb.tif": tiff(three(GRADIENT), t281=4095),
    "maxval.pgm": pnm(GRADIENT, 4095),
    "maxval.ppm": pnm(three(GRADIENT), 4095),
}
EXPECTED = (GRADIENT.astype(float) / 4095 * 255).round()


@pytest.mark.parametrize("name", DEEP)
def test_a_stated_range_becomes_0_to_255(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name, DEEP[name])
    image = read_image(path, reading=Reading(image_range=(0, 4095)))
    assert image.dtype == np.uint8
    assert np.abs(image - three(EXPECTED)).max() <= 1


@pytest.mark.parametrize("name", ["tagged.tif", "tagged_rgb.tif", "maxval.pgm", "maxval.ppm"])
def test_a_file_that_states_its_range_needs_no_option(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name, DEEP[name])
    assert np.abs(read_image(path) - three(EXPECTED)).max() <= 1
    assert unstated_range(path) is None


@pytest.mark.parametrize("name", ["rgb16.png", "grey16.png", "rgb16.tif", "grey16.tif"])
def test_the_values_of_a_file_without_a_range_are_measured(tmp_path: Path, name: str) -> None:
    assert unstated_range(written(tmp_path, name, DEEP[name])) == (0, 4095, 65535)


@pytest.mark.parametrize("name", ["int16.tif", "int32.tif", "float.tif", "float_rgb.tif"])
def test_without_a_known_range_the_error_names_the_option(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"holds 0\.\.4095 as .*\(option: image_range=\[0,4095\]\)"):
        read_image(written(tmp_path, name, DEEP[name]))


def test_white_as_0_is_shown_as_white(tmp_path: Path) -> None:
    for array in (np.array([[0, 255]], np.uint8), np.array([[0, 65535]], np.uint16)):
        path = written(tmp_path, "a.tif", tiff(array, t262=0))
        assert read_image(path)[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize("array", [GREY, GREY.astype(np.uint16), three(GREY).astype(np.uint16)])
def test_a_tiff_is_turned_once_as_its_tag_says(tmp_path: Path, array: np.ndarray) -> None:
    path = written(tmp_path, "a.tif", tiff(array, t274=6))
    turned = np.rot90(GREY, -1)
    assert read_mask(path).tolist() == turned.tolist()
    assert image_size(path) == turned.shape
    assert is_turned(path)


def test_the_limit_of_pixels_is_an_option_and_nothing_of_pillow_leaks(tmp_path: Path) -> None:
    """Pillow warns above 89 and refuses above 179 million pixels."""
    big = np.zeros((13_500, 13_500), np.uint8)
    cv2.imwrite(str(tmp_path / "big.png"), big, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    cv2.imwrite(str(tmp_path / "big.jpg"), big)
    assert read_mask(tmp_path / "big.png").shape == image_size(tmp_path / "big.png") == big.shape
    assert read_image(tmp_path / "big.jpg", reduce=8).shape == (1688, 1688, 3)
    limits = [
        lambda path: read_image(path, reading=Reading(max_pixels=11)),
        lambda path: read_mask(path, max_pixels=11),
    ]
    for name in ("a.png", "a.jpg", "a.bmp", "a.tif"):
        Image.fromarray(GREY).save(tmp_path / name)
        for read in limits:
            with pytest.raises(DataError, match=rf"{name[:1]}\.\w+ is 4x3 .*max_pixels=12"):
                read(tmp_path / name)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    for read in (read_image, read_mask, image_size):
        with pytest.raises(DataError, match=r"a\.png is a named pipe"):
            read(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("/dev/zero")
    with pytest.raises(DataError, match=r"b\.png is a device"):
        read_image(tmp_path / "b.png")


def test_sixteen_bits_that_hold_almost_nothing_are_refused_one_by_one(tmp_path: Path) -> None:
    path = written(tmp_path, "a.png", png(GRADIENT, 16))
    with pytest.raises(DataError, match=r"nearly black.*=\[0,4095\], image_range=\[0,65535"):
        read_image(path)
    # OpenCV writes 65535 whatever the image holds
    cv2.imwrite(str(tmp_path / "a.pgm"), GRADIENT)
    with pytest.raises(DataError, match=r"a\.pgm holds 0\.\.4095.*nearly black"):
        read_image(tmp_path / "a.pgm")
    black = written(tmp_path, "black.png", png(GRADIENT * 0, 16))
    assert read_image(black).max() == 0


def test_tiffs_of_2_and_4_bits_hold_the_samples_that_were_stored(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 2, 3], [3, 2, 1, 0]], np.uint8)
    for bits in (2, 4):
        pixels = np.frombuffer(b"".join(packed(ids, bits)), np.uint8).reshape(2, -1)
        content = tiff(pixels, t256=4, t258=bits)
        assert read_mask(written(tmp_path, "a.tif", content)).tolist() == ids.tolist()
