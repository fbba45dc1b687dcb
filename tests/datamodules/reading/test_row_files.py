"""Files that are read by rows hold the pixels that are read whole."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules import DataError
from datamodules.reading.decoding import Reading, read_image
from datamodules.reading.row_files import RowFile, header_of, large_file, read_whole

tifffile = pytest.importorskip("tifffile")
pytest.importorskip("rasterio")

RNG = np.random.default_rng(0)
SMOOTH = np.kron(RNG.integers(0, 256, (12, 9, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
DEEP = (SMOOTH.astype(np.uint16) * 257 + 3).clip(0, 65535).astype(np.uint16)
BANDS = np.concatenate([SMOOTH, 255 - SMOOTH[..., :1]], axis=2)
TILED = {"tile": (16, 16)}


def save(path: Path, array: np.ndarray, **options) -> Path:
    tifffile.imwrite(path, array, **options)
    return path


FILES = {
    "rgb.png": lambda path: Image.fromarray(SMOOTH).save(path),
    "grey.png": lambda path: Image.fromarray(SMOOTH[..., 0]).save(path),
    "alpha.png": lambda path: Image.fromarray(BANDS).save(path),
    "palette.png": lambda path: Image.fromarray(SMOOTH).quantize(16).save(path),
    "deep.png": lambda path: Image.fromarray(DEEP[..., 0]).save(path),
    "rgb.jpg": lambda path: Image.fromarray(SMOOTH).save(path, quality=90),
    "fine.jpg": lambda path: Image.fromarray(SMOOTH).save(path, quality=95, subsampling=0),
    "progressive.jpg": lambda path: Image.fromarray(SMOOTH).save(path, progressive=True),
    "grey.jpg": lambda path: Image.fromarray(SMOOTH[..., 1]).save(path),
    "cmyk.jpg": lambda path: Image.fromarray(SMOOTH).convert("CMYK").save(path),
    "tiled.tif": lambda path: save(path, SMOOTH, photometric="rgb", **TILED),
    "striped.tif": lambda path: save(path, SMOOTH, photometric="rgb", rowsperstrip=5),
    "planes.tif": lambda path: save(
        path, SMOOTH.transpose(2, 0, 1), photometric="rgb", planarconfig="separate", **TILED
    ),
    "packed.tif": lambda path: save(path, SMOOTH, photometric="rgb", compression="lzw", **TILED),
    "deep.tif": lambda path: save(path, DEEP, photometric="rgb", **TILED),
    "deep_grey.tif": lambda path: save(path, DEEP[..., 0], **TILED),
    "fractions.tif": lambda path: save(path, (DEEP[..., 0] / 65535).astype(np.float32)),
    "white_is_0.tif": lambda path: save(path, SMOOTH[..., 0], photometric="miniswhite"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("exif", [None, 6])
def test_rows_are_the_pixels_of_the_image_that_is_read_whole(tmp_path, name, exif) -> None:
    path = tmp_path / name
    FILES[name](path)
    if exif is not None:
        if path.suffix != ".jpg":
            pytest.skip("the tag of a JPEG file")
        tag = Image.Exif()
        tag[0x0112] = exif
        Image.open(path).save(path, exif=tag, quality=90)
    whole = read_image(path)
    file = large_file(path, 100, Reading())
    assert file.size == whole.shape[:2]
    parts = [(0, 10), (4, 14), (14, 20), (18, file.size[0])]  # also with rows once more
    for top, bottom in parts:
        found = file.rows(top, bottom).numpy().transpose(1, 2, 0)
        assert found.dtype == whole.dtype
        assert np.array_equal(found, whole[top:bottom]), (name, top)
    assert np.array_equal(file.small, whole)  # a small image
    file.close()


def test_jpeg_inside_a_tiff_differs_in_the_enlarged_colours_alone(tmp_path) -> None:
    pytest.importorskip("imagecodecs")
    path, options = tmp_path / "a.tif", {"compression": "jpeg", "subsampling": (2, 2), **TILED}
    save(path, SMOOTH, photometric="ycbcr", **options)
    found = large_file(path, 100, Reading()).rows(0, 96).numpy().transpose(1, 2, 0)
    luma = np.array([0.299, 0.587, 0.114])
    difference = np.abs((found.astype(float) - read_image(path)) @ luma)
    assert np.median(difference) < 3


def test_bands_are_read_by_rows(tmp_path) -> None:
    for array in (BANDS, BANDS.astype(np.uint16) * 17):
        path = save(tmp_path / "a.tif", array, planarconfig="contig", photometric="rgb")
        for image_range in (None, (0, 4095)):
            reading = Reading(image_range, channels=4)
            if array.dtype == np.uint16 and image_range is None:
                continue  # of an unknown range
            found = large_file(path, 100, reading).rows(0, 96).numpy().transpose(1, 2, 0)
            assert np.array_equal(found, read_image(path, reading=reading))


def test_the_small_copy_is_every_nth_pixel(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("datamodules.reading.row_files.SMALL_PIXELS", 500)
    FILES["rgb.png"](tmp_path / "a.png")
    file = large_file(tmp_path / "a.png", 100, Reading())
    assert file.step == 4  # 96 x 72 pixels
    for top in range(0, 96, 7):
        file.rows(top, min(96, top + 9))
    assert np.array_equal(file.small, SMOOTH[::4, ::4])


def test_errors_name_the_file(tmp_path) -> None:
    FILES["rgb.png"](tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a.png is 72x96 pixels .* max_pixels=6912"):
        large_file(tmp_path / "a.png", 100, Reading(max_pixels=6911))
    FILES["fine.jpg"](tmp_path / "cut.jpg")
    FILES["tiled.tif"](tmp_path / "cut.tif")
    noise = RNG.integers(0, 256, (96, 72, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    for name in ("cut.jpg", "cut.png", "cut.tif"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        file = large_file(path, 100, Reading())
        if file is None:  # its header is damaged: read whole, with an error there
            continue
        with pytest.raises(DataError, match=name):
            file.rows(0, 96)
    dark = save(tmp_path / "dark.tif", DEEP // 100, photometric="rgb")
    with pytest.raises(DataError, match="nearly black"):
        large_file(dark, 100, Reading()).rows(0, 1)


def test_small_files_and_what_is_no_image_are_read_whole(tmp_path) -> None:
    FILES["rgb.png"](tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no picture")
    assert large_file(tmp_path / "a.png", 96 * 72, Reading()) is None
    for name in ("b.png", "missing.png"):
        assert header_of(tmp_path / name) is None
        assert large_file(tmp_path / name, 0, Reading()) is None
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    assert read_whole(paths, 100) == paths[1:]
    assert read_whole(paths, None) == paths


def test_without_rasterio_files_are_decoded_whole(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("datamodules.reading.row_files._rasterio", lambda: None)
    FILES["tiled.tif"](tmp_path / "a.tif")
    file = RowFile(tmp_path / "a.tif", header_of(tmp_path / "a.tif"), Reading())
    assert np.array_equal(file.rows(3, 9).numpy().transpose(1, 2, 0), SMOOTH[3:9])


def test_rows_that_were_passed_are_forgotten(tmp_path) -> None:
    FILES["tiled.tif"](tmp_path / "a.tif")
    file = large_file(tmp_path / "a.tif", 100, Reading())
    for top in range(0, 76, 10):
        file.rows(top, top + 20)
        assert file._kept.shape == (20, 72, 3)
