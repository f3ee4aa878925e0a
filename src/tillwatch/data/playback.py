"""Recordings of any length played from their beginning, past damage, with the time of each frame."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from queue import SimpleQueue
from typing import Generic, TypeAlias, TypeVar

import av
import numpy as np

from tillwatch.data.bitstream import GroupFinder
from tillwatch.data.video import is_shown, open_container, packets_of, unreadable, video_stream
from tillwatch.errors import ClipError, one_line
from tillwatch.threads import thread_pool

_RETRIES = 10
_MOST_HELD_BACK = 16  # frames that a decoder of H.264 or H.265 holds back to bring them into order
_ASSUMED_FPS = 25  # of a bare stream that tells neither times nor a rate

#: Groups of pictures under way for each thread that decodes: so many that none waits for the next.
GROUPS_A_THREAD = 2

Converted = TypeVar("Converted")
_Played: TypeAlias = tuple[int | None, Converted | None]
_Packet: TypeAlias = "av.Packet[av.VideoStream]"


class NotAloneError(Exception):
    """A group of pictures that is decoded by itself may not give what it gives behind the one before."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """When a recording's frames are shown, as the file has it.

    Attributes:
        timestamps: of the frames in the order they are shown, in units of ``time_base``; None where the file has none.
        time_base: seconds a unit.
        fps: average frames a second; None if the file does not tell.
        interval: seconds from a frame to the next in the median; where nothing tells, by the average rate.
        groups: places of the frames that groups of pictures begin with which can be decoded by themselves, the first
            0; empty if there are none, or nothing tells.
    """

    timestamps: list[int | None]
    time_base: Fraction
    fps: Fraction | None
    interval: Fraction
    groups: list[int] = field(default_factory=list)


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
        groups = GroupFinder(stream.codec_context)
        for packet in _packets(container, stream, Damage()):
            if is_shown(packet):
                stamps.append(packet.dts if packet.pts is None else packet.pts)
                groups.see(packet, parameters_beside=packet.has_sidedata("new_extradata"))
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
        groups=groups.begins() if sortable else [],
    )


def timing_of_frames(path: Path, of_packets: Timing) -> Timing:
    """Reads the timestamps of a recording's frames by decoding all of them, where those of its packets do not fit."""
    stamps = [frame.pts for frame in play(path, Damage())]
    return replace(of_packets, timestamps=stamps, groups=[])


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
        stream.thread_type = "AUTO"
        for packet in _packets(container, stream, damage):
            yield from _decoded(stream.codec_context, packet, damage)
        if damage.broken_off is not None:
            # The decoder holds frames back, and demux did not come to ask for them.
            yield from _decoded(stream.codec_context, None, damage)


def play_converted(
    path: Path,
    timing: Timing,
    damage: Damage,
    wanted: Callable[[int], bool],
    convert: Callable[[av.VideoFrame], Converted],
    threads: int = 1,
) -> Generator[_Played[Converted], None, None]:
    """Yields of each frame, in the order they are shown, its timestamp and, if it is wanted, what is made of it.

    Groups of pictures that can be decoded by themselves are, side by side, each by one thread, which converts its
    frames as well: no thread waits for another, as FFmpeg's own do that share a picture or take one each. Frames are
    the same either way, but for what is patched of damaged ones, and come in the same order.

    Args:
        path: the file.
        timing: of its packets.
        damage: counts what was left out.
        wanted: tells whether the frame at a place is; asked of one place after the other, some groups ahead.
        convert: what is to be made of it; called by other threads.
        threads: that decode; :data:`GROUPS_A_THREAD` times as many groups are under way.

    Raises:
        ClipError: if the file cannot be opened or holds no video.
        NotAloneError: if a group depends on what was before it all the same.
    """
    if threads < 2 or len(timing.groups) < 2:
        for place, frame in enumerate(play(path, damage)):
            yield frame.pts, convert(frame) if wanted(place) else None
        return
    codecs: SimpleQueue[av.VideoCodecContext] = SimpleQueue()

    def decoded(packets: Sequence[_Packet], taken: Container[int]) -> _Group[Converted]:
        group = _Group[Converted]()
        codec = codecs.get()
        try:
            for packet in (*packets, None):
                for frame in _decoded(codec, packet, group.damage):
                    take = len(group.frames) in taken
                    if take and frame.interlaced_frame:  # by the picture before, where its own timing leaves it open
                        raise NotAloneError
                    group.frames.append((frame.pts, convert(frame) if take else None))
                    group.turned |= {frame.rotation} if take else set()
            codec.flush_buffers()
        finally:
            codecs.put(codec)  # a thread that waits for one must not wait for ever
        return group

    turned: set[int] = set()

    def joined(group: _Group[Converted]) -> list[_Played[Converted]]:
        turned.update(group.turned)
        if len(turned) > 1:  # what turns pictures may stand before the first group alone
            raise NotAloneError
        damage.packets += group.damage.packets
        damage.pictures += group.damage.pictures
        return group.frames

    with ExitStack() as opened:
        container = opened.enter_context(_opened(path))
        packets = _packets(container, video_stream(container, path), damage)
        for _ in range(threads):
            codec = video_stream(opened.enter_context(_opened(path)), path).codec_context
            codec.thread_count = 1
            codecs.put(codec)
        pool = opened.enter_context(thread_pool(threads))
        under_way: deque[Future[_Group[Converted]]] = deque()
        for first, group in _grouped(packets, timing.groups):
            taken = {place - first for place in range(first, first + len(group)) if wanted(place)}
            under_way.append(pool.submit(decoded, group, taken))
            if len(under_way) >= threads * GROUPS_A_THREAD:
                yield from joined(under_way.popleft().result())
        while under_way:
            yield from joined(under_way.popleft().result())


@dataclass
class _Group(Generic[Converted]):
    """What a group of pictures gave: its frames, how the ones taken are turned, and what was damaged."""

    frames: list[_Played[Converted]] = field(default_factory=list)
    turned: set[int] = field(default_factory=set)
    damage: Damage = field(default_factory=Damage)


def _grouped(packets: Iterator[_Packet], begins: Sequence[int]) -> Iterator[tuple[int, list[_Packet]]]:
    """Yields the packets of each group, with the place of its first frame."""
    first, shown = 0, 0
    group: list[_Packet] = []
    coming = deque(begins)
    for packet in packets:
        if coming and is_shown(packet) and shown == coming[0]:
            if group:
                yield first, group
            first, group = coming.popleft(), []
        shown += is_shown(packet)
        if packet.size:
            group.append(packet)
    yield first, group


def _opened(path: Path) -> av.container.InputContainer:
    try:
        return open_container(path)
    except (av.error.FFmpegError, OSError) as error:
        raise ClipError(unreadable(path, error)) from None


def _packets(container: av.container.InputContainer, stream: av.VideoStream, damage: Damage) -> Iterator[_Packet]:
    refused = 0
    while refused < _RETRIES:  # past a damaged spot a file may go on
        try:
            for packet in packets_of(container, stream):
                refused = 0
                yield packet
        except (av.error.FFmpegError, OSError) as error:
            refused += 1
            reason = getattr(error, "strerror", None) or one_line(error)
        else:
            return
    damage.broken_off = reason


def _decoded(codec: av.VideoCodecContext, packet: _Packet | None, damage: Damage) -> Iterator[av.VideoFrame]:
    try:
        frames = codec.decode(packet)
    except av.error.EOFError:  # what it held back was asked for before
        return
    except av.error.FFmpegError:
        damage.packets += 1
        return
    damage.pictures += sum(frame.is_corrupt for frame in frames)
    yield from frames
