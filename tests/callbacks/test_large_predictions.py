"""Images that are predicted in strips of rows: the files are those of images in memory."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from places import ROOT
from small_runs import SMALL_WORDS

import cli
from lightning_seg import SetupError
from lightning_seg.callbacks.mask_files import PNGMask

rasterio = pytest.importorskip("rasterio")
tifffile = pytest.importorskip("tifffile")
pytestmark = pytest.mark.filterwarnings(
    "ignore:The dirpath has changed", "ignore::rasterio.errors.NotGeoreferencedWarning"
)
RNG = np.random.default_rng(0)
WINDOWS = ["--inference.window=[20,24]", "--inference.overlap=0.3", "--inference.flip=true"]
STREAMED = [*WINDOWS, "--inference.stream_above=400"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    cli.main(["fit", *SMALL_WORDS, f"--trainer.default_root_dir={folder}", "--trainer.max_steps=2"])
    return next(folder.glob("checkpoints/*.ckpt"))


def predict(output: Path, checkpoint: Path, what: object, *words: str) -> int:
    """Run the command, return its exit code."""
    options = [f"--trainer.default_root_dir={output}", f"--predictions.output_dir={output}"]
    options += [f"--ckpt_path={checkpoint}", f"--data.predict={what}", *words]
    try:
        cli.main(["predict", *SMALL_WORDS, *options])
    except SystemExit as stop:
        return int(stop.code)
    return 0


def picture(height: int, width: int) -> np.ndarray:
    small = RNG.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return np.kron(small, np.ones((8, 8, 1), np.uint8))[:height, :width]


def geotiff(path: Path, image: np.ndarray, crs, transform) -> None:
    kind = {"driver": "GTiff", "count": 3, "dtype": "uint8", "photometric": "rgb"}
    height, width = image.shape[:2]
    with rasterio.open(
        path, "w", height=height, width=width, crs=crs, transform=transform, **kind
    ) as file:
        file.write(image.transpose(2, 0, 1))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(picture(50, 70)).save(folder / "a.png")
    Image.fromarray(picture(61, 33)).save(folder / "b.jpg")
    tifffile.imwrite(folder / "c.tif", picture(48, 64), tile=(16, 16), photometric="rgb")
    Image.fromarray(picture(1, 600)).save(folder / "row.png")
    Image.fromarray(picture(600, 1)).save(folder / "column.png")
    Image.fromarray(picture(1, 1)).save(folder / "dot.png")
    Image.fromarray(picture(50, 70)).convert("CMYK").save(folder / "cmyk.jpg")
    geotiff(
        folder / "north.tif", picture(64, 300), "EPSG:32632", rasterio.Affine(2, 0, 5, 0, -2, 9)
    )
    geotiff(folder / "nowhere.tif", picture(40, 40), None, rasterio.Affine(2, 0, 5, 0, -2, 9))
    return folder


def stored(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.array(Image.open(path)) for path in sorted(folder.iterdir())}


def test_files_written_in_strips_are_those_of_images_in_memory(photos, tmp_path, checkpoint):
    keep = "--predictions.probabilities=true"
    assert predict(tmp_path / "memory", checkpoint, photos, *WINDOWS, keep) == 0
    assert predict(tmp_path / "strips", checkpoint, photos, *STREAMED, keep) == 0
    memory, strips = (stored(tmp_path / each / "masks") for each in ("memory", "strips"))
    assert memory.keys() == strips.keys()
    assert set(memory) > {"a.png", "b.png", "c.png", "north.tif", "nowhere.tif", "dot.png"}
    for name, mask in memory.items():
        assert np.array_equal(strips[name], mask), name
        stem = Path(name).stem
        assert mask.shape == np.array(Image.open(next(photos.glob(f"{stem}.*")))).shape[:2]
        found, expected = (
            np.load(tmp_path / each / f"probabilities/{stem}.npy") for each in ("strips", "memory")
        )
        assert found.dtype == np.float16
        np.testing.assert_allclose(found, expected, atol=1e-3)
        assert (
            np.array_equal(found.argmax(0)[found.max(0) > 0.2], mask[found.max(0) > 0.2])
            or np.isclose(np.sort(found, 0)[-2:], found.max(0), atol=1e-3).any()
        )
    overlays = [stored(tmp_path / each / "overlays") for each in ("memory", "strips")]
    for name, shown in overlays[0].items():
        assert np.array_equal(overlays[1][name], shown), name
    palette = Image.open(tmp_path / "strips/masks/a.png").getpalette()
    assert palette == Image.open(tmp_path / "memory/masks/dot.png").getpalette()
    parts = [path for path in tmp_path.rglob("*") if ".part-" in path.name]
    assert parts == []


def test_georeferences_are_carried_over_and_none_is_made_up(photos, tmp_path, checkpoint):
    for words in (WINDOWS, STREAMED):
        output = tmp_path / str(len(words))
        assert predict(output, checkpoint, f"{photos}/*.tif", *words) == 0
        for name, code in (("north", 32632), ("nowhere", None)):
            with rasterio.open(output / f"masks/{name}.tif") as mask:
                assert mask.transform == rasterio.Affine(2, 0, 5, 0, -2, 9)
                assert (mask.crs.to_epsg() if mask.crs else None) == code
                assert mask.dtypes == ("uint8",)
                colors = mask.colormap(1)
        with Image.open(output / "masks/c.png") as plain:  # a TIFF without a place
            palette = np.array(plain.getpalette()).reshape(-1, 3)
        assert [colors[index][:3] for index in range(8)] == [tuple(c) for c in palette[:8].tolist()]


def test_a_damaged_file_does_not_stop_the_others(photos, tmp_path, checkpoint, caplog):
    for name in ("a.png", "c.tif"):
        path = photos / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    Image.fromarray(picture(99, 120)).save(photos / "z.png")
    words = [*STREAMED, "--data.max_pixels=10000", "--data.num_workers=1"]
    assert predict(tmp_path / "out", checkpoint, photos, *words) == 1
    listed = caplog.messages[-1]
    assert listed.startswith("not predicted: 4 images")
    for name, reason in (("a", "a.png"), ("c", "c.tif"), ("z", "--data.max_pixels 11880")):
        assert any(
            line.strip().startswith(f"{name}: ") and reason in line for line in listed.splitlines()
        ), listed
    names = {path.stem for path in (tmp_path / "out/masks").iterdir()}
    assert names == {"b", "row", "column", "dot", "cmyk", "nowhere"}


def test_images_that_are_there_are_left_out(photos, tmp_path, checkpoint, caplog):
    output, keep = tmp_path / "out", "--predictions.resume=true"
    assert predict(output, checkpoint, f"{photos}/[abc]*.*", *STREAMED) == 0
    times = {path: path.stat().st_mtime_ns for path in output.rglob("*.png")}
    (output / "overlays/a.jpg").unlink()  # not whole: the overlay is missing
    (output / "masks/.part-0123.png").write_bytes(b"half")
    assert predict(output, checkpoint, photos, *STREAMED, keep) == 0
    changed = {path.stem for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert changed == {"a"}
    assert len(list((output / "masks").iterdir())) == 9  # and no part
    assert any("where 4 more were already" in message for message in caplog.messages)
    # and once more, with nothing to do
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert predict(output, checkpoint, photos, *STREAMED, keep) == 0
    assert any("0 predictions" in message for message in caplog.messages)


def test_a_killed_run_leaves_no_half_file_and_is_completed(photos, tmp_path, checkpoint):
    """The process is killed in the middle of the third image, by a network that counts."""
    output = tmp_path / "out"
    words = [*SMALL_WORDS, *STREAMED, f"--ckpt_path={checkpoint}", f"--data.predict={photos}"]
    words += [f"--predictions.output_dir={output}", f"--trainer.default_root_dir={tmp_path}"]
    code = (
        "import os, signal, sys, tiny, cli\n"
        "count, forward = 0, tiny.TinyNet.forward\n"
        "def counted(self, image):\n"
        "    global count\n"
        "    count += 1\n"
        "    if count == 30: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return forward(self, image)\n"
        "tiny.TinyNet.forward = counted\n"
        "cli.main(['predict', *sys.argv[1:]])\n"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests/support")])
    killed = subprocess.run(
        [sys.executable, "-c", code, *words], env={**os.environ, "PYTHONPATH": path}, check=False
    )
    assert killed.returncode == -9
    whole = [each for each in output.rglob("*.*") if each.is_file() and each.name[0] != "."]
    assert 0 < len(whole) < 18
    for each in whole:
        Image.open(each).load()  # decodes to its end
    assert predict(output, checkpoint, photos, *STREAMED, "--predictions.resume=true") == 0
    assert predict(tmp_path / "fresh", checkpoint, photos, *STREAMED) == 0
    for kind in ("masks", "overlays"):
        found, expected = stored(output / kind), stored(tmp_path / "fresh" / kind)
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_a_folder_that_cannot_be_written_to_is_an_error_before_the_work(
    photos, tmp_path, checkpoint
):
    (tmp_path / "file").write_text("")
    for place, reason in ((tmp_path / "file", "Not a directory"), (Path("/proc/x"), "")):
        with pytest.raises(
            SetupError, match=rf"cannot be written .*{reason}.*predictions.output_dir"
        ):
            predict(tmp_path / "run", checkpoint, photos, f"--predictions.output_dir={place}")


def test_a_full_disk_leaves_no_file(photos, tmp_path, checkpoint, monkeypatch):
    def full(self, labels) -> None:
        if self.row > 20:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(PNGMask, "_write", full)
    with pytest.raises(OSError, match="No space left"):
        predict(tmp_path / "out", checkpoint, photos / "a.png", *STREAMED)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_half_precision_holds_in_strips_too(photos, tmp_path, checkpoint):
    """The strips are predicted after the step, whose precision they must have."""
    words = ["--trainer.precision=bf16-mixed", "--predictions.probabilities=true"]
    for name, options in (("memory", WINDOWS), ("strips", STREAMED)):
        assert predict(tmp_path / name, checkpoint, photos / "a.png", *options, *words) == 0
    assert predict(tmp_path / "full", checkpoint, photos / "a.png", *STREAMED, words[1]) == 0
    memory, strips, full = (
        np.load(tmp_path / each / "probabilities/a.npy") for each in ("memory", "strips", "full")
    )
    assert np.array_equal(memory, strips)
    assert not np.array_equal(full, strips)
