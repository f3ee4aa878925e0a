"""The headline figures of scored clips with their intervals, calibration, and what the operating point does on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tillwatch.clip_spec import event_scores
from tillwatch.data.splits import n_groups
from tillwatch.evaluation import figures
from tillwatch.evaluation.calibration import Calibration, calibration
from tillwatch.evaluation.intervals import (
    MIN_GROUPS,
    Interval,
    Statistic,
    group_interval,
    least_groups,
    too_few,
    why_no_interval,
)
from tillwatch.evaluation.numbers import counted, readable, readable_hours
from tillwatch.evaluation.operating_point import ADay, AtPoint, expected_a_day, false_alarms_per_hour, measure

_SHORT = {"event_auroc": "AUROC", "event_average_precision": "average precision", "f1": "F1"}

_TRUSTED_FROM = 0.5  # of the hours told, in clips: below this, most of them nobody looked at

_A_DAY = (
    "alarms a day are 24 times the false alarms an hour, and what recall finds of {events} events: your prevalence of "
    "{clips} clips, as many as a day of those hours holds. The bounds are of the number of false alarms alone, as if "
    "each came by itself."
)

REPEATED = (
    "each figure is the mean of {repeats} repeats, counts are of all of them; intervals are of that mean, by group, "
    "with each clip once: repeats are no new clips."
)


@dataclass(frozen=True)
class Weighed:
    """A figure as a function of the clips' weights.

    Attributes:
        statistic: the function.
        kinds, ranking: as :func:`~tillwatch.evaluation.intervals.group_interval` takes them.
        rests_on: int64 ``(N,)``, further kinds of clips that must fall into enough groups: how precise alarms are
            rests on events and on others, whichever of them raise one.
    """

    statistic: Statistic
    kinds: NDArray[np.int64] | None = None
    ranking: bool = False
    rests_on: NDArray[np.int64] | None = None

    def interval(self, groups: Sequence[str]) -> Interval | None:
        """Returns its 95 % interval by group."""
        if self.rests_on is not None and least_groups(groups, self.rests_on) < MIN_GROUPS:
            return None
        return group_interval(self.statistic, groups, kinds=self.kinds, ranking=self.ranking)


@dataclass(frozen=True, kw_only=True)
class Footage:
    """What the clips stand for.

    Attributes:
        normal_hours: of footage without an event; None if unknown.
        hours_told: whether the user says so; otherwise they are the normal clips' own lengths.
        clip_hours: what the normal clips last, together; None if unknown.
        prevalence: share of the user's own clips that are events; None if not told.
    """

    normal_hours: float | None = None
    hours_told: bool = False
    clip_hours: float | None = None
    prevalence: float | None = None

    @property
    def basis(self) -> str | None:
        """Says what false alarms an hour rest on; None if the hours are unknown."""
        if not self.normal_hours:
            return None
        if not self.hours_told:
            return (
                "hours of normal footage are the normal clips' own lengths: false alarms an hour and a day assume that "
                "the rest of the day looks like these clips."
            )
        if self.clip_hours is not None and self.clip_hours >= _TRUSTED_FROM * self.normal_hours:
            return None
        lasts = (
            "nothing here tells how long the normal clips last"
            if self.clip_hours is None
            else f"the normal clips last {readable_hours(self.clip_hours)}"
        )
        return (
            f"the {readable_hours(self.normal_hours)} of normal footage are taken on trust, {lasts}: false alarms "
            "an hour and a day assume that these clips are all of those hours that could raise an alarm."
        )


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure, None where it cannot be computed, with its interval where there is one."""

    value: float | None
    interval: Interval | None = None

    def __str__(self) -> str:
        if self.value is None:
            return "not defined"
        around = "" if self.interval is None else f" ({self.interval.low:.3f} to {self.interval.high:.3f})"
        return f"{self.value:.3f}{around}"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What may be claimed of a set of scored clips.

    Attributes:
        figures: accuracy, balanced accuracy, event AUROC and average precision; the event's recall, precision and F1 at
            the threshold.
        calibration: of the event probability; None unless events and others occur.
        at_point: what the threshold does; counts are of all repeats, false alarms an hour their mean.
        alarms_a_day: for the user's own prevalence, one camera all day; None if that or the hours are unknown.
        sentences: what must stand beside the figures.
    """

    figures: dict[str, Figure]
    calibration: Calibration | None
    at_point: AtPoint
    alarms_a_day: ADay | None
    sentences: tuple[str, ...]

    def lines(self, threshold: float | None) -> list[str]:
        """Returns it to read, a line for each thing that is said; no threshold where each fold had its own."""
        where = "with each fold's own threshold" if threshold is None else f"from event probability {threshold:.4f} on"
        named = {name: str(figure) for name, figure in self.figures.items()}
        lines = [f"accuracy {named['accuracy']}, balanced accuracy {named['balanced_accuracy']}"]
        if self.calibration is not None:
            lines.append(f"event AUROC {named['event_auroc']}, average precision {named['event_average_precision']}")
            lines.append(
                f"calibration error {self.calibration.ece:.3f}; perfect scores would have "
                f"{self.calibration.ece_by_chance:.3f} on as many clips"
            )
        lines.append(f"{where}: recall {named['recall']}, precision {named['precision']}")
        if (alarms := self.at_point.alarms) is not None:
            lines.append(
                f"{counted(alarms.count, 'false alarm')} in {readable_hours(alarms.hours)} of normal footage: "
                f"{readable(alarms.per_hour)} an hour ({alarms.bounds}, 95 %)"
            )
        if self.alarms_a_day is not None:
            lines.append(f"at your prevalence, one camera all day: {self.alarms_a_day}")
        return [*lines, *(f"note: {sentence}" for sentence in self.sentences)]

    def without_claims(self, why: str) -> Summary:
        """Returns the figures alone, as of clips that the model learnt from: no interval, bound or rate, and why."""
        return replace(
            self,
            figures={name: Figure(value=figure.value) for name, figure in self.figures.items()},
            at_point=replace(self.at_point, alarms=None),
            alarms_a_day=None,
            sentences=tuple(filter(None, (why, too_few(self.at_point.events, self.at_point.others)))),
        )

    def to_json(self) -> dict[str, Any]:
        """Returns it as it stands in evaluation.json."""
        return asdict(self)


def summarize(
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    groups: Sequence[str],
    event_indices: Sequence[int],
    threshold: float | NDArray[np.float64],
    footage: Footage | None = None,
) -> Summary:
    """Computes the headline figures of scored clips.

    Args:
        labels: int64 ``(N,)``.
        probabilities: float64 ``(N, classes)``, calibrated; ``(R, N, classes)`` of a cross-validation's repeats.
        groups: of the clips.
        event_indices: columns whose sum is the event probability.
        threshold: the operating point; float64 ``(R, N)`` where each fold has its own.
        footage: what the clips stand for.
    """
    footage = footage or Footage()
    several = probabilities.reshape(-1, *probabilities.shape[-2:])
    repeats = len(several)
    is_event = np.isin(labels, list(event_indices))
    scores = event_scores(several, event_indices)
    thresholds = np.broadcast_to(np.asarray(threshold, dtype=np.float64), scores.shape)
    events, others = int(is_event.sum()), int((~is_event).sum())
    point = _at_point(scores, is_event, thresholds, footage.normal_hours)
    a_day = _a_day(point, footage, repeats)
    both = is_event.astype(np.int64)
    statistics = mean_statistics(labels, several, event_indices, thresholds)
    named = {name: figure_of(weighed, groups) for name, weighed in statistics.items()}
    sentences = (
        why_no_interval(groups) or _which_have_none(named, groups, both if events and others else None),
        too_few(events, others),
        footage.basis if point.alarms is not None else None,
        None if a_day is None else _A_DAY.format(day=a_day, clips=readable(a_day.clips), events=readable(a_day.events)),
        REPEATED.format(repeats=repeats) if repeats > 1 else None,
    )
    return Summary(
        figures=named,
        calibration=calibration(scores.ravel(), np.tile(is_event, repeats), repeats=repeats)
        if events and others
        else None,
        at_point=point,
        alarms_a_day=a_day,
        sentences=tuple(sentence for sentence in sentences if sentence),
    )


def mean_statistics(
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    event_indices: Sequence[int],
    thresholds: NDArray[np.float64],
) -> dict[str, Weighed]:
    """Returns each headline figure as a function of the clips' weights: the mean of the repeats'.

    Args:
        labels: int64 ``(N,)``.
        probabilities: float64 ``(R, N, classes)``.
        event_indices: columns whose sum is the event probability.
        thresholds: float64 ``(R, N)``.
    """
    several = [
        _statistics(labels, one, event_indices, threshold)
        for one, threshold in zip(probabilities, thresholds, strict=True)
    ]
    return {name: _mean([one[name] for one in several]) for name in several[0]}


def figure_of(weighed: Weighed, groups: Sequence[str]) -> Figure:
    """Computes a figure with its interval by group."""
    value = weighed.statistic(np.ones(len(groups)))
    return Figure(value=None if np.isnan(value) else value, interval=weighed.interval(groups))


def _which_have_none(named: Mapping[str, Figure], groups: Sequence[str], kinds: NDArray[np.int64] | None) -> str | None:
    """Says which figures have no interval though the clips fall into enough groups; None if all have one."""
    without = [name for name, figure in named.items() if figure.value is not None and figure.interval is None]
    if not without:
        return None
    told = ", ".join(_SHORT.get(name, name.replace("_", " ")) for name in without)
    if kinds is None or least_groups(groups, kinds) >= MIN_GROUPS:
        return (
            f"no interval of {told}: the clips that it rests on, such as alarms, fall into under {MIN_GROUPS} groups."
        )
    kind = min((0, 1), key=lambda kind: least_groups(groups, np.where(kinds == kind, 0, -1)))
    what = ("other", "event")[kind]
    return (
        f"no interval of {told}: the {what} clips, on which they rest, fall into "
        f"{n_groups(least_groups(groups, np.where(kinds == kind, 0, -1)))}, and under {MIN_GROUPS} no interval holds "
        "what it promises; it takes more groups, and tillwatch crossval measures on all there are."
    )


def _mean(several: Sequence[Weighed]) -> Weighed:
    # Groups are counted in one repeat: further ones bring no new clips.
    return replace(several[0], statistic=lambda w: float(np.mean([one.statistic(w) for one in several])))


def _statistics(
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    event_indices: Sequence[int],
    thresholds: NDArray[np.float64],
) -> dict[str, Weighed]:
    predicted, is_event = probabilities.argmax(1), np.isin(labels, list(event_indices))
    scores = event_scores(probabilities, event_indices)
    alarm, both = scores >= thresholds, is_event.astype(np.int64)
    return {
        "accuracy": Weighed(lambda w: figures.share(labels == predicted, w)),
        "balanced_accuracy": Weighed(lambda w: figures.mean_recall(labels, predicted, w), labels),
        "event_auroc": Weighed(lambda w: figures.auroc(is_event, scores, w), both, ranking=True),
        "event_average_precision": Weighed(
            lambda w: figures.average_precision(is_event, scores, w), both, ranking=True
        ),
        "recall": Weighed(lambda w: figures.share(alarm, w * is_event), np.where(is_event, 0, -1)),
        "precision": Weighed(lambda w: figures.precision(is_event, alarm, w), np.where(alarm, 0, -1), rests_on=both),
        "f1": Weighed(lambda w: figures.f1(is_event, alarm, w), both),
    }


def _at_point(
    scores: NDArray[np.float64], is_event: NDArray[np.bool_], thresholds: NDArray[np.float64], hours: float | None
) -> AtPoint:
    """Measures what the thresholds do in all repeats; each sees the same footage, so its hours count once."""
    repeats = len(scores)
    point = measure(scores.ravel(), np.tile(is_event, repeats), thresholds.ravel())
    if not hours or not point.others:
        return point
    count = point.false_alarms / repeats if repeats > 1 else point.false_alarms
    return replace(point, alarms=false_alarms_per_hour(count, hours))


def _a_day(point: AtPoint, footage: Footage, repeats: int) -> ADay | None:
    if footage.prevalence is None or point.alarms is None or point.recall is None:
        return None
    return expected_a_day(point.recall, point.others // repeats, point.alarms, footage.prevalence)
