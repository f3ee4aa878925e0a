"""Which frames of a recording make which window: arithmetic on timestamps alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from tillwatch.clip_spec import frame_indices
from tillwatch.errors import ConfigError

_JITTER_S = 1  # back by less is a muxer's jitter, back by more a clock that was set or wrapped
_SHORTEST_S = Fraction(1, 1000)  # of a window and a stride
_LEAP_S = 24 * 3600  # no recorder leaves a longer gap within one file


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Where windows lie: every ``stride`` seconds one of ``length`` seconds, the first at the first frame.

    Attributes:
        length, stride: in seconds, exact.
    """

    length: Fraction
    stride: Fraction

    def __post_init__(self) -> None:
        shortest = f"{float(_SHORTEST_S):g}"
        if self.length < _SHORTEST_S:
            raise ConfigError(f"--window is {float(self.length):g}; it must be at least {shortest} seconds.")
        if not _SHORTEST_S <= self.stride <= self.length:
            raise ConfigError(
                f"--stride is {float(self.stride):g}; it must be at least {shortest} and at most the window's "
                f"{float(self.length):g} s, or footage between windows is never looked at."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """What one forward pass sees.

    Attributes:
        number: its place in the grid, from 0; windows without a frame are left out, so numbers may be missing.
        start, end: in seconds since the recording's first frame; a frame at ``start`` belongs to it, one at ``end``
            does not.
        first, stop: the frames in between are those from ``first`` to ``stop - 1``.
        available: how many of them the frame step leaves.
        frames: int64 ``(num_frames,)``, those to be taken, ascending; some stand there twice if few are available.
    """

    number: int
    start: Fraction
    end: Fraction
    first: int
    stop: int
    available: int
    frames: NDArray[np.int64]


def seconds_exactly(seconds: float) -> Fraction:
    """Returns a number of seconds as it is written: 3.2 is 16/5, not the binary fraction beside it.

    Raises:
        ConfigError: if it is not finite.
    """
    if not math.isfinite(seconds):
        raise ConfigError(f"{seconds} is no number of seconds.")
    return Fraction(repr(seconds))


class Clock:
    """Tells when each frame is shown, in whole units of ``time_base`` since the first, never going back.

    - A frame without timestamp comes one ``interval`` after the one before.
    - A timestamp up to one second earlier than the one before is jitter: both frames are of one moment.
    - One that is still earlier, or more than a day later, is that of a clock which was set or wrapped: the frame comes
      one ``interval`` after the one before, and all that follow keep their distance from it.
    - All other leaps forward are gaps in the recording, and stay.

    Args:
        time_base: seconds a unit.
        interval: seconds between two frames, where the timestamps do not tell.
    """

    def __init__(self, time_base: Fraction, interval: Fraction) -> None:
        self._step = max(1, round(interval / time_base))
        self._jitter, self._leap = _JITTER_S / time_base, _LEAP_S / time_base
        self._now = -self._step
        self._offset: int | None = None

    def shown(self, stamp: int | None) -> int:
        """Returns when the next frame is shown; its timestamp may be None."""
        if stamp is None:
            self._now += self._step
            return self._now
        moved = 0 if self._offset is None else stamp + self._offset - self._now
        if self._offset is None or not -self._jitter <= moved <= self._leap:
            self._now += self._step
            self._offset = self._now - stamp
        else:
            self._now += max(0, moved)
        return self._now


def timeline(timestamps: Sequence[int | None], time_base: Fraction, interval: Fraction) -> NDArray[np.int64]:
    """Returns when each frame is shown, int64 ``(N,)``, by a :class:`Clock` of its own.

    Args:
        timestamps: of the frames in the order they are shown.
        time_base, interval: of the clock.
    """
    clock = Clock(time_base, interval)
    return np.fromiter((clock.shown(stamp) for stamp in timestamps), np.int64, len(timestamps))


def windows_of(
    ticks: NDArray[np.int64],
    time_base: Fraction,
    grid: Grid,
    *,
    every: int | Callable[[int, int], int],
    num_frames: int,
) -> Iterator[Window]:
    """Yields the windows of a recording in order, each with the frames that a clip cut there would give.

    Those are the frames with ``start <= t < end``, every ``every``-th from the first of them, then
    :func:`tillwatch.clip_spec.frame_indices`. The first window that holds the last frame is the last: a recording's
    end is seen once. Windows that fall into a gap hold no frame, and are left out.

    Args:
        ticks: int64 ``(N,)``, as :func:`timeline` returns it.
        time_base: seconds a tick.
        grid: where windows lie.
        every: the frame step, or what tells that of the frames from ``first`` to ``stop - 1``.
        num_frames: to be taken of each window.
    """
    number = 0
    while len(ticks):
        start = number * grid.stride
        end = start + grid.length
        first, stop = np.searchsorted(ticks, [math.ceil(start / time_base), math.ceil(end / time_base)]).tolist()
        if first < stop:
            step = every if isinstance(every, int) else every(first, stop)
            available = -(-(stop - first) // step)
            frames = first + step * frame_indices(available, num_frames)
            yield Window(
                number=number, start=start, end=end, first=first, stop=stop, available=available, frames=frames
            )
        if stop == len(ticks):
            return
        number += 1
        if first == stop:  # over a gap at once: the first window that ends after the next frame
            after = int(ticks[stop]) * time_base - grid.length
            number = max(number, math.floor(after / grid.stride) + 1)
