from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules import DataError
from datamodules.reading.files import find_images, image_size, list_images, read_image, read_mask

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4)


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
    with pytest.raises(DataError, match=r"a\.tif.*must hold"):
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


def test_images_are_listed_recursively_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b.JPG", "sub/a.png", ".hidden.png", ".cache/c.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "sub", target_is_directory=True)
    names = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert names == ["b.JPG", "link/a.png", "sub/a.png"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "my photos ä"
    for name in ("a.png", "b.jpg", "sub/a.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)
    (folder / "list.txt").write_text("b.jpg\nsub/a.png\n\n")
    return folder


def test_prediction_takes_a_folder_a_glob_a_list_a_file_or_several(photos: Path) -> None:
    assert set(find_images(str(photos))) == {"a", "b", "sub/a"}
    assert set(find_images(str(photos / "*.jpg"))) == {"b"}
    assert set(find_images(str(photos / "list.txt"))) == {"b", "a"}
    assert set(find_images(str(photos / "a.png"))) == {"a"}
    assert set(find_images([str(photos / "a.png"), str(photos / "b.jpg")])) == {"a", "b"}


def test_brackets_in_a_name_and_stars_for_folders(photos: Path) -> None:
    Image.new("RGB", (4, 4)).save(photos / "b[2].png")
    assert set(find_images(str(photos / "b[2].png"))) == {"b[2]"}
    assert set(find_images(str(photos / "**/a.png"))) == {"a", "sub/a"}


def test_images_that_differ_only_in_type_keep_it_in_their_id(photos: Path) -> None:
    Image.new("RGB", (4, 4)).save(photos / "a.jpg")
    assert set(find_images(str(photos))) == {"a.png", "a.jpg", "b", "sub/a"}


def test_two_images_of_one_id_are_refused(photos: Path) -> None:
    with pytest.raises(DataError, match="would both be called"):
        find_images([str(photos / "a.png"), str(photos / "sub" / "a.png")])


def test_nothing_to_predict_is_an_error_that_names_the_place(photos: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.*\(option: predict=\)"):
        find_images(str(photos / "nowhere"))


def test_a_list_of_missing_images_is_an_error(photos: Path) -> None:
    (photos / "list.txt").write_text("b.jpg\ngone.jpg\n")
    with pytest.raises(DataError, match=r"list\.txt lists images that do not exist: .*gone\.jpg"):
        find_images(str(photos / "list.txt"))
