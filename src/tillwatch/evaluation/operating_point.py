"""The threshold: chosen on clips that no test figure comes from, then measured on the test. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tillwatch.clip_spec import UNREACHED
from tillwatch.errors import DataError
from tillwatch.evaluation.numbers import counted, readable, readable_hours


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A threshold and how it came about, in words."""

    threshold: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Alarms:
    """False alarms an hour of normal footage.

    Attributes:
        count: false alarms seen; of repeats of a cross-validation, their mean.
        hours: of normal footage they were seen in.
        per_hour: the one by the other.
        low, high: exact 95 % Poisson interval (Garwood, 1936); with no false alarm ``high`` is the
            one-sided 95 % bound.
    """

    count: float
    hours: float
    per_hour: float
    low: float
    high: float

    @property
    def bounds(self) -> str:
        """Returns the interval to read."""
        if not self.count:
            return f"at most {readable(self.high)}"
        return f"{readable(self.low)} to {readable(self.high)}"


@dataclass(frozen=True, kw_only=True)
class ADay:
    """Alarms a day of one camera, at the user's own share of events.

    Attributes:
        clips: that a day holds.
        prevalence: share of them that are events.
        events, true: such clips, and those of them that are alarms.
        false, false_low, false_high: false alarms, with the bounds of :class:`Alarms`.
        true_share, true_share_low, true_share_high: of all alarms, and with as many and as few false ones as
            those bounds allow; None if there is no alarm.
    """

    clips: float
    prevalence: float
    events: float
    true: float
    false: float
    false_low: float
    false_high: float
    true_share: float | None
    true_share_low: float | None
    true_share_high: float | None

    def __str__(self) -> str:
        bounds = f"at most {readable(self.false_high)}"
        if self.false:
            bounds = f"{readable(self.false_low)} to {readable(self.false_high)}"
        told = (
            f"{readable(self.true + self.false)} alarms, {readable(self.true)} of them true and "
            f"{readable(self.false)} false ({bounds}, 95 %)"
        )
        if self.true_share_low is None or self.true_share_high is None:
            return told
        low, high = 100 * self.true_share_low, 100 * self.true_share_high
        share = f"at least {readable(low)} %" if not self.false else f"{readable(low)} to {readable(high)} %"
        return f"{told}: {share} of all alarms would be true"


@dataclass(frozen=True, kw_only=True)
class AtPoint:
    """What a threshold does on labelled clips.

    Attributes:
        events, found: event clips, and those of them that reach the threshold.
        false_alarms: other clips that reach it.
        others: clips that are no event.
        recall, precision, f1: None where there is nothing to divide by.
        alarms: false alarms an hour; None where the hours are unknown.
    """

    events: int
    found: int
    others: int
    false_alarms: int
    recall: float | None
    precision: float | None
    f1: float | None
    alarms: Alarms | None


def choose_threshold(
    scores: NDArray[np.float64],
    is_event: NDArray[np.bool_],
    *,
    on: str = "validation",
    max_false_alarms_per_hour: float | None = None,
    min_recall: float | None = None,
    hours: float | None = None,
) -> Choice:
    """Chooses the event probability from which on a clip counts as the event.

    Thresholds lie half-way between scores that occur; clips of one score fall on one side together.

    Args:
        scores: float64 ``(N,)``, event probabilities in [0, 1].
        is_event: bool ``(N,)``.
        on: what the clips are, for the source: "validation" or "out-of-fold".
        max_false_alarms_per_hour: the most recall within this budget.
        min_recall: the fewest false alarms at this recall or more. With neither, the best F1.
        hours: of normal footage that the clips stand for; for the budget alone.

    Raises:
        DataError: if there is no event or nothing else among the clips, or a budget without hours.
    """
    events, others = int(is_event.sum()), int((~is_event).sum())
    where = f"{len(scores)} {on} clips, {events} of them events"
    if not events or not others:
        raise DataError(f"no operating point can be chosen on {where}; it takes events and others.")
    values = np.unique(scores)
    between = (values[1:] + values[:-1]) / 2
    between = np.where(between > values[:-1], between, values[1:])  # neighbouring floats have no middle
    thresholds = np.append(between, _above(float(values[-1])))
    thresholds = np.insert(thresholds, 0, values[0])  # all are alarms
    found = np.array([int((is_event & (scores >= threshold)).sum()) for threshold in thresholds])
    false = np.array([int((~is_event & (scores >= threshold)).sum()) for threshold in thresholds])

    if max_false_alarms_per_hour is not None:
        if hours is None or not hours > 0:
            raise DataError("--max-false-alarms-per-hour needs the hours of normal footage: give --normal-hours.")
        within = false <= max_false_alarms_per_hour * hours * (1 + 1e-12)
        best = _best(within, found, -false)
        told = (
            f"at most {max_false_alarms_per_hour:g} false alarms an hour in {readable_hours(hours)} of normal footage"
        )
        if not found[best]:
            told += "; no event stays found within that budget"
    elif min_recall is not None:
        best = _best(found >= min_recall * events * (1 - 1e-12), -false, -found)
        told = f"recall of at least {min_recall:g}"
    else:
        f1 = np.round(2 * found / (found + false + events), 12)
        best = _best(f1 == f1.max(), -false, found)
        told = "best F1"
    if len(values) == 1:
        told += "; all scores are equal, so no threshold tells anything apart"
    return Choice(
        threshold=float(thresholds[best]),
        source=f"{told}, chosen on {where}: {found[best]} of {events} found, {counted(false[best], 'false alarm')}",
    )


