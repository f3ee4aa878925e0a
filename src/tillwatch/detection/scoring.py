"""Incidents against the truth: what was found, how soon, and at how many false alarms. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tillwatch.evaluation.intervals import Interval, group_interval
from tillwatch.evaluation.numbers import counted
from tillwatch.evaluation.operating_point import Alarms, false_alarms_per_hour, most_per_hour

#: Stated wherever the figures are.
MATCHING = (
    "an incident and an event match if they lie in one file, in one region where both name any, and overlap in time "
    "(the whole picture names no region); "
    "an event that any incident matches is found, an incident that matches no event is a false alarm, "
    "and further incidents on an event already found are counted as repeats, not as false alarms"
)

_CURVE_POINTS = 200


@dataclass(frozen=True, kw_only=True)
class TrueEvent:
    """What really happened: where and when, in seconds of the file. An empty region means any."""

    file: str
    start_s: float
    end_s: float
    region: str = ""
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """An incident as its table has it.

    Attributes:
        file: the recording.
        start_s, end_s: in seconds of it.
        regions: where it was seen; none means anywhere.
        alert_s: when an alarm could be given; the incident's end where nothing tells.
        peak: its score; None where nothing tells.
    """

    file: str
    start_s: float
    end_s: float
    regions: tuple[str, ...] = ()
    alert_s: float | None = None
    peak: float | None = None


@dataclass(frozen=True, kw_only=True)
class Matches:
    """Which incidents go with which events.

    Attributes:
        delays_s: of each event, the seconds from its start to the first alert of an incident that matches it; below 0
            where the alert came first, None if no incident matches.
        right: of each incident, whether it matches an event.
        repeats: incidents that match only events which an earlier one had found.
    """

    delays_s: tuple[float | None, ...]
    right: tuple[bool, ...]
    repeats: int


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """What a threshold does; the last two are None where the hours are unknown.

    The share of the footage within incidents tells a threshold under which all of it is one incident, which is right.
    """

    threshold: float
    recall: float | None
    precision: float | None
    false_alarms: int
    false_alarms_per_hour: float | None
    alarm_share: float | None


@dataclass(frozen=True, kw_only=True)
class IncidentScore:
    """What incidents are worth.

    Attributes:
        events, found: events, and those found.
        incidents, false_alarms, repeats: incidents, and those of them that are no event or one already found.
        recall, precision: None where there is nothing to divide by.
        recall_interval: on other recordings, 95 %, by file; None below ten files with events.
        alarms: false alarms per camera-hour, with their interval; None where the hours are unknown.
        at_most_per_hour: their one-sided 95 % upper bound.
        alarm_share: share of the hours that lies within incidents; an incident that never ends finds everything.
        delay_median_s, delay_most_s: from an event's start to the alert, of the events found.
        missed: the events that were not found.
        curve: over thresholds, falling.
    """

    events: int
    found: int
    incidents: int
    false_alarms: int
    repeats: int
    recall: float | None
    precision: float | None
    recall_interval: Interval | None
    alarms: Alarms | None
    at_most_per_hour: float | None
    alarm_share: float | None
    delay_median_s: float | None
    delay_most_s: float | None
    missed: tuple[TrueEvent, ...]
    curve: tuple[CurvePoint, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns it with the rule that it was matched by."""
        return {"matching": MATCHING, **asdict(self)}

    def lines(self) -> list[str]:
        """Returns it to read."""
        return [*self._figures(), *(_missed_line(event) for event in self.missed), *self._curve_table()]

    def _figures(self) -> list[str]:
        around = self.recall_interval
        interval = "" if around is None else f" (95 %, by file: {around.low:.3f} to {around.high:.3f})"
        lines = [f"recall {_share(self.recall)}{interval}: {self.found} of {self.events} events found"]
        lines.append(
            f"precision {_share(self.precision)}: {counted(self.incidents, 'incident')}, among them "
            f"{counted(self.false_alarms, 'false alarm')} and {counted(self.repeats, 'repeat')} of events already found"
        )
        if self.alarms is None:
            lines.append("false alarms an hour: unknown, for nothing tells the hours of footage; give --hours")
        else:
            rate = self.alarms
            lines.append(
                f"false alarms per camera-hour {rate.per_hour:.3g} ({rate.count:g} in {rate.hours:.3g} h; "
                f"95 % interval {rate.low:.3g} to {rate.high:.3g}; at most {self.at_most_per_hour:.3g}, one-sided)"
            )
            lines.append(f"{self.alarm_share:.1%} of the footage lies within incidents")
        if self.delay_median_s is not None:
            lines.append(
                f"delay from an event's start to the alert: median {self.delay_median_s:.1f} s, "
                f"longest {self.delay_most_s:.1f} s"
            )
        return [*lines, f"matching: {MATCHING}"]

    def _curve_table(self) -> list[str]:
        if not self.curve:
            return []
        rows = [self.curve[place] for place in np.unique(np.linspace(0, len(self.curve) - 1, 12).round().astype(int))]
        lines = ["", f"{'threshold':>9}  recall  precision  false alarms  an hour  within incidents"]
        for point in rows:
            rate = "-" if point.false_alarms_per_hour is None else f"{point.false_alarms_per_hour:.3g}"
            share = "-" if point.alarm_share is None else f"{point.alarm_share:.1%}"
            lines.append(
                f"{point.threshold:>9.4f}  {_share(point.recall):>6}  {_share(point.precision):>9}  "
                f"{point.false_alarms:>12}  {rate:>7}  {share:>16}"
            )
        return lines


