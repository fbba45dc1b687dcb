from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_seg import SetupError
from lightning_seg.callbacks import PredictionWriter
from lightning_seg.pictures import color_table, overlay


def write(folder: Path, name: str) -> None:
    writer = PredictionWriter(str(folder))
    trainer = SimpleNamespace(default_root_dir="unused", world_size=1, ckpt_path="x.ckpt")
    palette = [[200, 0, 0], [0, 0, 100]]
    module = SimpleNamespace(num_classes=2, palette=palette, picture=lambda image: image)
    writer.on_predict_start(trainer, module)
    labels = torch.tensor([[[0, 1, 1], [1, 1, 1]]], dtype=torch.uint8)
    batch = {"image": torch.full((1, 3, 2, 3), 100, dtype=torch.uint8)}
    prediction = {"id": [name], "labels": labels}
    writer.write_on_batch_end(trainer, module, prediction, None, batch, 0, 0)
    writer.on_predict_end(trainer, module)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write(tmp_path, "sub/a b")
    return tmp_path


def test_the_mask_stores_class_ids_and_shows_their_colours(written: Path) -> None:
    mask = Image.open(written / "masks/sub/a b.png")
    assert np.array(mask).tolist() == [[0, 1, 1], [1, 1, 1]]
    assert np.array(mask.convert("RGB"))[0, :2].tolist() == [[200, 0, 0], [0, 0, 100]]


def test_the_overlay_has_the_images_size(written: Path) -> None:
    assert Image.open(written / "overlays/sub/a b.jpg").size == (3, 2)


def test_nothing_else_is_left_behind(written: Path) -> None:
    files = [path for path in written.rglob("*") if path.is_file()]
    assert sorted(path.suffix for path in files) == [".jpg", ".png"]


def test_a_write_that_fails_leaves_no_file(tmp_path: Path, monkeypatch) -> None:
    def fail(self, fp, **_) -> None:
        Path(fp).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path, "a")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_no_id_leads_out_of_the_folder(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="out of the output folder"):
        write(tmp_path / "out", "../../photo")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_opacity_is_a_share() -> None:
    with pytest.raises(SetupError, match="opacity"):
        PredictionWriter(opacity=2.0)


def test_overlays_blend_and_leave_void_alone() -> None:
    table = color_table(2, [[200, 0, 0], [0, 0, 100]])
    image = np.full((1, 2, 3), 100, np.uint8)
    labels = np.array([[0, 255]], np.uint8)
    assert overlay(image, labels, table, 0.25).tolist() == [[[125, 75, 75], [100, 100, 100]]]


@pytest.mark.parametrize("opacity", [0.0, 0.3, 0.5, 0.77, 1.0])
def test_overlays_are_those_of_a_blend_in_float64(opacity) -> None:
    rng = np.random.default_rng(0)
    table = color_table(20)
    image = rng.integers(0, 256, (67, 45, 3), dtype=np.uint8)
    labels = rng.integers(0, 256, (67, 45), dtype=np.uint8)
    labels[:9] = 255
    mixed = (image * (1 - opacity) + table[labels] * opacity).round()
    expected = np.where((labels == 255)[..., None], image, mixed)
    assert np.array_equal(overlay(image, labels, table, opacity), expected)


def test_many_predictions_are_all_written_and_errors_stop_the_run(tmp_path: Path) -> None:
    writer = PredictionWriter(str(tmp_path))
    trainer = SimpleNamespace(default_root_dir="unused")
    module = SimpleNamespace(num_classes=2, palette=None, picture=lambda image: image)
    writer.on_predict_start(trainer, module)

    def show(number: int) -> None:
        labels = torch.full((2, 40, 40), number % 2, dtype=torch.uint8)
        batch = {"image": torch.full((2, 3, 40, 40), 100, dtype=torch.uint8)}
        prediction = {"id": [f"{number}a", f"{number}b"], "labels": labels}
        writer.write_on_batch_end(trainer, module, prediction, None, batch, number, 0)

    for number in range(20):
        show(number)
    writer.on_predict_end(trainer, module)
    assert writer.written == 40
    assert len(list((tmp_path / "masks").glob("*.png"))) == 40
    assert len(list((tmp_path / "overlays").glob("*.jpg"))) == 40
    for number in range(20):
        assert np.all(np.asarray(Image.open(tmp_path / f"masks/{number}b.png")) == number % 2)
    (tmp_path / "masks/20a.png").mkdir()  # in the way of a file
    with pytest.raises(OSError, match="20a"):
        list(map(show, range(20, 40)))
    writer.on_exception(trainer, module, OSError())
    written = len(list((tmp_path / "masks").glob("*.png")))
    assert written < 70  # the run stopped early, with whole files only
    assert not list(tmp_path.rglob(".part-*"))


def test_default_colours_are_pascal_vocs() -> None:
    """Aeroplane, bicycle, ..., tv monitor: as the VOC development kit's palette has them."""
    table = color_table(21).tolist()
    known = {1: [128, 0, 0], 2: [0, 128, 0], 8: [64, 0, 0], 15: [192, 128, 128], 20: [0, 64, 128]}
    assert {index: table[index] for index in known} == known
