"""ROC and precision-recall curves with bands by group, and what each threshold does. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tillwatch.evaluation import figures
from tillwatch.evaluation.intervals import Interval, group_interval
from tillwatch.evaluation.summary import Weighed

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
        scores: float64 ``(N,)``, event probabilities; ``(R, N)`` of repeats, which are on the curve together, and are
            no more clips to the intervals than one of them.
        groups: of the N clips.
    """
    if not is_event.any() or is_event.all():
        return None
    several = np.atleast_2d(scores)
    places = []
    for threshold in _thresholds(several):
        alarm = (several >= threshold).mean(0)
        interval = group_interval(
            lambda weights, alarm=alarm: figures.share(alarm, weights * is_event),  # type: ignore[misc]
            groups,
            kinds=np.where(is_event, 0, -1),
        )
        if interval is not None:
            places.append(Place(x=float(alarm[~is_event].mean()), y=float(alarm[is_event].mean()), interval=interval))
    x, y = roc_line(np.tile(is_event, len(several)), several.ravel())
    return Curve(x=x, y=y, band=tuple(places))


def pr_curve(is_event: NDArray[np.bool_], scores: NDArray[np.float64], groups: Sequence[str]) -> Curve | None:
    """Returns the precision-recall curve, with the interval of precision at thresholds; as :func:`roc_curve`.

    No band where events or other clips fall into too few groups: precision rests on both, as in the headline.
    """
    if not is_event.any() or is_event.all():
        return None
    several = np.atleast_2d(scores)
    both = is_event.astype(np.int64)
    places = []
    for threshold in _thresholds(several):
        reached = several >= threshold
        alarm = reached.mean(0)
        weighed = Weighed(
            lambda weights, alarm=alarm: figures.share(is_event, weights * alarm),  # type: ignore[misc]
            np.where(reached[0], 0, -1),  # groups of one repeat: further ones bring no new clips
            rests_on=both,
        )
        if (interval := weighed.interval(groups)) is not None:
            right = figures.share(is_event, alarm)
            places.append(Place(x=float(alarm[is_event].mean()), y=right, interval=interval))
    x, y = pr_line(np.tile(is_event, len(several)), several.ravel())
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