def match(incidents: Sequence[Alarm], events: Sequence[TrueEvent], tolerance_s: float = 0.0) -> Matches:
    """Says which incidents go with which events, by :data:`MATCHING`.

    Args:
        incidents: in any order.
        events: in any order.
        tolerance_s: an event is taken to begin so much earlier and to end so much later.
    """
    delays: list[float | None] = [None] * len(events)
    right = [False] * len(incidents)
    repeats = 0
    for place in sorted(range(len(incidents)), key=lambda place: _alert(incidents[place])):
        incident = incidents[place]
        of_it = [number for number, event in enumerate(events) if _matches(incident, event, tolerance_s)]
        right[place] = bool(of_it)
        repeats += bool(of_it) and all(delays[number] is not None for number in of_it)
        for number in of_it:
            if delays[number] is None:
                delays[number] = _alert(incident) - events[number].start_s
    return Matches(delays_s=tuple(delays), right=tuple(right), repeats=repeats)


def score_incidents(
    incidents: Sequence[Alarm],
    events: Sequence[TrueEvent],
    *,
    hours: float | None,
    tolerance_s: float = 0.0,
    at_threshold: Callable[[float], Sequence[Alarm]] | None = None,
    thresholds: Sequence[float] = (),
) -> IncidentScore:
    """Measures incidents against the truth.

    Args:
        incidents: what was found.
        events: what happened.
        hours: of camera footage that was looked at; None if unknown.
        tolerance_s: as :func:`match`.
        at_threshold: the incidents at another threshold; None takes those whose peak reaches it.
        thresholds: where to draw the curve; the peaks unless given.
    """
    matches = match(incidents, events, tolerance_s)
    found = np.array([delay is not None for delay in matches.delays_s], bool)
    false = matches.right.count(False)
    delays = [delay for delay in matches.delays_s if delay is not None]
    known = hours is not None and hours > 0
    return IncidentScore(
        events=len(events),
        found=int(found.sum()),
        incidents=len(incidents),
        false_alarms=false,
        repeats=matches.repeats,
        recall=float(found.mean()) if len(events) else None,
        precision=1 - false / len(incidents) if incidents else None,
        recall_interval=_recall_interval(found, events),
        alarms=false_alarms_per_hour(false, hours) if known and hours else None,
        at_most_per_hour=most_per_hour(false, hours) if known and hours else None,
        alarm_share=_seconds_within(incidents) / 3600 / hours if known and hours else None,
        delay_median_s=float(np.median(delays)) if delays else None,
        delay_most_s=max(delays, default=None),
        missed=tuple(event for event, hit in zip(events, found, strict=True) if not hit),
        curve=tuple(_curve(incidents, events, hours, tolerance_s, at_threshold, thresholds)),
    )


