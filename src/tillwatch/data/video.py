"""Video files: what they hold, their frames in time, and reading some of them (PyAV, FFmpeg inside)."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from PIL import Image

from tillwatch.clip_spec import FrameStep, Roi, Size, frame_indices, seconds_of
from tillwatch.errors import ClipError, one_line

_CONTAINERS = {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".dav", ".ts", ".m2ts", ".mts", ".mpg", ".mpeg", ".mxf"}
_OLDER_CONTAINERS = {".wmv", ".asf", ".flv", ".f4v", ".3gp", ".3g2", ".ogv", ".vob", ".mpe", ".divx"}
_BARE_STREAMS = {".h264", ".264", ".avc", ".h265", ".265", ".hevc", ".mjpeg", ".mjpg", ".m2v", ".m1v", ".ivf"}

#: Counted up when a video's frames are converted or resized otherwise: the same file then gives other pixels.
READING = 4

VIDEO_SUFFIXES = frozenset(_CONTAINERS | _OLDER_CONTAINERS | _BARE_STREAMS)


# SWS_BILINEAR and SWS_ACCURATE_RND of FFmpeg's swscale.h; PyAV 17 has no name for the second.
_BILINEAR, _EXACT = 2, 0x40000


_FEWEST_FOR_A_RATE, _SAME_RATE = 3, Fraction(1, 50)


class _OfThisThread(threading.local):
    """To set a converter up takes longer than to convert a small frame; two threads cannot share one."""

    def __init__(self) -> None:
        self.converter = VideoReformatter()
        self.shrinker = VideoReformatter()


_OF_THIS_THREAD = _OfThisThread()


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a video file says of itself, checked by walking through its packets.

    Attributes:
        num_frames: frames in the file, counted, not taken from the header.
        fps: average frames a second; None if the file does not tell.
    """

    num_frames: int
    fps: Fraction | None

    @property
    def seconds(self) -> float | None:
        """How long the frames last at the average rate."""
        return seconds_of(self.num_frames, self.fps)


def is_video_file(path: Path) -> bool:
    """Whether a file's name is that of a video; hidden files are not."""
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".")


def probe_video(path: Path) -> VideoInfo:
    """Counts a video's frames without decoding them, and decodes the first to see that it can be.

    Raises:
        ClipError: if it cannot be opened or holds no frame that can be decoded.
    """
    info = _count_packets(path)
    if not info.num_frames or next(decode_video(path), None) is None:
        raise ClipError(f"{path}: holds no frame.")
    return info


def decode_video(path: Path, threads: int = 0) -> Iterator[av.VideoFrame]:
    """Yields all frames in display order, not yet converted to RGB (see :func:`to_image`).

    Args:
        path: the video file.
        threads: decoding threads, 0 for as many as FFmpeg likes.

    Raises:
        ClipError: if the file cannot be opened or is damaged, when the damage is reached.
    """
    try:
        with open_container(path) as container:
            stream = video_stream(container, path)
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = threads
            for packet in packets_of(container, stream):
                yield from packet.decode()
    except (av.error.FFmpegError, OSError) as error:
        raise ClipError(unreadable(path, error)) from None


