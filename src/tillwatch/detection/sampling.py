"""One recording to its windows' frames: each frame that a window takes is converted once, no other is."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from tillwatch.clip_spec import Reading, Roi
from tillwatch.data.playback import (
    GROUPS_A_THREAD,
    Damage,
    NotAloneError,
    Timing,
    play_converted,
    timing_of_frames,
    timing_of_packets,
    video_seconds_told,
)
from tillwatch.data.video import squeezed_parts, true_rate
from tillwatch.detection.windows import Grid, Window, timeline, windows_of
from tillwatch.errors import ClipError

_MISSING_S, _MISSING_SHARE, _MOST_MISSING_S = 0.5, 0.01, 5.0  # of a recording: less is a rounded duration
_PAUSE_S, _PAUSE_FRAMES = 1.0, 3
_MOST_AHEAD = 256 * 2**20  # bytes of frames that are decoded before they are wanted


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowFrames:
    """What a model is shown of one window of one region.

    Attributes:
        region: its name.
        window: when and which frames.
        frames: uint8 ``(num_frames, H, W, 3)``, RGB, as small as the model reads them.
    """

    region: str
    window: Window
    frames: NDArray[np.uint8]


class _OtherFramesError(Exception):
    """The decoder gives other frames than were expected."""


@dataclass
class Sampler:
    """Reads a recording's windows from its beginning to its end, once.

    Which frames are wanted is worked out from the packets' timestamps, before anything is decoded, groups of pictures
    side by side. Should the decoder give other frames, one after the other is decoded; should it still, it is believed:
    all are decoded to count them. Either way reading goes on at the window where it was.
    Windows given before are the same either way, for none is given before its end is sure.

    Args:
        path: the recording.
        regions: what to cut out of the picture, by name; None for all of it.
        grid: where windows lie.
        reading: how many frames of each, which step, which size.
        threads: that decode groups of pictures side by side, at most; the frames are the same.

    Attributes:
        seconds: from the first frame to the end of the last; known once all windows are read, as the rest.
        gaps: windows that hold no frame.
        pauses_s: seconds between frames that are over a second apart, and more than a few frames usually are.
        lost: pictures that are in the file and could not be decoded.
        notes: what could not be read, in sentences.
    """

    path: Path
    regions: Mapping[str, Roi | None]
    grid: Grid
    reading: Reading
    threads: int = 1
    seconds: float = 0.0
    gaps: int = 0
    pauses_s: float = 0.0
    lost: int = 0
    notes: list[str] = field(default_factory=list)

    def read(self, done: int = 0) -> Iterator[WindowFrames]:
        """Yields what each window shows, window by window, and of each its regions in order.

        Args:
            done: how many of them were read before: they are passed over.

        Raises:
            ClipError: if the file cannot be opened, or holds no frame that can be decoded.
            DataError: if the step depends on a frame rate that the file does not tell.
        """
        timing = timing_of_packets(self.path)
        attempts = [timing, replace(timing, groups=[])] if self._threads(timing) > 1 else [timing]
        for attempt in attempts:
            try:
                for shown in self._read(attempt, done):
                    done += 1
                    yield shown
            except (NotAloneError, _OtherFramesError):
                continue
            return
        packets = len(timing.timestamps)
        timing = timing_of_frames(self.path, timing)
        lost = packets - len(timing.timestamps)
        # Of interlaced pictures each field may have a packet of its own.
        self.lost = lost if abs(packets - 2 * len(timing.timestamps)) > 2 else 0
        try:
            yield from self._read(timing, done)
        except _OtherFramesError:
            raise ClipError(f"{self.path}: gives other frames each time it is read.") from None

    def _read(self, timing: Timing, done: int) -> Iterator[WindowFrames]:
        stamps = timing.timestamps
        if not stamps:
            raise ClipError(f"{self.path}: holds no frame that can be decoded.")
        ticks = timeline(stamps, timing.time_base, timing.interval)
        every = self._step(ticks, timing)
        damage = Damage()
        windows = _Windows(
            windows_of(ticks, timing.time_base, self.grid, every=every, num_frames=self.reading.num_frames),
            passed_over=done // len(self.regions),
        )
        skipped_regions = done % len(self.regions)
        place = -1

        def parts_of(frame: av.VideoFrame) -> list[NDArray[np.uint8]]:
            return squeezed_parts(frame, self.regions.values(), self.reading.resize)

        threads = self._threads(timing)
        with closing(play_converted(self.path, timing, damage, windows.want, parts_of, threads)) as played:
            for place, (stamp, parts) in enumerate(played):
                if place >= len(stamps) or stamp != stamps[place]:
                    raise _OtherFramesError
                for window, kept in windows.ended(place):
                    yield from self._shown(window, kept, skipped_regions)
                    skipped_regions = 0
                if parts is not None:
                    windows.keep(place, parts)
        if place + 1 != len(stamps):
            raise _OtherFramesError
        for window, kept in windows.ended(len(stamps)):
            yield from self._shown(window, kept, skipped_regions)
            skipped_regions = 0
        self.seconds = float(int(ticks[-1]) * timing.time_base + timing.interval)
        self.gaps = windows.gaps
        self.pauses_s = _pauses_s(ticks, timing)
        assumed = [f"it tells no times; {float(1 / timing.interval):g} frames a second assumed"]
        self.notes = [
            *damage.notes(),
            *([f"pictures that could not be decoded: {self.lost}"] if self.lost > 0 else []),
            *self._shorter_than_told(),
            *(assumed if stamps[0] is None and stamps[-1] is None else []),
        ]

    def _threads(self, timing: Timing) -> int:
        """Returns how many groups of pictures may be decoded side by side, by the memory that their frames take."""
        if self.reading.resize is None or not timing.groups:
            return 1
        longest = int(np.diff([*timing.groups, len(timing.timestamps)]).max())
        of_group = longest * len(self.regions) * math.prod(self.reading.resize) * 3
        return min(self.threads, _MOST_AHEAD // (of_group * GROUPS_A_THREAD))

    def _step(self, ticks: NDArray[np.int64], timing: Timing) -> int | Callable[[int, int], int]:
        """Returns the frame step; of one by rate, what a clip cut there would have: a rate may vary within a file."""
        step = self.reading.step
        whole = step.of_source(None if timing.fps is None else float(timing.fps))
        if step.fps is None or timing.fps is None:
            return whole
        told = timing.fps

        def of_window(first: int, stop: int) -> int:
            span = int(ticks[stop - 1] - ticks[first]) * timing.time_base
            rate = true_rate(told, stop - first, span)
            return whole if rate == told else step.of_source(float(rate))

        return of_window

    def _shorter_than_told(self) -> list[str]:
        """An .mp4 that breaks off ends without an error: its head alone tells that there was more."""
        told = video_seconds_told(self.path) or 0.0
        if told - self.seconds <= max(_MISSING_S, min(_MISSING_SHARE * told, _MOST_MISSING_S)):
            return []
        return [f"it says that it lasts {told:.1f} s, and its video ends after {self.seconds:.1f} s"]

    def _shown(
        self, window: Window, kept: Mapping[int, list[NDArray[np.uint8]]], skipped_regions: int
    ) -> Iterator[WindowFrames]:
        for number, name in list(enumerate(self.regions))[skipped_regions:]:
            frames = [kept[place][number] for place in window.frames.tolist()]
            yield WindowFrames(region=name, window=window, frames=np.stack(frames))


def _pauses_s(ticks: NDArray[np.int64], timing: Timing) -> float:
    interval = float(timing.interval)
    apart = np.diff(ticks) * float(timing.time_base)
    pauses = apart[apart > max(_PAUSE_S, _PAUSE_FRAMES * interval)]
    return round(float((pauses - interval).sum()), 3)


class _Windows:
    """The windows that have begun and not ended, and the frames that they share.

    Args:
        windows: all, in order.
        passed_over: how many, from the first, are not wanted.

    Attributes:
        gaps: windows so far that hold no frame.
    """

    def __init__(self, windows: Iterator[Window], passed_over: int) -> None:
        self._coming = windows
        self._next = next(windows, None)
        self._count = 0
        self._passed_over = passed_over
        self._open: deque[Window] = deque()
        self._kept: dict[int, list[NDArray[np.uint8]]] = {}
        self._wanted_by: Counter[int] = Counter()
        self.gaps = 0

    def want(self, place: int) -> bool:
        """Whether a window takes the frame at this place; asked for in order, ahead of what has ended if need be."""
        while self._next is not None and self._next.first <= place:
            if self._count >= self._passed_over:
                self._open.append(self._next)
                self._wanted_by.update(np.unique(self._next.frames).tolist())
            self._count += 1
            self.gaps = self._next.number + 1 - self._count
            self._next = next(self._coming, None)
        return place in self._wanted_by

    def keep(self, place: int, parts: list[NDArray[np.uint8]]) -> None:
        """Keeps a frame, cut to each region, until the last window that takes it has ended."""
        self._kept[place] = parts

    def ended(self, place: int) -> Iterator[tuple[Window, Mapping[int, list[NDArray[np.uint8]]]]]:
        """Yields the windows that hold no frame from this place on, with the frames kept."""
        while self._open and self._open[0].stop <= place:
            window = self._open.popleft()
            yield window, self._kept
            for taken in np.unique(window.frames).tolist():
                self._wanted_by[taken] -= 1
                if not self._wanted_by[taken]:
                    del self._wanted_by[taken], self._kept[taken]