def measure(
    scores: NDArray[np.float64],
    is_event: NDArray[np.bool_],
    threshold: float | NDArray[np.float64],
    hours: float | None = None,
) -> AtPoint:
    """Measures what a threshold does on labelled clips.

    Args:
        scores: float64 ``(N,)``, event probabilities.
        is_event: bool ``(N,)``.
        threshold: a clip that reaches it is an alarm; float64 ``(N,)`` where each clip has its own.
        hours: of normal footage that the clips which are no event stand for.
    """
    alarm = scores >= threshold
    events, found, false = int(is_event.sum()), int((alarm & is_event).sum()), int((alarm & ~is_event).sum())
    return AtPoint(
        events=events,
        found=found,
        others=len(scores) - events,
        false_alarms=false,
        recall=found / events if events else None,
        precision=found / (found + false) if found + false else None,
        f1=2 * found / (found + false + events) if events else None,
        alarms=false_alarms_per_hour(false, hours) if hours and len(scores) > events else None,
    )


def false_alarms_per_hour(count: float, hours: float) -> Alarms:
    """Returns a rate with its exact Poisson interval; "0 in 3 h" carries an upper bound of 1 an hour."""
    low = float(stats.chi2.ppf(0.025, 2 * count)) / 2 if count else 0.0
    high = float(stats.chi2.ppf(0.975 if count else 0.95, 2 * count + 2)) / 2
    return Alarms(count=count, hours=hours, per_hour=count / hours, low=low / hours, high=high / hours)


def most_per_hour(count: float, hours: float) -> float:
    """Returns the exact one-sided 95 % upper bound of a rate (Garwood, 1936)."""
    return float(stats.chi2.ppf(0.95, 2 * count + 2)) / 2 / hours


def expected_a_day(recall: float, others: int, alarms: Alarms, prevalence: float) -> ADay:
    """Returns what a camera would alarm at in a day, by the same hours that false alarms an hour rest on.

    A day holds 24 hours' worth of the clips that the hours were found to hold, a share of them events.

    Args:
        recall: share of events that are alarms.
        others: clips that are no event, which stand for the hours of ``alarms``.
        alarms: false alarms in those hours.
        prevalence: share of the user's own clips that are events.
    """
    clips = 24 * others / alarms.hours
    true = prevalence * recall * clips
    false, low, high = (24 * (1 - prevalence) * rate for rate in (alarms.per_hour, alarms.low, alarms.high))

    def share(false_alarms: float) -> float | None:
        return true / (true + false_alarms) if true + false_alarms else None

    return ADay(
        clips=clips,
        prevalence=prevalence,
        events=prevalence * clips,
        true=true,
        false=false,
        false_low=low,
        false_high=high,
        true_share=share(false),
        true_share_low=share(high),
        true_share_high=share(low),
    )


def _best(allowed: NDArray[np.bool_], *by: NDArray[np.int64]) -> int:
    """Returns the place that is greatest by the first, then the second; of equals, the highest threshold."""
    places = np.flatnonzero(allowed)
    return int(max(places, key=lambda place: (*(int(values[place]) for values in by), int(place))))


def _above(score: float) -> float:
    """Returns a threshold that no score reaches, in [0, 1] where that can be."""
    return min(1.0, (score + 1) / 2) if score < 1 else UNREACHED
