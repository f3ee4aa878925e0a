"""Recordings of any length played from their beginning, past damage, with the time of each frame."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from tillwatch.data.video import open_container, unreadable, video_stream
from tillwatch.errors import ClipError, one_line

_RETRIES = 10
_H264_SLICES = (1, 5)  # types of NAL units
_MOST_HELD_BACK = 16  # frames that a decoder of H.264 or H.265 holds back to bring them into order
_ASSUMED_FPS = 25  # of a bare stream that tells neither times nor a rate


@dataclass(frozen=True, kw_only=True)
class Timing:
    """When a recording's frames are shown, as the file has it.

    Attributes:
        timestamps: of the frames in the order they are shown, in units of ``time_base``; None where the file has none.
        time_base: seconds a unit.
        fps: average frames a second; None if the file does not tell.
        interval: seconds from a frame to the next in the median; where nothing tells, by the average rate.
    """

    timestamps: list[int | None]
    time_base: Fraction
    fps: Fraction | None
    interval: Fraction


@dataclass
class Damage:
    """What could not be read of a recording that was played.

    Attributes:
        packets: that the decoder refused.
        pictures: that the decoder gives in spite of errors in them, patched from others.
        broken_off: why the rest could not be read; None if the file was read to its end.
    """

    packets: int = 0
    pictures: int = 0
    broken_off: str | None = None

    def notes(self) -> list[str]:
        """Returns it in sentences."""
        found = [f"{self.packets} damaged packets could not be decoded"] if self.packets else []
        found += [f"damaged pictures: {self.pictures}"] if self.pictures else []
        return [*found, *([f"it breaks off ({self.broken_off})"] if self.broken_off else [])]


def header_seconds(path: Path) -> float:
    """Returns how long a file says it is, 0 if it does not say or cannot be opened; good enough for a progress bar."""
    try:
        with _opened(path) as container:
            return max(0.0, (container.duration or 0) / av.time_base)
    except ClipError:
        return 0.0


def header_created(path: Path) -> str | None:
    """Returns a file's creation_time, ISO 8601 in UTC; None if it has none or cannot be opened."""
    try:
        with _opened(path) as container:
            return container.metadata.get("creation_time")
    except ClipError:
        return None


def video_seconds_told(path: Path) -> float | None:
    """Returns how long a file says that its video is, or itself where it does not tell that of each stream.

    Raises:
        ClipError: if the file cannot be opened or holds no video.
    """
    with _opened(path) as container:
        stream = video_stream(container, path)
        if stream.duration and stream.time_base:
            return float(stream.duration * stream.time_base)
        if container.duration is None:
            return None
        # Matroska tells when its last frame ends, not for how long frames are shown.
        begin = container.start_time or 0 if "matroska" in container.format.name else 0
        return (container.duration - begin) / av.time_base


def timing_of_packets(path: Path) -> Timing:
    """Reads the timestamps of a recording's packets, without decoding: fast, and nearly always right.

    Raises:
        ClipError: if the file cannot be opened or holds no video.
    """
    stamps: list[int | None] = []
    with _opened(path) as container:
        stream = video_stream(container, path)
        for packet in _packets(container, stream, Damage()):
            if packet.size and not packet.is_discard:
                stamps.append(packet.dts if packet.pts is None else packet.pts)
        time_base, fps = stream.time_base, stream.average_rate or stream.guessed_rate
    known = np.array([stamp for stamp in stamps if stamp is not None], np.int64)
    order = known.argsort(kind="stable")
    apart = np.diff(known[order])
    typical = Fraction(int(np.median(apart[apart > 0]))) if (apart > 0).any() else None
    # Packets come in the order they are decoded in; sorted, they are in the order they are shown in. A clock that was
    # set back comes again to times long past, which belong where they are.
    sortable = len(known) == len(stamps) and (np.abs(order - np.arange(len(order))) <= _MOST_HELD_BACK).all()
    return Timing(
        timestamps=known[order].tolist() if sortable else stamps,
        time_base=Fraction(time_base),
        fps=Fraction(fps) if fps else None,
        interval=1 / Fraction(fps or _ASSUMED_FPS) if typical is None else typical * Fraction(time_base),
    )


def timing_of_frames(path: Path, of_packets: Timing) -> Timing:
    """Reads the timestamps of a recording's frames by decoding all of them, where those of its packets do not fit."""
    stamps = [frame.pts for frame in play(path, Damage())]
    return replace(of_packets, timestamps=stamps)


def play(path: Path, damage: Damage) -> Iterator[av.VideoFrame]:
    """Yields a recording's frames in the order they are shown; what is damaged is counted and left out.

    Args:
        path: the file.
        damage: counts what was left out.

    Raises:
        ClipError: if the file cannot be opened or holds no video.
    """
    with _opened(path) as container:
        stream = video_stream(container, path)
        packets = _packets(container, stream, damage)
        first = next(packets, None)
        # Slices side by side cost a tenth less of the processor than pictures side by side; most cameras write but one.
        sliced = first is not None and slices_in(bytes(first), stream.codec_context) > 1
        stream.thread_type = "SLICE" if sliced else "AUTO"
        for packet in packets if first is None else itertools.chain([first], packets):
            yield from _decoded(stream, packet, damage)
        if damage.broken_off is not None:
            yield from _decoded(stream, None, damage)  # the decoder holds frames back; demux did not come to ask


def slices_in(packet: bytes, codec: av.VideoCodecContext) -> int:
    """Returns how many slices a packet's picture is coded in; 1 where that is not looked at: in all but H.264.

    Args:
        packet: as the container holds it: each NAL unit behind its length, as MP4 and Matroska have them, or behind
            a start code (ISO/IEC 14496-15, 5.3; ITU-T H.264, annex B).
        codec: of the stream.
    """
    if codec.name != "h264":
        return 1
    told = codec.extradata or b""
    kinds = []
    if told[:1] == b"\x01" and len(told) > 4:
        size, place = (told[4] & 3) + 1, 0
        while place + size < len(packet):
            kinds.append(packet[place + size])
            place += size + int.from_bytes(packet[place : place + size])
    else:
        kinds = [unit[0] for unit in packet.split(b"\0\0\1")[1:] if unit]
    return max(1, sum(kind & 31 in _H264_SLICES for kind in kinds))


def _opened(path: Path) -> av.container.InputContainer:
    try:
        return open_container(path)
    except (av.error.FFmpegError, OSError) as error:
        raise ClipError(unreadable(path, error)) from None


def _packets(
    container: av.container.InputContainer, stream: av.VideoStream, damage: Damage
) -> Iterator[av.Packet[av.VideoStream]]:
    refused = 0
    while refused < _RETRIES:  # past a damaged spot a file may go on
        try:
            for packet in container.demux(stream):
                refused = 0
                yield packet
        except (av.error.FFmpegError, OSError) as error:
            refused += 1
            reason = getattr(error, "strerror", None) or one_line(error)
        else:
            return
    damage.broken_off = reason


def _decoded(
    stream: av.VideoStream, packet: av.Packet[av.VideoStream] | None, damage: Damage
) -> Iterator[av.VideoFrame]:
    try:
        frames = stream.decode(packet)
    except av.error.EOFError:  # what it held back was asked for before
        return
    except av.error.FFmpegError:
        damage.packets += 1
        return
    damage.pictures += sum(frame.is_corrupt for frame in frames)
    yield from frames
