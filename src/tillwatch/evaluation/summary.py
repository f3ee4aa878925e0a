"""The headline figures of scored clips with their intervals, calibration, and what the operating point does on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tillwatch.evaluation import figures
from tillwatch.evaluation.calibration import Calibration, calibration
from tillwatch.evaluation.intervals import Interval, Statistic, group_interval, too_few, why_no_interval
from tillwatch.evaluation.operating_point import AtPoint, expected_a_day, measure

SECONDS_A_DAY = 86400


@dataclass(frozen=True, kw_only=True)
class Footage:
    """What the clips stand for.

    Attributes:
        normal_hours: of footage without an event; None if unknown.
        clip_seconds: mean length of a clip; None if unknown.
        prevalence: share of the user's own clips that are events; None if not told.
    """

    normal_hours: float | None = None
    clip_seconds: float | None = None
    prevalence: float | None = None


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
        at_point: what the threshold does.
        alarms_a_day, true_share: for the user's own prevalence, one camera all day; None if that was not told.
        sentences: what must stand beside the figures.
    """

    figures: dict[str, Figure]
    calibration: Calibration | None
    at_point: AtPoint
    alarms_a_day: float | None
    true_share: float | None
    sentences: tuple[str, ...]

    def lines(self, threshold: float) -> list[str]:
        """Returns it to read, a line for each thing that is said."""
        named = {name: str(figure) for name, figure in self.figures.items()}
        lines = [f"accuracy {named['accuracy']}, balanced accuracy {named['balanced_accuracy']}"]
        if self.calibration is not None:
            lines.append(f"event AUROC {named['event_auroc']}, average precision {named['event_average_precision']}")
            lines.append(
                f"calibration error {self.calibration.ece:.3f}; perfect scores would have "
                f"{self.calibration.ece_by_chance:.3f} on as many clips"
            )
        lines.append(
            f"from event probability {threshold:.4f} on: recall {named['recall']}, precision {named['precision']}"
        )
        if (alarms := self.at_point.alarms) is not None:
            bounds = f"{alarms.low:.3g} to {alarms.high:.3g}" if alarms.count else f"at most {alarms.high:.3g}"
            lines.append(
                f"{alarms.count} false alarms in {alarms.hours:.3g} h of normal footage: {alarms.per_hour:.3g} an hour "
                f"({bounds}, 95 %)"
            )
        if self.alarms_a_day is not None:
            true = "none of them" if self.true_share is None else f"{100 * self.true_share:.1f} % of them"
            lines.append(f"at your prevalence, one camera all day: {self.alarms_a_day:.3g} alarms, {true} true")
        return [*lines, *(f"note: {sentence}" for sentence in self.sentences)]

    def to_json(self) -> dict[str, Any]:
        """Returns it as it stands in evaluation.json."""
        return asdict(self)


def summarize(
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    groups: Sequence[str],
    event_indices: Sequence[int],
    threshold: float,
    footage: Footage | None = None,
) -> Summary:
    """Computes the headline figures of scored clips.

    Args:
        labels: int64 ``(N,)``.
        probabilities: float64 ``(N, classes)``, calibrated.
        groups: of the clips.
        event_indices: columns whose sum is the event probability.
        threshold: the operating point.
        footage: what the clips stand for.
    """
    footage = footage or Footage()
    is_event = np.isin(labels, list(event_indices))
    scores = probabilities[:, list(event_indices)].sum(1)
    events, others = int(is_event.sum()), int((~is_event).sum())
    point = measure(scores, is_event, threshold, footage.normal_hours)
    alarms_a_day, true_share = _a_day(point, footage)
    both = is_event.astype(np.int64)
    sentences = (why_no_interval(groups, both if events and others else None), too_few(events, others))
    return Summary(
        figures=_figures(statistics(labels, probabilities, event_indices, threshold), len(labels), groups),
        calibration=calibration(scores, is_event) if events and others else None,
        at_point=point,
        alarms_a_day=alarms_a_day,
        true_share=true_share,
        sentences=tuple(sentence for sentence in sentences if sentence),
    )


def statistics(
    labels: NDArray[np.int64], probabilities: NDArray[np.float64], event_indices: Sequence[int], threshold: float
) -> dict[str, tuple[Statistic, NDArray[np.int64] | None]]:
    """Returns each headline figure as a function of the clips' weights, and of what kinds of clips it needs groups.

    Args:
        labels, probabilities, event_indices, threshold: as :func:`summarize` takes them.
    """
    predicted, is_event = probabilities.argmax(1), np.isin(labels, list(event_indices))
    scores = probabilities[:, list(event_indices)].sum(1)
    alarm, both = scores >= threshold, is_event.astype(np.int64)
    return {
        "accuracy": (lambda w: figures.share(labels == predicted, w), None),
        "balanced_accuracy": (lambda w: figures.mean_recall(labels, predicted, w), labels),
        "event_auroc": (lambda w: figures.auroc(is_event, scores, w), both),
        "event_average_precision": (lambda w: figures.average_precision(is_event, scores, w), both),
        "recall": (lambda w: figures.share(alarm, w * is_event), np.where(is_event, 0, -1)),
        "precision": (lambda w: figures.precision(is_event, alarm, w), np.where(alarm, 0, -1)),
        "f1": (lambda w: figures.f1(is_event, alarm, w), both),
    }


def _figures(
    wanted: dict[str, tuple[Statistic, NDArray[np.int64] | None]], clips: int, groups: Sequence[str]
) -> dict[str, Figure]:
    found = {}
    for name, (statistic, kinds) in wanted.items():
        value = statistic(np.ones(clips))
        interval = group_interval(statistic, groups, kinds=kinds)
        found[name] = Figure(value=None if np.isnan(value) else value, interval=interval)
    return found


def _a_day(point: AtPoint, footage: Footage) -> tuple[float | None, float | None]:
    if footage.prevalence is None or not footage.clip_seconds or point.recall is None or not point.others:
        return None, None
    clips_a_day = SECONDS_A_DAY / footage.clip_seconds
    return expected_a_day(point.recall, point.false_alarms / point.others, footage.prevalence, clips_a_day)
