"""`predict` on a video: its frames in order, and one video of overlays."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_runs import SMALL_WORDS

import cli
from datamodules import DataError
from datamodules.reading.videos import VideoSource, find_videos

av = pytest.importorskip("av")
pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")


def film(path: Path, frames: int, size: tuple[int, int] = (48, 64)) -> list[np.ndarray]:
    """Write a film whose frames are grey values that grow by 12."""
    shown = [np.full((*size, 3), 20 + 12 * number, np.uint8) for number in range(frames)]
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=12)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for image in shown:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        file.mux(stream.encode())
    return shown


def predict(output: Path, what: str, *words: str) -> int:
    options = [f"--trainer.default_root_dir={output}", "--ckpt_path=untrained"]
    options += [f"--predictions.output_dir={output}", f"--data.predict={what}", *words]
    try:
        cli.main(["predict", *SMALL_WORDS, *options])
    except SystemExit as stop:
        return int(stop.code)
    return 0


def test_frames_are_read_in_any_order(tmp_path) -> None:
    shown = film(tmp_path / "a.mp4", 9)
    source = VideoSource(tmp_path / "a.mp4", "a")
    assert len(source) == 9
    assert source.ids[3] == "a/000003"
    for number in (0, 1, 2, 7, 3, 8, 0):
        found = source[number].image
        assert found.dtype == np.uint8
        assert np.abs(found.astype(int) - shown[number]).max() <= 4  # the film is compressed


def test_a_video_becomes_masks_of_its_frames_and_a_video_of_overlays(tmp_path) -> None:
    film(tmp_path / "a.mp4", 5, (48, 66))
    film(tmp_path / "b.avi", 3)
    Image.new("RGB", (40, 32)).save(tmp_path / "c.png")
    what = f"[{tmp_path}/*.mp4,{tmp_path}/b.avi,{tmp_path}/c.png]"
    assert predict(tmp_path / "out", what) == 0
    masks = sorted(
        p.relative_to(tmp_path / "out/masks") for p in tmp_path.rglob("out/masks/**/*.png")
    )
    assert [str(p) for p in masks] == [
        *(f"a/{number:06d}.png" for number in range(5)),
        *(f"b/{number:06d}.png" for number in range(3)),
        "c.png",
    ]
    assert Image.open(tmp_path / "out/masks/a/000000.png").size == (66, 48)
    names = sorted(path.name for path in (tmp_path / "out/overlays").iterdir())
    assert names == ["a.mp4", "b.mp4", "c.jpg"]
    with av.open(str(tmp_path / "out/overlays/a.mp4")) as file:
        assert file.streams.video[0].average_rate == 12
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert len(frames) == 5
    assert frames[0].shape == (48, 66, 3)
    means = [frame.mean() for frame in frames]
    assert means == sorted(means)  # in order


def test_a_video_that_is_there_is_left_out(tmp_path) -> None:
    film(tmp_path / "a.mp4", 3)
    film(tmp_path / "b.mp4", 3)
    words = ["--predictions.frame_masks=false", "--predictions.resume=true"]
    assert predict(tmp_path / "out", f"{tmp_path}/a.mp4", *words) == 0
    assert not (tmp_path / "out/masks").exists()
    time = (tmp_path / "out/overlays/a.mp4").stat().st_mtime_ns
    assert predict(tmp_path / "out", f"{tmp_path}/?.mp4", *words) == 0
    assert (tmp_path / "out/overlays/a.mp4").stat().st_mtime_ns == time
    assert (tmp_path / "out/overlays/b.mp4").is_file()


def test_what_is_no_video_is_an_error_before_the_work(tmp_path) -> None:
    (tmp_path / "text.mp4").write_text("no film")
    with pytest.raises(DataError, match=r"text.mp4 cannot be read as a video"):
        predict(tmp_path / "out", f"{tmp_path}/text.mp4")
    with av.open(str(tmp_path / "sound.mp4"), "w") as file:  # without frames
        stream = file.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    with pytest.raises(DataError, match=r"sound.mp4 holds no frames of a video"):
        predict(tmp_path / "out", f"{tmp_path}/sound.mp4")
    with pytest.raises(DataError, match=r"no images at"):
        predict(tmp_path / "out", f"{tmp_path}/missing.mp4")
    assert not (tmp_path / "out").exists()


def test_videos_and_other_places_are_told_apart(tmp_path) -> None:
    film(tmp_path / "a.mp4", 1)
    places = [f"{tmp_path}/*.mp4", str(tmp_path), "photo.png"]
    assert find_videos(places) == ([tmp_path / "a.mp4"], places[1:])
