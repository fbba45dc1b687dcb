import numpy as np
import pytest

from datamodules import DataError
from datamodules.reading.mask_decoder import MaskDecoder

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
        MaskDecoder(colors=[RED, GREEN])(np.array([[[1, 2, 3]]], np.uint8), "m.png")


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
        MaskDecoder(values=[0, 1])(np.array([[70000]], np.int32), "m.png")
    with pytest.raises(DataError, match=r"-1"):
        MaskDecoder(values=[0, 1])(np.array([[-1]], np.int32), "m.png")


@pytest.mark.parametrize("options", [{"values": [0, 0]}, {"values": [0, 1], "void": [1]}])
def test_a_value_cannot_mean_two_things(options: dict[str, list[int]]) -> None:
    with pytest.raises(DataError, match="share a value"):
        MaskDecoder(**options)


def test_more_classes_than_void_leaves_room_for() -> None:
    with pytest.raises(DataError, match="256 classes"):
        MaskDecoder(values=range(256))


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32, np.int64])
def test_void_may_be_a_negative_value(kind: type) -> None:
    masks = np.array([[0, 1, -1, -100]], kind)
    assert MaskDecoder([0, 1], void=[-1, -100])(masks, "a").tolist() == [[0, 1, 255, 255]]
    assert MaskDecoder([0, 1], void=[-1], unknown_values="void")(masks, "a")[0, 3] == 255
    assert MaskDecoder([0, 1], void=[-1], unknown_values="nearest")(masks, "a")[0, 3] == 255
    assert MaskDecoder([-100, 0, 1], void=[-1])(masks, "a").tolist() == [[1, 2, 255, 0]]
    with pytest.raises(DataError, match=r"a holds -100, first at row 0, column 3"):
        MaskDecoder([0, 1], void=[-1])(masks, "a")


def test_values_of_any_size_are_classes_or_void() -> None:
    masks = np.array([[0, 2**32 - 1, -9999, 70_000]])
    decoded = MaskDecoder([0, 70_000], void=[-9999, 2**32 - 1])(masks, "a")
    assert decoded.tolist() == [[0, 255, 255, 1]]


@pytest.mark.parametrize("kind", [np.uint8, np.int32])
def test_a_mask_of_0_and_255_alone_is_refused_where_nobody_said_what_255_is(kind: type) -> None:
    decoder = MaskDecoder([0, 1], void=[255], assumed_void=True)
    assert decoder(np.array([[0, 1, 255]], kind), "a").tolist() == [[0, 1, 255]]
    for refused in ([[0, 255]], [[255, 255]]):
        with pytest.raises(DataError, match=r"mask a holds 255 and no class but 0.*void=\[255\]"):
            decoder(np.array(refused, kind), "a")


def test_one_class_is_refused_because_the_rest_is_a_class_too() -> None:
    with pytest.raises(DataError, match=r"there is 1 class, expected 2 to 255.*num_classes=2"):
        MaskDecoder(values=[0])


@pytest.mark.parametrize("unknown_values", ["error", "void", "nearest"])
def test_every_way_of_255_without_a_second_class_is_refused(unknown_values: str) -> None:
    decoder = MaskDecoder([0, 1], void=[255], unknown_values=unknown_values, assumed_void=True)
    jpeg = np.array([[0, 1, 2, 128, 253, 255]], np.uint8)  # 0 and 255 with the noise of a JPEG
    refused = jpeg if unknown_values == "nearest" else np.array([[0, 128, 255]], np.uint8)
    with pytest.raises(DataError, match=r"is 255 the second class, or is it void"):
        decoder(refused, "a")
