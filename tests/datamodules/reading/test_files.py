from pathlib import Path

import pytest
from PIL import Image

from datamodules import DataError
from datamodules.reading.decoding import read_image
from datamodules.reading.files import find_images, list_images


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


def test_links_in_a_circle_list_each_file_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.png").touch()
    (tmp_path / "a/self").symlink_to(tmp_path / "a")
    (tmp_path / "a/up").symlink_to("..")
    (tmp_path / "b/root").symlink_to(tmp_path)
    names = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert names == ["a/a.png", "b/b.png"]


def test_links_between_two_folders_end(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.png").touch()
        (tmp_path / name / "other").symlink_to(tmp_path / other)
    names = [path.relative_to(tmp_path / "a").as_posix() for path in list_images(tmp_path / "a")]
    assert names == ["a.png", "other/b.png"]


@pytest.mark.parametrize("name", ["d [1]", "[ab]", "what?", "a*b"])
def test_a_glob_below_a_folder_with_wildcards_in_its_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    (folder / "sub [x]").mkdir(parents=True)
    for file in (folder / "a.png", folder / "sub [x]" / "b[2].png"):
        Image.new("RGB", (4, 4)).save(file)
    assert set(find_images(str(folder / "*.png"))) == {"a"}
    assert set(find_images(str(folder / "**/*.png"))) == {"a", "sub [x]/b[2]"}
    assert set(find_images(str(folder / "sub [x]" / "b[2]*"))) == {"b[2]"}
    assert set(find_images(str(folder / "?.png"))) == {"a"}


def test_a_link_to_itself_is_listed_and_reported_where_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "a.png")
    assert list_images(tmp_path) == [tmp_path / "a.png"]
    with pytest.raises(DataError, match=r"a\.png cannot be read"):
        read_image(tmp_path / "a.png")
