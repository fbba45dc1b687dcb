"""The errors that a user reads."""

import pickle

import pytest

from datamodules.errors import DataError, UnpairedError
from lightning_seg.errors import SetupError, UserError, require_one_of, require_range


def test_a_message_ends_with_the_options_as_keyword_arguments() -> None:
    assert str(SetupError("a is wrong")) == "a is wrong"
    assert str(SetupError("a is wrong", option="lr")) == "a is wrong (option: lr=)"
    several = DataError("a is wrong", option=("labeled", "trainer.max_steps 5"))
    assert str(several) == "a is wrong (options: labeled=, trainer.max_steps=5)"
    assert several.options == ("labeled", "trainer.max_steps 5")


@pytest.mark.parametrize(
    "error",
    [
        SetupError("a is wrong", option="lr"),
        DataError("a is wrong"),
        UnpairedError("two files", ["a.png", "b.png"], option=("root", "images")),
    ],
)
def test_errors_travel_between_processes(error: UserError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_a_setting_out_of_range_is_named_with_its_range() -> None:
    require_range(0, 1, share=0.0, other=1.0)
    with pytest.raises(SetupError, match=r"share must be in \[0, 1\], not 1.5 \(option: share=\)"):
        require_range(0, 1, share=1.5)
    with pytest.raises(DataError, match=r"size must be at least 1, not inf \(option: size=\)"):
        require_range(1, float("inf"), error=DataError, size=float("inf"))
    with pytest.raises(SetupError, match="share must be at least 0, not nan"):
        require_range(0, float("inf"), share=float("nan"))
    with pytest.raises(SetupError, match=r"mode must be a or b, not c \(option: mode=\)"):
        require_one_of("a", "b", mode="c")
