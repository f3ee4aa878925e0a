"""Window scores to incidents: pure arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tillwatch.clip_spec import UNREACHED, Roi
from tillwatch.errors import ConfigError

_SAME_PLACE = 0.5  # of the smaller region, from which on two regions see the same


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """A window and what the model says of it.

    Attributes:
        start_s, end_s: in seconds of the recording.
        score: calibrated event probability.
        label: the most probable of the event's classes.
    """

    start_s: float
    end_s: float
    score: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What makes an incident of windows.

    Attributes:
        threshold: smoothed score that starts an incident: from 0, which every window reaches, to
            :data:`tillwatch.clip_spec.UNREACHED`, which none does.
        release: share of the threshold that every window of an incident reaches, in (0, 1].
        smoothing: windows that a score is the mean of, an odd number: itself and as many before as after.
        min_seconds: incidents that are shorter are dropped.
        merge_gap: incidents of a region that are at most so many seconds apart are one.
    """

    threshold: float
    release: float = 0.8
    smoothing: int = 1
    min_seconds: float = 0.0
    merge_gap: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= UNREACHED:
            raise ConfigError(f"--threshold is {self.threshold:g}; it must be over 0 and at most 1.")
        if not 0 < self.release <= 1:
            raise ConfigError(f"--release is {self.release:g}; it must be over 0 and at most 1.")
        if self.smoothing < 1 or self.smoothing % 2 == 0:
            raise ConfigError(f"--smoothing is {self.smoothing}; it must be an odd number of windows.")
        for name, value in (("--min-seconds", self.min_seconds), ("--merge-gap", self.merge_gap)):
            if not 0 <= value < float("inf"):
                raise ConfigError(f"{name} is {value:g}; it must be a number of seconds, at least 0.")

    def at(self, threshold: float) -> Rule:
        """Returns the same rule with another threshold."""
        return replace(self, threshold=threshold)


@dataclass(frozen=True, kw_only=True)
class Incident:
    """Windows that belong together.

    Attributes:
        start_s: of its first window, in seconds of the recording.
        end_s: of its last window.
        alert_s: when the recording had been seen far enough for an alarm.
        peak: the highest smoothed score.
        peak_s: the middle of the window that has it.
        mean: of the smoothed scores.
        windows: how many it is made of.
        label: the event's class at the peak.
        regions: where it was seen.
    """

    start_s: float
    end_s: float
    alert_s: float
    peak: float
    peak_s: float
    mean: float
    windows: int
    label: str
    regions: tuple[str, ...] = ()


def find_incidents(windows: Sequence[Scored], rule: Rule) -> list[Incident]:
    """Returns the incidents of one region of one recording, in time.

    Scores are smoothed over windows without a gap between them. An incident is a run of such windows that all reach
    the release, one of which reaches the threshold. Runs up to ``merge_gap`` apart are joined; then those shorter than
    ``min_seconds`` go.

    Args:
        windows: in time.
        rule: what makes an incident of them.
    """
    found: list[Incident] = []
    for stretch in _stretches(windows):
        smoothed = smooth([window.score for window in stretch], rule.smoothing)
        for run in _runs(smoothed >= rule.release * rule.threshold):
            if smoothed[run].max() >= rule.threshold:
                found.append(_incident(stretch, smoothed, run, rule))
    joined: list[Incident] = []
    for incident in found:
        if joined and incident.start_s - joined[-1].end_s <= rule.merge_gap:
            incident = _joined([joined.pop(), incident])
        joined.append(incident)
    return [incident for incident in joined if incident.end_s - incident.start_s >= rule.min_seconds]


def incidents_of_regions(
    windows: Mapping[str, Sequence[Scored]], boxes: Mapping[str, Roi], rule: Rule
) -> list[Incident]:
    """Returns the incidents of one recording, in time: those that overlap in time and in the picture are one.

    Two regions see the same where they share half of the smaller one or more.

    Args:
        windows: of each region by name.
        boxes: where each region lies.
        rule: what makes an incident of windows.
    """
    lots: list[list[Incident]] = []
    for name, of_region in windows.items():
        for incident in find_incidents(of_region, rule):
            incident = replace(incident, regions=(name,))
            same = [lot for lot in lots if any(_seen_twice(incident, other, boxes) for other in lot)]
            lots = [lot for lot in lots if lot not in same]
            lots.append([*(other for lot in same for other in lot), incident])
    return sorted(map(_joined, lots), key=lambda incident: (incident.start_s, incident.regions))


def smooth(scores: Sequence[float], width: int) -> NDArray[np.float64]:
    """Returns the mean of each score and its neighbours, of those that there are at the ends.

    Args:
        scores: of windows without a gap between them, ``(N,)``.
        width: an odd number; 1 changes nothing.
    """
    values = np.asarray(scores, np.float64)
    if width == 1:
        return values
    half = width // 2
    return np.array([values[max(0, place - half) : place + half + 1].mean() for place in range(len(values))])


def _stretches(windows: Sequence[Scored]) -> Iterator[Sequence[Scored]]:
    """Divides windows where there is a gap between two."""
    begin = 0
    for place in range(1, len(windows) + 1):
        if place == len(windows) or windows[place].start_s > windows[place - 1].end_s:
            yield windows[begin:place]
            begin = place


def _runs(reached: NDArray[np.bool_]) -> Iterator[slice]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], reached, [False]]).astype(np.int8)))
    for begin, stop in edges.reshape(-1, 2).tolist():
        yield slice(begin, stop)


def _incident(stretch: Sequence[Scored], smoothed: NDArray[np.float64], run: slice, rule: Rule) -> Incident:
    windows, scores = stretch[run], smoothed[run]
    peak = int(scores.argmax())
    first_over = run.start + int(np.argmax(scores >= rule.threshold))
    known = min(first_over + rule.smoothing // 2, len(stretch) - 1)  # smoothing looks at windows to come
    return Incident(
        start_s=windows[0].start_s,
        end_s=windows[-1].end_s,
        alert_s=stretch[known].end_s,
        peak=float(scores[peak]),
        peak_s=(windows[peak].start_s + windows[peak].end_s) / 2,
        mean=float(scores.mean()),
        windows=len(windows),
        label=windows[peak].label,
    )


def _joined(incidents: Sequence[Incident]) -> Incident:
    if len(incidents) == 1:
        return incidents[0]
    highest = max(incidents, key=lambda incident: incident.peak)
    windows = sum(incident.windows for incident in incidents)
    return replace(
        highest,
        start_s=min(incident.start_s for incident in incidents),
        end_s=max(incident.end_s for incident in incidents),
        alert_s=min(incident.alert_s for incident in incidents),
        mean=sum(incident.mean * incident.windows for incident in incidents) / windows,
        windows=windows,
        regions=tuple(dict.fromkeys(name for incident in incidents for name in incident.regions)),
    )


def _seen_twice(a: Incident, b: Incident, boxes: Mapping[str, Roi]) -> bool:
    together = a.start_s < b.end_s and b.start_s < a.end_s
    return together and any(
        one != other and _shared(boxes[one], boxes[other]) >= _SAME_PLACE for one in a.regions for other in b.regions
    )


def _shared(a: Roi, b: Roi) -> float:
    """Returns how much of the smaller region lies in the other."""
    width = min(a.x + a.width, b.x + b.width) - max(a.x, b.x)
    height = min(a.y + a.height, b.y + b.height) - max(a.y, b.y)
    return max(0.0, width) * max(0.0, height) / min(a.width * a.height, b.width * b.height)
