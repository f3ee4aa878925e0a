"""Frames to an H.264 file: told colours, the frames' own times, and in its place only when it is whole."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.video.reformatter import ColorRange

_QUALITY = "16"  # x264's constant rate factor: nothing to be seen is lost
_ASSUMED_FPS = 25  # where the file does not tell; the frames' times hold

# Code points of ITU-T H.273, which containers and codecs share.
BT709, UNTOLD, BT601 = 1, 2, 6
_HD_HEIGHT = 720  # from here on, what does not tell its matrix is taken for BT.709, as players do
_RGB = ("rgb", "bgr", "gbr", "argb", "abgr", "0rgb", "0bgr")


@dataclass(frozen=True, kw_only=True)
class Colours:
    """How the numbers of a picture become colours, in code points of ITU-T H.273.

    Attributes:
        matrix: from RGB to luma and chroma.
        full_range: whether luma runs from 0 to 255, not from 16 to 235.
        primaries, transfer: of the colours themselves.
    """

    matrix: int
    full_range: bool = False
    primaries: int = UNTOLD
    transfer: int = UNTOLD

    @property
    def range(self) -> ColorRange:
        """As FFmpeg names it."""
        return ColorRange.JPEG if self.full_range else ColorRange.MPEG

    @property
    def conversion(self) -> int:
        """The matrix as FFmpeg's conversion takes it, which knows BT.601 under its other number."""
        return 5 if self.matrix in (BT601, UNTOLD) else self.matrix


def colours_told(frame: av.VideoFrame) -> Colours:
    """Returns a decoded frame's colours as its file tells them; where it does not, BT.601 in limited range is meant."""
    if frame.format.name.startswith(_RGB):
        return Colours(matrix=BT601, primaries=int(frame.color_primaries), transfer=int(frame.color_trc))
    full = int(frame.color_range) == ColorRange.JPEG.value or frame.format.name.startswith("yuvj")
    return Colours(
        matrix=int(frame.colorspace),
        full_range=full,
        primaries=int(frame.color_primaries),
        transfer=int(frame.color_trc),
    )


def colours_shown(frame: av.VideoFrame) -> Colours:
    """Returns a decoded frame's colours as a player takes them: what its file leaves open goes by the height."""
    told = colours_told(frame)
    if told.matrix != UNTOLD:
        return told
    matrix = BT709 if frame.height >= _HD_HEIGHT else BT601
    return Colours(matrix=matrix, full_range=told.full_range, primaries=told.primaries, transfer=told.transfer)


class H264File:
    """An .mp4 file that is being written, beside its place; :meth:`finish` puts it there.

    Args:
        path: its place; the folder is made.
        time_base: seconds a unit of the frames' times.
        fps: nominal; the times hold.
        colours: to write and to tell; None takes those of the first frame.

    Attributes:
        frames: how many it holds.
    """

    def __init__(
        self, path: Path, *, time_base: Fraction, fps: Fraction | None, colours: Colours | None = None
    ) -> None:
        self.path = path
        self.frames = 0
        self._time_base, self._fps, self._colours = time_base, fps, colours
        self._container: Any = None
        self._stream: Any = None
        self._begin = self._last = 0

    @property
    def aside(self) -> Path:
        """Where it is written."""
        return self.path.with_name(f".{self.path.name}.part")

    def add(self, frame: av.VideoFrame, now: int) -> None:
        """Adds a frame that is shown at ``now``, in units of the time base.

        The first frame's time becomes 0. One that is not later than the frame before, as two of one moment are, is
        shown a single unit after it: a player knows no two pictures at once.
        """
        if self._container is None:
            self._open(frame, now)
        told = colours_told(frame)
        colours = self._colours or told
        written = frame.reformat(
            width=self._stream.width,
            height=self._stream.height,
            format=self._stream.pix_fmt,
            src_colorspace=told.conversion,
            dst_colorspace=colours.conversion,
            src_color_range=None if frame.format.name.startswith(_RGB) else told.range,
            dst_color_range=colours.range,
        )
        self._last = max(now - self._begin, self._last + 1) if self.frames else 0
        written.pts, written.time_base = self._last, self._time_base
        written.pict_type = av.video.frame.PictureType.NONE  # the recorder's choice of key frames is not ours
        self._container.mux(self._stream.encode(written))
        self.frames += 1

    def finish(self) -> None:
        """Writes the rest and puts the file in its place; without frames there is none."""
        if self._container is None:
            return
        self._container.mux(self._stream.encode(None))
        self._container.close()
        self._container = None
        self.aside.replace(self.path)

    def discard(self) -> None:
        """Removes what is unfinished."""
        if self._container is not None:
            self._container.close()
            self._container = None
            self.aside.unlink(missing_ok=True)

    def _open(self, frame: av.VideoFrame, now: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(self.aside), "w", format="mp4")
        # Without B-frames times of decoding are those of showing, and .mp4 tells the duration right at a variable rate.
        options = {"crf": _QUALITY, "preset": "veryfast", "bf": "0"}
        self._stream = self._container.add_stream("libx264", rate=self._fps or _ASSUMED_FPS, options=options)
        self._stream.height, self._stream.width = frame.height, frame.width
        self._stream.pix_fmt = "yuv444p" if frame.height % 2 or frame.width % 2 else "yuv420p"
        self._colours = self._colours or colours_told(frame)
        codec = self._stream.codec_context
        codec.time_base = self._time_base
        codec.colorspace, codec.color_range = self._colours.matrix, self._colours.range.value
        codec.color_primaries, codec.color_trc = self._colours.primaries, self._colours.transfer
        self._begin = now
