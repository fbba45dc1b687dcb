"""Checkpoint files: whole or not at all, and refused where they are damaged or of another kind."""

from __future__ import annotations

import os
import pickle
import random
import resource
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lightning_seg import SetupError
from lightning_seg.files import PART
from lightning_seg.training import checkpoint_io
from lightning_seg.training.checkpoint_io import WholeCheckpointIO

CONTENT = {
    "pytorch-lightning_version": "2.6.6",
    "state_dict": {"weight": torch.arange(4000.0).view(40, 100), "count": torch.tensor(3)},
    "epoch": 2,
}
PLUGIN = WholeCheckpointIO()


def same(found: dict, wanted: dict = CONTENT) -> bool:
    tensors = wanted["state_dict"]
    return found["epoch"] == wanted["epoch"] and all(
        torch.equal(found["state_dict"][name], value) for name, value in tensors.items()
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "last.ckpt"
    PLUGIN.save_checkpoint(CONTENT, path)
    return path


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Let no file of this process grow beyond 10 kB, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_what_is_written_is_read(path: Path) -> None:
    assert same(PLUGIN.load_checkpoint(path))
    assert [each.name for each in path.parent.iterdir()] == ["last.ckpt"]


def test_a_full_disk_leaves_the_earlier_checkpoint(path: Path, small_disk: None) -> None:
    larger = {**CONTENT, "state_dict": {"weight": torch.zeros(100_000)}}
    with pytest.raises(SetupError, match=r"last.ckpt cannot be written: .*earlier .* is unchanged"):
        PLUGIN.save_checkpoint(larger, path)
    assert same(PLUGIN.load_checkpoint(path))
    assert [each.name for each in path.parent.iterdir()] == ["last.ckpt"]


def test_the_folder_for_temporary_files_is_not_used(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On clusters TMPDIR lies on another disk: a file from there is copied, not renamed."""
    monkeypatch.setenv("TMPDIR", "/nowhere")
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    PLUGIN.save_checkpoint({**CONTENT, "epoch": 3}, path)
    assert PLUGIN.load_checkpoint(path)["epoch"] == 3


def test_parts_of_killed_processes_are_removed_but_no_part_that_is_being_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = path.with_name(f"{PART}1.ckpt"), path.with_name(f"{PART}2.ckpt")
    for part, age in ((old, 5), (new, -5)):
        part.write_bytes(b"half")
        os.utime(part, (time.time() - age, time.time() - age))
    monkeypatch.setattr(checkpoint_io, "_STARTED", time.time())
    PLUGIN.save_checkpoint(CONTENT, path)
    assert sorted(each.name for each in path.parent.iterdir()) == [new.name, "last.ckpt"]


def test_no_flipped_bit_changes_what_is_read(path: Path) -> None:
    """A flip is reported, or it lies where nothing is read."""
    whole, drawn, reported = path.read_bytes(), random.Random(0), 0
    for _ in range(300):
        place, bit = drawn.randrange(len(whole)), 1 << drawn.randrange(8)
        flipped = bytearray(whole)
        flipped[place] ^= bit
        path.write_bytes(flipped)
        try:
            found = PLUGIN.load_checkpoint(path)
        except SetupError:
            reported += 1
        else:
            assert same(found), place
    assert reported > 250


def test_no_file_that_was_cut_off_is_read(path: Path) -> None:
    whole = path.read_bytes()
    for length in range(0, len(whole), len(whole) // 50):
        path.write_bytes(whole[:length])
        with pytest.raises(SetupError, match=r"is empty|was cut off"):
            PLUGIN.load_checkpoint(path)


class RunsCode:
    """A pickle of it makes a file when it is read."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple:
        return Path.touch, (self.made,)


def malicious(path: Path) -> None:
    torch.save({**CONTENT, "state_dict": RunsCode(path.with_name("made"))}, path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_text("a text"), "is no file of torch, or was cut off"),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "is no file of torch"),
        (lambda path: torch.save({"state_dict": {}}, path), "is no checkpoint of a training"),
        (lambda path: torch.save([1, 2], path), "is no checkpoint of a training"),
        (malicious, "they could run code"),
        (lambda path: path.mkdir(), "is a folder, expected a file"),
    ],
)
def test_other_files_are_named_for_what_they_are(
    write: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.ckpt"
    write(path)
    with pytest.raises(SetupError, match=message) as error:
        PLUGIN.load_checkpoint(path)
    assert str(path) in str(error.value)
    assert not (tmp_path / "made").exists()


def test_a_folder_names_the_checkpoints_in_it(path: Path) -> None:
    with pytest.raises(SetupError, match=r"is a folder.*in it are last\.ckpt"):
        PLUGIN.load_checkpoint(path.parent)


def test_an_address_of_the_web_is_not_opened() -> None:
    with pytest.raises(SetupError, match="download the checkpoint first"):
        PLUGIN.load_checkpoint("http://127.0.0.1:9/x.ckpt")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_of_a_training_that_diverged_are_refused(value: float, path: Path) -> None:
    weights = {**CONTENT["state_dict"], "other": torch.tensor([1.0, value])}
    PLUGIN.save_checkpoint({**CONTENT, "state_dict": weights}, path)
    with pytest.raises(SetupError, match=r"NaN or infinite values in 1 of 3 tensors.*other"):
        PLUGIN.load_checkpoint(path)
