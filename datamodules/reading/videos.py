"""Frames of a video file as images, read by PyAV (extra `video`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.errors import DataError
from datamodules.reading.decoding import USUAL, Reading
from datamodules.reading.files import find_glob, find_images
from datamodules.reading.samples import require_pixels
from datamodules.reading.sources import Example, FileSource, Joined, Source

SUFFIXES = frozenset((".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts"))


def find_videos(where: str | list[str]) -> tuple[list[Path], list[str]]:
    """Divide places into video files and others.

    Args:
        where: Files, globs such as `clips/*.mp4`, and others, which are returned as they are.

    Returns:
        The video files, and the other places.
    """
    videos: list[Path] = []
    others: list[str] = []
    for each in [where] if isinstance(where, str) else where:
        path = Path(each).expanduser()
        found = find_glob(path)[1] if path.suffix.lower() in SUFFIXES else []
        videos += found
        others += [] if found else [each]
    return videos, others


def images_and_frames(where: str | list[str], reading: Reading) -> tuple[dict[str, Path], Source]:
    """Return the images at some places, and the frames of the videos there.

    Args:
        where: The places, as the option `predict` takes them.
        reading: Number of channels, and largest size of an image.

    Returns:
        The video files by the first part of the ids of their frames, and all examples.

    Raises:
        DataError: There are no images, or a video cannot be used.
    """
    files, others = find_videos(where)
    if not files:
        return {}, FileSource(find_images(where, option="predict"))
    if reading.channels != 3:
        raise DataError(f"{files[0]} is a video, whose frames are RGB", option="channels 3")
    videos = {path.stem: path for path in files}
    if len(videos) < len(files):
        raise DataError("two videos have the same name: rename one of them", option="predict")
    images = [FileSource(find_images(others, option="predict"))] if others else []
    frames = [VideoSource(path, name, reading) for name, path in videos.items()]
    return videos, Joined([*images, *frames])


class VideoSource(Source):
    """The frames of a video as examples `<name>/000000`, `<name>/000001`, ...

    Frames are turned as the file says. Reading them in order decodes each once.

    Args:
        path: The file.
        name: The first part of the ids.
        reading: The largest size of a frame.

    Raises:
        DataError: The file is no video, it has no frames, or PyAV is not installed.
    """

    def __init__(self, path: Path, name: str, reading: Reading = USUAL) -> None:
        self.path = path
        self.reading = reading
        self._frames: Iterator[Any] | None = None
        self._next = 0
        self._ids = [f"{name}/{number:06d}" for number in range(self._count())]
        if not self._ids:
            raise DataError(f"{path} holds no frames of a video", option="predict")

    @property
    def ids(self) -> Sequence[str]:
        """The names of the frames, in order."""
        return self._ids

    def _count(self) -> int:
        av = _av(self.path)
        try:
            with av.open(str(self.path)) as file:
                if not file.streams.video:
                    return 0
                video = file.streams.video[0]
                require_pixels((video.height, video.width), self.reading.max_pixels, self.path)
                return sum(packet.size > 0 for packet in file.demux(video))
        except (av.error.FFmpegError, OSError) as error:
            raise DataError(f"{self.path} cannot be read as a video: {error}") from error

    def read(self, index: int, reduce: int = 1) -> Example:
        """Return a frame.

        Raises:
            DataError: The file is damaged, or ends before.
        """
        av = _av(self.path)
        if self._frames is None or index < self._next:
            self._frames, self._next = self._decoded(av), 0
        try:
            while True:
                frame = next(self._frames)
                self._next += 1
                if self._next > index:
                    return Example(self._ids[index], _pixels(frame), None)
        except StopIteration:
            self._frames = None
            raise DataError(f"{self.path} ends before frame {index}") from None
        except av.error.FFmpegError as error:
            self._frames = None
            raise DataError(f"frame {index} of {self.path} cannot be read: {error}") from error

    def _decoded(self, av: Any) -> Iterator[Any]:
        with av.open(str(self.path)) as file:
            yield from file.decode(video=0)


def _pixels(frame: Any) -> NDArray[np.uint8]:
    """Return the (H, W, 3) RGB pixels of a frame, turned as its file says."""
    image = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(image, round(getattr(frame, "rotation", 0) / 90)))


def _av(path: Path) -> Any:
    try:
        import av  # a large package, for videos alone
    except ImportError as error:
        raise DataError(
            f"{path} is a video, which the package av reads: pip install 'lightning-seg[video]'"
        ) from error
    return av