def to_rgb(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """Converts a decoded frame to RGB and turns it upright (phones record sideways): uint8 ``(H, W, 3)``."""
    # In one thread: a converter's own would be lost in a forked worker, which would wait for them for ever.
    rgb = _OF_THIS_THREAD.converter.reformat(frame, format="rgb24", threads=1).to_ndarray()
    return np.rot90(rgb, _quarters(frame))


def cut_out(rgb: NDArray[np.uint8], roi: Roi | None) -> NDArray[np.uint8]:
    """Returns a region of an upright frame ``(H, W, 3)``, or all of it, in memory of its own."""
    if roi is None:
        return np.ascontiguousarray(rgb)
    left, top, right, bottom = roi.box(*rgb.shape[:2])
    return rgb[top:bottom, left:right].copy()


def to_image(frame: av.VideoFrame, roi: Roi | None = None) -> Image.Image:
    """Converts a decoded frame to an upright RGB image and cuts out ``roi``."""
    return Image.fromarray(cut_out(to_rgb(frame), roi))


def squeeze(rgb: NDArray[np.uint8], size: Size | None) -> NDArray[np.uint8]:
    """Squeezes a decoded frame by Pillow's bilinear filter, which averages when shrinking.

    The arithmetic is torch's, made after Pillow's: a tenth of the time from 1080p, and one grey level off at most
    (two, rarely, where noise is enlarged).

    Args:
        rgb: uint8 ``(H, W, 3)``, contiguous.
        size: (height, width) wanted; None to leave it as it is.

    Returns:
        uint8 ``(*size, 3)``; the very same array where there is nothing to do.
    """
    if size is None or rgb.shape[:2] == size:
        return rgb
    import torch  # takes a second, and most that reads videos never comes here

    image = torch.from_numpy(rgb).permute(2, 0, 1)[None]  # channels last: what the fast kernel takes
    small = torch.nn.functional.interpolate(image, size=size, mode="bilinear", antialias=True)
    return np.ascontiguousarray(small[0].permute(1, 2, 0).numpy())


def squeezed_parts(frame: av.VideoFrame, rois: Iterable[Roi | None], size: Size | None) -> list[NDArray[np.uint8]]:
    """Converts parts of a decoded frame to RGB as a model reads them: upright, cut out, squeezed.

    A whole picture is :func:`shrunk` before it is converted, unless it is interlaced: less than half the time from
    1080p, and without the grey level that FFmpeg's fast conversion loses (benchmarks/loading.py).

    Args:
        frame: as the decoder gives it.
        rois: what to cut out of it; None for all of it.
        size: (height, width) that each is squeezed to; None to leave them as they are.

    Returns:
        For each, uint8 ``(H, W, 3)``.
    """
    rgb: NDArray[np.uint8] | None = None
    parts = []
    for roi in rois:
        if roi is None and can_be_shrunk(frame):
            whole = upright_size(frame)
            small = whole if size is None or size[0] > whole[0] or size[1] > whole[1] else size
            parts.append(squeeze(shrunk(frame, small), size))
            continue
        rgb = to_rgb(frame) if rgb is None else rgb
        parts.append(squeeze(cut_out(rgb, roi), size))
    return parts


def shrunk(frame: av.VideoFrame, size: Size) -> NDArray[np.uint8]:
    """Squeezes a decoded frame and converts it to RGB at one go, upright: uint8 ``(*size, 3)``.

    FFmpeg's filter is Pillow's bilinear one, to two grey levels where colours change slowly. Single pixels are further
    off: at hard edges of colour; where colours leave RGB's range, as in burnt-in text (converted first, they are cut
    off before they are averaged); and in the outermost rows and columns, for the edge's pixels count more than once.

    Args:
        frame: as the decoder gives it.
        size: (height, width), neither of them larger than the frame's; the frame's own to convert it and no more.
    """
    height, width = size if _quarters(frame) % 2 == 0 else size[::-1]
    convert = _OF_THIS_THREAD.shrinker.reformat
    # Into planes: to rgb24, FFmpeg would give two neighbours one colour.
    if (height, width) == (frame.height, frame.width):  # here FFmpeg would take its fast conversion
        small = convert(frame, format="gbrp", interpolation=_BILINEAR | _EXACT, threads=1).to_ndarray()
    else:  # of a large picture 16 bits take it less time than 8
        wide = convert(frame, width, height, "gbrp16le", interpolation=_BILINEAR, threads=1).to_ndarray()
        levels = (np.right_shift(wide, 7) + 1) >> 1  # rounded: a grey level is 256 of its, and white 65280
        small = np.minimum(levels, 255).astype(np.uint8)
    return np.ascontiguousarray(np.rot90(small, _quarters(frame)))


def upright_size(frame: av.VideoFrame) -> Size:
    """Returns (height, width) of a decoded frame as it is shown."""
    size = frame.height, frame.width
    return size if _quarters(frame) % 2 == 0 else size[::-1]


def can_be_shrunk(frame: av.VideoFrame) -> bool:
    """Whether a frame may be :func:`shrunk`: if it is not interlaced.

    Of interlaced frames FFmpeg would scale the two fields apart, and weave them into a small picture that combs.
    """
    return not frame.interlaced_frame


def _quarters(frame: av.VideoFrame) -> int:
    """Returns how many quarters of a circle a frame is to be turned, against the clock."""
    return round((frame.rotation or 0) / 90)


def read_video(
    path: Path,
    num_frames: int,
    step: FrameStep | None = None,
    resize: Size | None = None,
    roi: Roi | None = None,
) -> NDArray[np.uint8]:
    """Reads frames spread uniformly over a video.

    Args:
        path: the video file.
        num_frames: frames wanted.
        step: which of the file's frames count; None for all.
        resize: (height, width) that each is squeezed to; None to leave them as they are.
        roi: what to cut out of each before that; None for all of it.

    Returns:
        uint8 ``(num_frames, H, W, 3)``, RGB.

    Raises:
        ClipError: if the file is damaged or holds no frame.
    """
    info = _count_packets(path)
    every = (step or FrameStep()).of_source(None if info.fps is None else float(info.fps))
    expected = info.num_frames
    for _ in range(2):
        if not expected:
            raise ClipError(f"{path}: holds no frame.")
        wanted = every * frame_indices(-(-expected // every), num_frames)
        kept, counted = _keep_frames(path, set(wanted.tolist()), resize, roi)
        if counted == expected:
            return np.stack([kept[index] for index in wanted.tolist()])
        # Some containers hold packets that give no frame, or two that give one: believe the decoder.
        expected = counted
    raise ClipError(f"{path}: gives a different number of frames each time it is read.")


def _keep_frames(
    path: Path, wanted: set[int], resize: Size | None, roi: Roi | None
) -> tuple[dict[int, NDArray[np.uint8]], int]:
    kept: dict[int, NDArray[np.uint8]] = {}
    counted = 0
    for counted, frame in enumerate(decode_video(path), start=1):
        if counted - 1 in wanted:
            (kept[counted - 1],) = squeezed_parts(frame, [roi], resize)
    if len({frame.shape for frame in kept.values()}) > 1:
        raise ClipError(f"{path}: frames of two sizes.")
    return kept, counted


def _count_packets(path: Path) -> VideoInfo:
    try:
        with open_container(path) as container:
            stream = video_stream(container, path)
            stamps = [packet.pts for packet in packets_of(container, stream) if is_shown(packet)]
            rate, time_base = stream.average_rate or stream.guessed_rate, stream.time_base
    except (av.error.FFmpegError, OSError) as error:
        raise ClipError(unreadable(path, error)) from None
    known = [stamp for stamp in stamps if stamp is not None]
    span = max(known) - min(known) if len(known) == len(stamps) > 0 else 0
    return VideoInfo(
        num_frames=len(stamps), fps=true_rate(Fraction(rate), len(stamps), span * Fraction(time_base)) if rate else None
    )


def true_rate(told: Fraction, num_frames: int, span: Fraction) -> Fraction:
    """Returns frames a second by what frames are apart, where that is not the rate that a file tells.

    Matroska tells the rate that its maker meant, also of a film whose rate varies.

    Args:
        told: by the file.
        num_frames: of a film, or of a part of one.
        span: seconds from the first of them to the last; 0 if unknown.
    """
    if num_frames < _FEWEST_FOR_A_RATE or span <= 0:
        return told
    rate = (num_frames - 1) / span
    # Timestamps are rounded; and a tenth is no rate, but a pause or a clock that was set.
    return told if abs(rate / told - 1) < _SAME_RATE or rate < told / 10 else rate


def open_container(path: Path) -> av.container.InputContainer:
    """Opens a file with FFmpeg. Its title and the like may be in any encoding, or none: recorders write what they like.

    Raises:
        av.error.FFmpegError, OSError: if that fails.
    """
    return av.open(str(path), metadata_errors="replace")


def packets_of(container: Any, stream: Any) -> Iterator[Any]:
    """Yields a stream's packets, the last of them empty: it asks the decoder for what it holds back.

    PyAV fails with an IndexError at each packet of a stream that was not there when the file was opened, as a transport
    stream may bring any time: such packets are passed over.
    """
    at_end = False
    while True:
        try:
            for packet in container.demux(stream):
                at_end = not packet.size
                yield packet
        except IndexError:
            if not at_end:
                continue
        return


def is_shown(packet: Any) -> bool:
    """Whether a packet is a picture that is shown; those before an edit list's start are decoded only."""
    return bool(packet.size) and not packet.is_discard


def video_stream(container: Any, path: Path) -> Any:
    """Returns an opened file's first video stream; a sound file's cover picture is none.

    Raises:
        ClipError: if it has none, or FFmpeg does not know its codec.
    """
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            if stream.codec_context is None:
                raise ClipError(f"{path}: FFmpeg knows no decoder for its video.")
            return stream
    raise ClipError(f"{path}: holds no video stream.")


def unreadable(path: Path, error: Exception) -> str:
    """Returns a sentence that says why FFmpeg cannot read a file."""
    if path.is_file() and path.stat().st_size == 0:
        return f"{path}: the file is empty."
    reason = getattr(error, "strerror", None) or one_line(error)
    return f"{path}: cannot be read as a video ({reason})."
