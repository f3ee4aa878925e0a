"""Times in the names that recorders and phones give, and what names have in common."""

from __future__ import annotations

from datetime import date, datetime

import pytest

from tillwatch.data.recordings import recorded, series


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("till2_20260301_0815.mp4", datetime(2026, 3, 1, 8, 15)),
        ("NVR_ch1_main_20260301081500_20260301082000.dav", datetime(2026, 3, 1, 8, 15)),
        ("IMG_20260301_081530.mp4", datetime(2026, 3, 1, 8, 15, 30)),
        ("PXL_20260301_081530123.mp4", datetime(2026, 3, 1, 8, 15, 30)),
        ("2026-03-01_08-15-30", datetime(2026, 3, 1, 8, 15, 30)),
        ("cam 2026-03-01T08:15:30.mkv", datetime(2026, 3, 1, 8, 15, 30)),
    ],
)
def test_names_of_recorders_tell_the_time(name: str, start: datetime) -> None:
    at = recorded(name, 2.0)
    assert at is not None
    assert at.start == start
    assert at.day == start.date()


def test_a_second_time_is_the_end_else_the_length_is() -> None:
    told = recorded("NVR_ch1_main_20260301081500_20260301082000.dav", 2.0)
    measured = recorded("till2_20260301_0815.mp4", 90.0)
    assert told is not None
    assert measured is not None
    assert told.end == datetime(2026, 3, 1, 8, 20)
    assert measured.end == datetime(2026, 3, 1, 8, 16, 30)
    assert told.overlaps(measured)
    later = recorded("till2_20260301_0821.mp4", 90.0)
    assert later is not None
    assert not told.overlaps(later)


def test_a_day_alone_a_container_and_nothing() -> None:
    day = recorded("till_20260301.mp4", 2.0)
    assert day is not None
    assert (day.day, day.start) == (date(2026, 3, 1), None)
    container = recorded("a.mp4", 2.0, "2019-02-21T12:08:23.000000Z")
    assert container is not None
    assert container.start == datetime(2019, 2, 21, 12, 8, 23)
    for name in ("fi001.mp4", "till2_0815", "20261301_0815.mp4", "20260231_081500.mp4", "12345678901234567.mp4"):
        assert recorded(name, 2.0) is None, name


def test_series_is_what_is_left_without_times_and_the_last_number() -> None:
    assert series("monday_shift_clip03.mp4") == series("monday_shift_clip11.mp4") == "monday_shift"
    assert series("fi001.mp4") == "fi"
