"""Files that appear whole or not at all."""

from pathlib import Path

import numpy as np
import pytest

from lightning_seg.files import write_whole


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / f"{'n' * 250}.npy"  # 254 letters: no room for a longer name
    with write_whole(path) as part:
        assert part.parent == path.parent
        assert part.name.startswith(".")
        np.save(part, np.arange(3))  # numpy appends the suffix where it is missing
        assert not path.exists()
    assert np.load(path).tolist() == [0, 1, 2]
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_writer_that_fails_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")

    def fail() -> None:
        with write_whole(path) as part:
            part.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with write_whole(path) as first, write_whole(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # the outer block ends last
    assert list(tmp_path.iterdir()) == [path]


def test_file_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    with write_whole(tmp_path / "whole") as part:
        part.touch()
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "usual").stat().st_mode
