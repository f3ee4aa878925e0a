"""Window arithmetic: the frames of a window are those of a clip cut there."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tillwatch.clip_spec import frame_indices
from tillwatch.detection.windows import Grid, Window, seconds_exactly, timeline, windows_of
from tillwatch.errors import ConfigError

MS = Fraction(1, 1000)


def grid(length: float, stride: float) -> Grid:
    return Grid(length=seconds_exactly(length), stride=seconds_exactly(stride))


def windows(
    ticks: Sequence[int], length: float, stride: float, every: int = 1, num_frames: int = 4, time_base: Fraction = MS
) -> list[Window]:
    of = windows_of(np.array(ticks, np.int64), time_base, grid(length, stride), every=every, num_frames=num_frames)
    return list(of)


def spans(found: Sequence[Window]) -> list[tuple[int, int, int]]:
    return [(window.number, window.first, window.stop) for window in found]


@pytest.mark.parametrize(
    ("ticks", "length", "stride", "expected"),
    [
        # ten frames a second: a frame at the end of a window belongs to the next
        (range(0, 3000, 100), 1, 0.5, [(0, 0, 10), (1, 5, 15), (2, 10, 20), (3, 15, 25), (4, 20, 30)]),
        # the last window is the first that holds the last frame, though it ends after it
        (range(0, 2100, 100), 1, 1, [(0, 0, 10), (1, 10, 20), (2, 20, 21)]),
        # shorter than one window
        (range(0, 300, 100), 1, 0.5, [(0, 0, 3)]),
        ([0], 1, 0.5, [(0, 0, 1)]),
        ([], 1, 0.5, []),
        # a gap of ten seconds: windows in it hold nothing and are left out
        ([0, 100, 200, 10_000, 10_100], 1, 0.5, [(0, 0, 3), (19, 3, 5)]),
        # a gap shorter than the window
        ([0, 100, 900, 1000], 1, 0.5, [(0, 0, 3), (1, 2, 4)]),
        # two frames of one moment
        ([0, 500, 500, 900], 1, 0.5, [(0, 0, 4)]),
    ],
)
def test_which_frames_lie_in_which_window(
    ticks: Sequence[int], length: float, stride: float, expected: list[tuple[int, int, int]]
) -> None:
    assert spans(windows(ticks, length, stride)) == expected


def test_frames_are_stepped_from_the_windows_first_and_then_spread() -> None:
    first, second, *_ = windows(range(0, 4000, 100), 2, 1, every=3, num_frames=4)
    assert first.available == 7  # 0, 3, ..., 18
    assert first.frames.tolist() == [0, 6, 12, 18]
    assert second.frames.tolist() == [10, 16, 22, 28]  # from its own first frame, as a clip cut there


def test_a_window_of_few_frames_repeats_them() -> None:
    (only,) = windows([0, 100], 2, 1, num_frames=5)
    assert only.frames.tolist() == [0, 0, 0, 0, 1]


def test_two_hours_at_29_97_drift_by_no_frame() -> None:
    time_base, frames = Fraction(1, 30_000), 215_784
    found = windows(range(0, 1001 * frames, 1001), 6.4, 3.2, time_base=time_base)
    for window in found[:: len(found) // 20]:
        exact = window.start / Fraction(1001, 30_000)
        assert window.first == -(-exact.numerator // exact.denominator)
    assert found[-1].start == Fraction("7193.6")


@settings(deadline=None, max_examples=60)
@given(
    gaps=st.lists(st.integers(0, 3000), max_size=30),
    length=st.integers(200, 4000),
    share=st.fractions(Fraction(1, 5), 1),
    every=st.integers(1, 7),
    num_frames=st.integers(1, 9),
)
def test_a_window_takes_what_a_clip_cut_there_would(
    gaps: list[int], length: int, share: Fraction, every: int, num_frames: int
) -> None:
    ticks = np.concatenate([[0], np.cumsum(gaps)]).astype(np.int64)
    where = Grid(length=length * MS, stride=length * MS * share)
    found = list(windows_of(ticks, MS, where, every=every, num_frames=num_frames))
    by_number = {window.number: window for window in found}
    last = next(n for n in range(10**6) if int(ticks[-1]) * MS < n * where.stride + where.length)
    assert found[-1].number == last
    for number in range(last + 1):
        start = number * where.stride
        cut = [place for place, t in enumerate(ticks.tolist()) if start <= t * MS < start + where.length]
        if not cut:
            assert number not in by_number
            continue
        stepped = cut[::every]
        clip = [stepped[index] for index in frame_indices(len(stepped), num_frames)]
        assert by_number[number].frames.tolist() == clip
        assert by_number[number].available == len(stepped)
        assert (by_number[number].start, by_number[number].end) == (start, start + where.length)


@pytest.mark.parametrize(
    ("stamps", "expected"),
    [
        ([0, 40, 80], [0, 40, 80]),
        ([5000, 5040, 5080], [0, 40, 80]),  # counted from the first
        ([-80, -40, 0], [0, 40, 80]),
        ([None, None, None], [0, 40, 80]),
        ([0, None, 100], [0, 40, 100]),
        ([0, 33, 100, 900], [0, 33, 100, 900]),  # a variable rate, and a gap
        ([0, 40, 3_600_000], [0, 40, 3_600_000]),  # an hour's gap
        ([0, 40, 30, 80], [0, 40, 40, 80]),  # jitter
        ([90_000, 90_040, 0, 40, 100], [0, 40, 80, 120, 180]),  # wrapped
        ([0, 40, 10**9, 10**9 + 40], [0, 40, 80, 120]),  # eleven days: a clock that was set
        ([None, 500, 540], [0, 40, 80]),
        ([], []),
    ],
)
def test_a_timeline_never_goes_back(stamps: list[int | None], expected: list[int]) -> None:
    assert timeline(stamps, MS, Fraction(1, 25)).tolist() == expected


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), st.integers(-(2**40), 2**40)), max_size=40))
def test_a_timeline_starts_at_0_and_rises(stamps: list[int | None]) -> None:
    ticks = timeline(stamps, MS, Fraction(1, 25))
    assert len(ticks) == len(stamps)
    assert not len(ticks) or ticks[0] == 0
    assert (np.diff(ticks) >= 0).all()


@pytest.mark.parametrize(
    ("length", "stride", "message"),
    [(0, 1, "--window is 0"), (2, 0, "--stride is 0"), (2, 3, "--stride is 3"), (2, -1, "--stride is -1")],
)
def test_a_grid_leaves_no_footage_out(length: float, stride: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        grid(length, stride)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_seconds_are_finite(value: float) -> None:
    with pytest.raises(ConfigError, match="no number of seconds"):
        seconds_exactly(value)
