"""ROC and precision-recall curves with bands by group, and what each threshold does. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tillwatch.evaluation import figures
from tillwatch.evaluation.intervals import Interval, group_interval

#: Thresholds at which a band is computed, at most: at even shares of the clips.
PLACES = 41

Line = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Place:
    """A threshold's place on a curve, and the interval by group of what is drawn upwards there."""

    x: float
    y: float
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A curve and how far it may lie elsewhere on other groups of the same sort.

    Attributes:
        x, y: float64 ``(K,)``, the curve of all clips, x ascending.
        band: places along it, x ascending; none where no interval can be given, below ten groups above all.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    band: tuple[Place, ...]


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a threshold does: how many events reach it, and how many other clips."""

    threshold: float
    found: int
    false_alarms: int


def roc_line(is_event: NDArray[np.bool_], scores: NDArray[np.float64]) -> Line:
    """Returns false positive rates and recalls, from (0, 0) to (1, 1); equal scores make one slanted step."""
    events, others = _falling(is_event, scores)
    return _from_zero(others / others[-1]), _from_zero(events / events[-1])


def pr_line(is_event: NDArray[np.bool_], scores: NDArray[np.float64]) -> Line:
    """Returns recalls and precisions in falling score; a step that begins at recall 0 with its first precision."""
    events, others = _falling(is_event, scores)
    recall, precision = events / events[-1], events / (events + others)
    return _from_zero(recall), np.concatenate([precision[:1], precision])


def roc_curve(is_event: NDArray[np.bool_], scores: NDArray[np.float64], groups: Sequence[str]) -> Curve | None:
    """Returns the ROC curve, with the interval of recall at thresholds along it; None unless events and others occur.

    Read at fixed false positive rates, a band would jump with each step of the curve; at a threshold, recall is a share
    of clips, whose intervals hold (benchmarks/coverage.py), and at the operating point it is the headline's own.

    Args:
        is_event: bool ``(N,)``.
        scores: float64 ``(N,)``, event probabilities.
        groups: of the clips.
    """
    if not is_event.any() or is_event.all():
        return None
    places = []
    for threshold in _thresholds(scores):
        alarm = scores >= threshold
        interval = group_interval(
            lambda weights, alarm=alarm: figures.share(alarm, weights * is_event),  # type: ignore[misc]
            groups,
            kinds=np.where(is_event, 0, -1),
        )
        if interval is not None:
            places.append(Place(x=float(alarm[~is_event].mean()), y=float(alarm[is_event].mean()), interval=interval))
    x, y = roc_line(is_event, scores)
    return Curve(x=x, y=y, band=tuple(places))


def pr_curve(is_event: NDArray[np.bool_], scores: NDArray[np.float64], groups: Sequence[str]) -> Curve | None:
    """Returns the precision-recall curve, with the interval of precision at thresholds; as :func:`roc_curve`."""
    if not is_event.any() or is_event.all():
        return None
    places = []
    for threshold in _thresholds(scores):
        alarm = scores >= threshold
        interval = group_interval(
            lambda weights, alarm=alarm: figures.precision(is_event, alarm, weights),  # type: ignore[misc]
            groups,
            kinds=np.where(alarm, 0, -1),
        )
        if interval is not None:
            places.append(Place(x=float(alarm[is_event].mean()), y=float(is_event[alarm].mean()), interval=interval))
    x, y = pr_line(is_event, scores)
    return Curve(x=x, y=y, band=tuple(places))


def threshold_steps(
    is_event: NDArray[np.bool_], scores: NDArray[np.float64], thresholds: Sequence[float]
) -> list[Step]:
    """Counts what reaches each threshold."""
    events, others = np.sort(scores[is_event]), np.sort(scores[~is_event])
    found = len(events) - np.searchsorted(events, thresholds)
    false = len(others) - np.searchsorted(others, thresholds)
    return [
        Step(threshold=float(threshold), found=int(hits), false_alarms=int(alarms))
        for threshold, hits, alarms in zip(thresholds, found, false, strict=True)
    ]


def _thresholds(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns scores that occur, the highest first."""
    chosen: NDArray[np.float64] = np.unique(np.quantile(scores, np.linspace(0, 1, PLACES), method="nearest"))[::-1]
    return chosen


def _falling(is_event: NDArray[np.bool_], scores: NDArray[np.float64]) -> Line:
    """Returns how many events, and how many other clips, reach each score that occurs, the highest score first."""
    values, places = np.unique(-scores, return_inverse=True)
    events = np.bincount(places, is_event, len(values)).cumsum()
    others = np.bincount(places, ~is_event, len(values)).cumsum()
    return events, others


def _from_zero(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([[0.0], values])