def thin(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the scores that occur, falling, at most 200 of them: the highest whole, the lower the sparser.

    In hours of footage nearly all windows score low, and what matters lies above.
    """
    values: NDArray[np.float64] = np.unique(scores)[::-1]
    if len(values) > _CURVE_POINTS:
        values = values[np.unique(np.geomspace(1, len(values), _CURVE_POINTS).round().astype(int)) - 1]
    return values


def _curve(
    incidents: Sequence[Alarm],
    events: Sequence[TrueEvent],
    hours: float | None,
    tolerance_s: float,
    at_threshold: Callable[[float], Sequence[Alarm]] | None,
    thresholds: Sequence[float],
) -> list[CurvePoint]:
    peaks = [incident.peak for incident in incidents if incident.peak is not None]
    if at_threshold is None and len(peaks) < len(incidents):
        return []
    points = []
    for threshold in thin(np.asarray(thresholds if len(thresholds) else peaks, np.float64)).tolist():
        if at_threshold is None:
            there: Sequence[Alarm] = [one for one in incidents if one.peak is not None and one.peak >= threshold]
        else:
            there = at_threshold(threshold)
        matches = match(there, events, tolerance_s)
        false = matches.right.count(False)
        points.append(
            CurvePoint(
                threshold=threshold,
                recall=sum(d is not None for d in matches.delays_s) / len(events) if events else None,
                precision=1 - false / len(there) if there else None,
                false_alarms=false,
                false_alarms_per_hour=false / hours if hours else None,
                alarm_share=_seconds_within(there) / 3600 / hours if hours else None,
            )
        )
    return points


def seconds_far_from(incidents: Sequence[Alarm], events: Sequence[TrueEvent], margin_s: float) -> float:
    """Returns the time within incidents that is more than a margin away from every event of the file, in seconds."""
    far = 0.0
    for file in {incident.file for incident in incidents}:
        of_file = [incident for incident in incidents if incident.file == file]
        near = [
            Alarm(file=file, start_s=event.start_s - margin_s, end_s=event.end_s + margin_s)
            for event in events
            if event.file == file
        ]
        # Of both together, less of the margins alone: what incidents add to them.
        far += _seconds_within([*of_file, *near]) - _seconds_within(near)
    return far


def _matches(incident: Alarm, event: TrueEvent, tolerance_s: float) -> bool:
    return (
        incident.file == event.file
        and (not event.region or not incident.regions or event.region in incident.regions)
        and incident.start_s < event.end_s + tolerance_s
        and event.start_s - tolerance_s < incident.end_s
    )


def _alert(incident: Alarm) -> float:
    return incident.end_s if incident.alert_s is None else incident.alert_s


def _recall_interval(found: NDArray[np.bool_], events: Sequence[TrueEvent]) -> Interval | None:
    def recall(weights: NDArray[np.float64]) -> float:
        return float((weights * found).sum() / weights.sum()) if weights.sum() else float("nan")

    return group_interval(recall, [event.file for event in events]) if len(events) else None


def _seconds_within(incidents: Sequence[Alarm]) -> float:
    """Adds up the time within incidents, once where they overlap."""
    total = 0.0
    until: dict[str, float] = {}
    for incident in sorted(incidents, key=lambda one: (one.file, one.start_s)):
        begin = max(incident.start_s, until.get(incident.file, incident.start_s))
        total += max(0.0, incident.end_s - begin)
        until[incident.file] = max(until.get(incident.file, incident.end_s), incident.end_s)
    return total


def _missed_line(event: TrueEvent) -> str:
    where = f" {event.region}" if event.region else ""
    return f"missed: {event.file}{where}, {event.start_s:.1f} to {event.end_s:.1f} s"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
