"""Colour maps as the usual tools write them."""

from pathlib import Path

import pytest

from datamodules import DataError
from datamodules.reading.color_maps import read_color_map

ROADS = {"sky": (1, 2, 3), "traffic light": (4, 5, 255)}
CVAT = """# label:color_rgb:parts:actions
background:0,0,0::
traffic light:4,5,255:left,right:on
"""


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("map.csv", "name,r,g,b\nsky, 1, 2, 3\ntraffic light,4,5,255\n", ROADS),
        ("map.csv", "sky,1,2,3\n\ntraffic light,4,5,255\n", ROADS),
        ("map.csv", 'sky,1,2,3\n"traffic light",4,5,255\n', ROADS),
        ("map.csv", "sky;1;2;3\ntraffic light;4;5;255\n", ROADS),
        ("map.csv", "id,name,r,g,b\n0,sky,1,2,3\n1,traffic light,4,5,255\n", ROADS),
        ("map.csv", "sky,1,2,3,255\ntraffic light,4,5,255,255\n", ROADS),
        ("map.csv", "sky,#010203\ntraffic light,#0405FF\n", ROADS),
        ("map.txt", "sky 1 2 3\ntraffic light 4 5 255\n", ROADS),
        ("map.txt", "sky\t1\t2\t3\ntraffic light\t4\t5\t255\n", ROADS),
        ("label_colors.txt", "1 2 3\tsky\n4 5 255\ttraffic light\n", ROADS),
        ("label_colors.txt", "1 2 3 sky\n4 5 255 traffic light\n", ROADS),
        ("map.txt", "# colours\n\nsky: 1, 2, 3\n".replace(":", ","), {"sky": (1, 2, 3)}),
        ("labelmap.txt", CVAT, {"background": (0, 0, 0), "traffic light": (4, 5, 255)}),
        ("_classes.csv", "Pixel Value, Class\n0, background\n1, cat\n2, a dog\n", None),
        ("_classes.csv", "0, background\n1, cat\n2, a dog\n", None),
        ("map.json", '{"sky": [1, 2, 3], "traffic light": [4, 5, 255]}', ROADS),
        ("map.yaml", "sky: [1, 2, 3]\ntraffic light: [4, 5, 255]\n", ROADS),
        ("map.yaml", "background: 0\ncat: 1\na dog: 2\n", None),
    ],
)
def test_colour_maps_are_read_as_they_are(tmp_path: Path, name: str, text: str, expected) -> None:
    (tmp_path / name).write_text(text)
    values = {"background": (0,), "cat": (1,), "a dog": (2,)}
    found = read_color_map(tmp_path / name)
    assert found == (values if expected is None else expected)
    assert list(found) == list(values if expected is None else expected)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sky,1,2\n", "sky,1,2"),
        ("sky,1,2,x\nroad,1,2,3\n", "sky,1,2,x"),
        ("sky,1,2,300\n", "'sky' must be three numbers in 0..255"),
        ("name,r,g,b\nroad,1,2,3\nsky,blue\n", "sky,blue"),
        ("class 1 10 20 30\n", "class 1 10 20 30"),
        ("road,1,2,3\ncar,4\n", "a colour for every class, or a value"),
        ("road,1,2,3\ncar,4,5,6\nroad,7,8,9\n", "road more than once"),
        (",1,2,3\ncar,4,5,6\n", "empty class name"),
    ],
)
def test_a_line_that_is_no_class_is_named(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "map.csv").write_text(text)
    with pytest.raises(DataError, match=told) as error:
        read_color_map(tmp_path / "map.csv")
    assert "map.csv" in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("map.json", '{"a": [1, 2, 3], "a": [4, 5, 6]}', "a more than once"),
        ("map.yaml", "a: [1, 2, 3]\na: [4, 5, 6]\n", "a more than once"),
        ("map.yaml", "no: [1, 2, 3]\na: [4, 5, 6]\n", "class name False: YAML reads no"),
        ("map.yaml", "~: [1, 2, 3]\na: [4, 5, 6]\n", "class name None"),
        ("map.yaml", "[1, 2\n", "cannot be read"),
        ("map.json", "{", "cannot be read"),
        ("map.yaml", "- 3\n", "must map class names"),
    ],
)
def test_names_of_mappings_stand_once_and_are_text(
    tmp_path: Path, name: str, text: str, told: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=told) as error:
        read_color_map(tmp_path / name)
    assert "Error" not in str(error.value)


def test_a_mapping_of_a_configuration_has_the_same_rules() -> None:
    with pytest.raises(DataError, match="class name False"):
        read_color_map({False: [1, 2, 3], "a": [4, 5, 6]})
    assert read_color_map({"a": [1, 2, 3]}) == {"a": (1, 2, 3)}


def test_a_missing_colour_map_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.csv does not exist \(option: color_map=\)"):
        read_color_map(tmp_path / "gone.csv")


@pytest.mark.parametrize("name", ["map.csv", "map.yaml", "map.json"])
def test_a_colour_map_that_is_no_text_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\xff\xfe\x00a,1,2,3")
    with pytest.raises(DataError, match=name):
        read_color_map(tmp_path / name)
