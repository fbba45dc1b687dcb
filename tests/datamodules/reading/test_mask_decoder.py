from pathlib import Path

import numpy as np
import pytest

from datamodules import DataError
from datamodules.reading.mask_decoder import MaskDecoder, read_color_map

RED, GREEN, BLACK = [255, 0, 0], [0, 255, 0], [0, 0, 0]


def test_values_become_classes_in_order_and_void_255() -> None:
    decode = MaskDecoder(values=[7, 255, 0], void=[11])
    stored = np.array([[7, 255, 0, 11]], np.uint8)
    assert decode(stored, "m.png").tolist() == [[0, 1, 2, 255]]


def test_colours_become_classes_in_order_and_void_255() -> None:
    decode = MaskDecoder(colors=[RED, GREEN], void=[BLACK])
    stored = np.array([[GREEN, RED, BLACK]], np.uint8)
    assert decode(stored, "m.png").tolist() == [[1, 0, 255]]


def test_an_unknown_value_is_told_with_file_place_share_and_option() -> None:
    decode = MaskDecoder(values=[0, 1], void=[255])
    stored = np.zeros((4, 5), np.uint8)
    stored[2, 3] = 9
    with pytest.raises(DataError) as error:
        decode(stored, "some/m.png")
    for part in ("some/m.png", "holds 9", "row 2, column 3", "1 of 20", "0, 1 or void 255"):
        assert part in str(error.value)
    assert "num_classes=" in str(error.value)
    assert "unknown_values=void" in str(error.value)


def test_an_unknown_colour_is_told_as_a_colour() -> None:
    with pytest.raises(DataError, match=r"holds \(1, 2, 3\).*\(options: color_map=, "):
        MaskDecoder(colors=[RED])(np.array([[[1, 2, 3]]], np.uint8), "m.png")


def test_unknown_values_can_be_void() -> None:
    decode = MaskDecoder(values=[0, 1], unknown_values="void")
    assert decode(np.array([[0, 77]], np.uint8), "m.png").tolist() == [[0, 255]]


def test_unknown_values_can_be_rounded_to_the_nearest_known() -> None:
    values = MaskDecoder(values=[0, 255], void=[100], unknown_values="nearest")
    stored = np.array([[0, 3, 90, 120, 250, 255]], np.uint8)
    assert values(stored, "m.jpg").tolist() == [[0, 0, 255, 255, 1, 1]]
    colors = MaskDecoder(colors=[RED, GREEN, BLACK], unknown_values="nearest")
    stored = np.array([[[250, 9, 3], [10, 240, 0], [20, 20, 20], RED]], np.uint8)
    assert colors(stored, "m.jpg").tolist() == [[0, 1, 2, 0]]


def test_colours_where_an_index_was_expected() -> None:
    with pytest.raises(DataError, match=r"m\.png is colour-coded.*\(option: color_map=FILE\)"):
        MaskDecoder(values=[0, 1])(np.zeros((2, 2, 3), np.uint8), "m.png")


def test_values_beyond_sixteen_bits_are_an_error_not_an_index_error() -> None:
    with pytest.raises(DataError, match=r"70000"):
        MaskDecoder(values=[0])(np.array([[70000]], np.int32), "m.png")
    with pytest.raises(DataError, match=r"-1"):
        MaskDecoder(values=[0])(np.array([[-1]], np.int32), "m.png")


@pytest.mark.parametrize("options", [{"values": [0, 0]}, {"values": [0, 1], "void": [1]}])
def test_a_value_cannot_mean_two_things(options: dict[str, list[int]]) -> None:
    with pytest.raises(DataError, match="share a value"):
        MaskDecoder(**options)


def test_more_classes_than_void_leaves_room_for() -> None:
    with pytest.raises(DataError, match="256 classes"):
        MaskDecoder(values=range(256))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("map.csv", "name,r,g,b\nsky, 1, 2, 3\nroad,4,5,6\n"),
        ("map.csv", "sky,1,2,3\n\nroad,4,5,6\n"),
        ("map.json", '{"sky": [1, 2, 3], "road": [4, 5, 6]}'),
        ("map.yaml", "sky: [1, 2, 3]\nroad: [4, 5, 6]\n"),
    ],
)
def test_colour_maps_are_read_from_files(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_color_map(tmp_path / name) == {"sky": (1, 2, 3), "road": (4, 5, 6)}


@pytest.mark.parametrize("text", ["sky,1,2\n", "sky,1,2,x\nroad,1,2,3\n", "sky,1,2,300\n"])
def test_a_bad_colour_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "map.csv").write_text(text)
    with pytest.raises(DataError, match=r"map\.csv: colour of 'sky'"):
        read_color_map(tmp_path / "map.csv")


def test_a_name_with_two_colours_is_told(tmp_path: Path) -> None:
    (tmp_path / "map.csv").write_text("road,1,2,3\ncar,4,5,6\nroad,7,8,9\n")
    with pytest.raises(DataError, match="road more than once"):
        read_color_map(tmp_path / "map.csv")


def test_a_missing_colour_map_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.csv does not exist \(option: color_map=\)"):
        read_color_map(tmp_path / "gone.csv")
