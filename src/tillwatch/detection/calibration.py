"""The operating point of incidents: chosen on a scan and what really happened in it. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tillwatch.detection.results import Scan, alarms_of, scored
from tillwatch.detection.scoring import TrueEvent, match, seconds_far_from, thin
from tillwatch.errors import ConfigError, DataError
from tillwatch.evaluation.numbers import counted, readable_hours
from tillwatch.evaluation.operating_point import Choice

#: Share of the footage that may lie within incidents and far from events: under a low threshold all footage is one
#: incident, which finds every event and is no false alarm.
FAR_SHARE = 0.05


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a threshold is chosen by; with neither, the best F1.

    Attributes:
        max_false_alarms_per_hour: the most events found within this budget.
        min_recall: the fewest false alarms at this recall or more.
    """

    max_false_alarms_per_hour: float | None = None
    min_recall: float | None = None

    def __post_init__(self) -> None:
        budget, recall = self.max_false_alarms_per_hour, self.min_recall
        if budget is not None and recall is not None:
            raise ConfigError("--max-false-alarms-per-hour and --min-recall exclude each other; give one.")
        if budget is not None and not 0 <= budget < math.inf:
            raise ConfigError(f"--max-false-alarms-per-hour is {budget:g}; it must be a number, at least 0.")
        if recall is not None and not 0 < recall <= 1:
            raise ConfigError(f"--min-recall is {recall:g}; it must be a share above 0, at most 1.")

    def worth(self, found: int, false: int, events: int, hours: float) -> tuple[float, float] | None:
        """Returns how good it is to find so many events at so many false alarms; None if it will not do."""
        if self.max_false_alarms_per_hour is not None:
            return (found, -false) if false <= self.max_false_alarms_per_hour * hours * (1 + 1e-12) else None
        if self.min_recall is not None:
            return (-false, found) if found >= self.min_recall * events * (1 - 1e-12) else None
        # An event that is found counts as one right alarm, however often it is.
        return round(2 * found / (found + false + events), 12), -false

    def __str__(self) -> str:
        if self.max_false_alarms_per_hour is not None:
            return f"at most {self.max_false_alarms_per_hour:g} false alarms an hour"
        return "best F1" if self.min_recall is None else f"recall of at least {self.min_recall:g}"


def choose_point(scan: Scan, events: Sequence[TrueEvent], goal: Goal) -> Choice:
    """Chooses the threshold of incidents by the scan's own rule otherwise.

    Thresholds lie half-way between scores of windows that occur. Those are refused under which more than
    :data:`FAR_SHARE` of the footage lies within incidents and more than a window away from every event. Of thresholds
    that do the same, the highest is taken.

    Args:
        scan: of footage that the model was not trained on.
        events: all that happened in it.
        goal: what it is chosen by.

    Raises:
        DataError: if there is no event, or no threshold does what is asked for and finds any.
    """
    if not events:
        raise DataError("the footage scanned holds no event, so nothing can be chosen on it.")
    best: tuple[tuple[float, float], float, int, int] | None = None
    fewest, most = math.inf, 0  # false alarms with an event found, and events found
    for threshold in _thresholds(scan):
        alarms = alarms_of(scan.incidents(scan.rule.at(threshold)))
        matches = match(alarms, events)
        found, false = sum(delay is not None for delay in matches.delays_s), matches.right.count(False)
        worth = goal.worth(found, false, len(events), scan.hours)
        far = seconds_far_from(alarms, events, scan.window_s)
        if not found or far > FAR_SHARE * 3600 * scan.hours:
            continue
        fewest, most = min(fewest, false), max(most, found)
        if worth is None:
            continue
        if best is None or worth > best[0]:
            best = worth, threshold, found, false
    if best is None:
        raise DataError(
            f"no threshold gives {goal}, finds an event and leaves {1 - FAR_SHARE:.0%} of the footage far from events "
            "free of incidents; nothing was changed."
            + (f" What can be had: {fewest / scan.hours:.3g} false alarms an hour, or {most} events." if most else "")
        )
    _, threshold, found, false = best
    rule = scan.rule
    return Choice(
        threshold=threshold,
        source=(
            f"{goal}, chosen on incidents in {readable_hours(scan.hours)} of {counted(len(scan.recordings), 'file')}: "
            f"{found} of {len(events)} events found, {counted(false, 'false alarm')} (windows of {scan.window_s:g} s "
            f"every {scan.stride_s:g} s, release {rule.release:g}, smoothing {rule.smoothing}, "
            f"merge gap {rule.merge_gap:g} s)"
        ),
    )


def _thresholds(scan: Scan) -> list[float]:
    """Returns thresholds to try, falling."""
    every = [scored(score, scan.classes, scan.event).score for one in scan.recordings for score in one.scores]
    values = np.unique(np.asarray(every, np.float64))
    values = thin(np.append(values[:1], (values[1:] + values[:-1]) / 2))
    return [value for value in values.tolist() if 0 < value <= 1]
