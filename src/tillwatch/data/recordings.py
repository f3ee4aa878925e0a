"""When a clip was recorded, as recorders and phones write it into file names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, datetime, timedelta

# 20260301_0815, 20260301081500, 2026-03-01_08-15-00, 20260301_081500123; the time may be missing.
_STAMP = re.compile(
    r"(?<!\d)(?P<year>(?:19|20)\d\d)(?P<by>[-_.]?)(?P<month>0[1-9]|1[0-2])(?P=by)(?P<day>0[1-9]|[12]\d|3[01])"
    r"(?:[-_.T ]{0,3}(?P<hour>[01]\d|2[0-3])[-_.:h]?(?P<minute>[0-5]\d)"
    r"(?:[-_.:m]?(?P<second>[0-5]\d)(?:\d{3})?)?)?(?!\d)"
)


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """When a clip was recorded.

    Attributes:
        day: of its beginning.
        start, end: to the second; None if only the day is known.
    """

    day: date
    start: datetime | None
    end: datetime | None

    def overlaps(self, other: Recorded) -> bool:
        """Whether both were recorded at the same time, for a while."""
        if self.start is None or self.end is None or other.start is None or other.end is None:
            return False
        return self.start < other.end and other.start < self.end


def recorded(name: str, seconds: float | None, created: str | None = None) -> Recorded | None:
    """Returns when a clip was recorded, by its file name, else by what its container says; None if neither tells.

    Args:
        name: of the file or folder. Of two times in it, the second is taken for the end.
        seconds: how long the clip lasts.
        created: the container's creation_time.
    """
    stamps = [stamp for match in _STAMP.finditer(name) if (stamp := _stamp(match)) is not None]
    if not stamps and created is not None:
        stamps = [stamp for match in _STAMP.finditer(created) if (stamp := _stamp(match)) is not None]
    if not stamps:
        return None
    day, start = stamps[0]
    if start is None:
        return Recorded(day=day, start=None, end=None)
    end = start + timedelta(seconds=seconds or 0)
    if len(stamps) > 1 and (told := stamps[1][1]) is not None and told > start:
        end = told
    return Recorded(day=day, start=start, end=end)


def series(name: str) -> str:
    """Returns a file's name without its ending, times and last number: what clips of one recording have in common."""
    stem = _STAMP.sub("", name.rsplit(".", 1)[0] if "." in name else name)
    return re.sub(r"[-_. ]*(?:clip|part|cut|scene)?[-_. ]*\(?\d+\)?$", "", stem, flags=re.IGNORECASE).strip("-_. ")


def without_times(name: str) -> str:
    """Returns a file's name without its ending and the times in it: what a recorder's files of one camera share."""
    stem = name.rsplit(".", 1)[0] if "." in name else name
    return _STAMP.sub("", stem).strip("-_. ")


def camera_of(path: str) -> str:
    """Returns the camera that a clip's file is named after; empty if its name holds no time, as a recorder's does."""
    name = path.rsplit("/", 1)[-1]
    return without_times(name) if _STAMP.search(name) is not None else ""


def _stamp(match: re.Match[str]) -> tuple[date, datetime | None] | None:
    year, month, day = (int(match[part]) for part in ("year", "month", "day"))
    try:
        if match["hour"] is None:
            return date(year, month, day), None
        start = datetime(year, month, day, int(match["hour"]), int(match["minute"]), int(match["second"] or 0))
    except ValueError:  # the 31st of February
        return None
    return start.date(), start
