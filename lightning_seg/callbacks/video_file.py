"""Videos of overlays, which are written frame by frame and appear whole."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_seg.callbacks.prediction_files import place
from lightning_seg.files import write_whole


class VideoFile:
    """Writes an MP4 file with the frame rate of another video; needs the package av.

    Args:
        path: The file to write.
        like: The video whose frame rate it gets.
    """

    def __init__(self, path: Path, like: Path) -> None:
        import av  # a large package, for videos alone

        self.path = path
        with av.open(str(like)) as file:
            rate = file.streams.video[0].average_rate or Fraction(25)
        self._rate = Fraction(rate).limit_denominator(65535)
        self._av: Any = av
        self._whole: AbstractContextManager[Path] = write_whole(path)
        self._file = av.open(str(self._whole.__enter__()), "w")
        self._stream: Any = None

    def add(self, image: NDArray[np.uint8]) -> None:
        """Write the next frame, (H, W, 3) RGB of one size; odd sides are filled up by a pixel."""
        height, width = image.shape[:2]
        image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self._stream is None:
            codec = "libx264" if "libx264" in self._av.codecs_available else "mpeg4"
            self._stream = self._file.add_stream(codec, rate=self._rate)
            self._stream.height, self._stream.width = image.shape[:2]
            self._stream.pix_fmt = "yuv420p"  # which all players show
        frame = self._av.VideoFrame.from_ndarray(image, format="rgb24")
        self._file.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write the end; the file gets its name, unless no frame was written."""
        if self._stream is None:
            return self.discard()
        self._file.mux(self._stream.encode())
        self._file.close()
        self._whole.__exit__(None, None, None)
        return None

    def discard(self) -> None:
        """Remove what was written."""
        self._file.close()
        try:
            self._whole.__exit__(InterruptedError, InterruptedError(), None)
        except InterruptedError:
            return


class OverlayVideos:
    """The videos of a prediction, of which one is written at a time.

    Args:
        root: The folder of all predictions.
        videos: The video files that are predicted, by the first part of the ids of their frames.
    """

    def __init__(self, root: Path, videos: Mapping[str, Path]) -> None:
        self.root, self.videos = root, videos
        self._name = ""
        self._file: VideoFile | None = None

    def video_of(self, name: str) -> str | None:
        """Return the name of the video that an id belongs to; None for an image."""
        video = name.rpartition("/")[0]
        return video if video in self.videos else None

    def path(self, video: str) -> Path:
        """Return the path of the overlays of a video."""
        return place(self.root, "overlays", video, ".mp4")

    def add(self, video: str, overlay: NDArray[np.uint8]) -> None:
        """Write the next overlay, (H, W, 3), of a video; another video is complete then."""
        if self._file is None or video != self._name:
            self.close()
            self._name, self._file = video, VideoFile(self.path(video), self.videos[video])
        self._file.add(overlay)

    def close(self) -> None:
        """Write the end of the last video."""
        if self._file is not None:
            self._file.close()
        self._file = None

    def discard(self) -> None:
        """Remove a video that is not complete."""
        if self._file is not None:
            self._file.discard()
        self._file = None
