"""ROC and precision-recall curves with bands by group, and what each threshold does. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tillwatch.evaluation.intervals import Interval, group_interval

#: Where the bands are computed: false positive rates of the ROC curve, recalls of the other.
GRID = np.linspace(0, 1, 41)

Weights = NDArray[np.float64]
Line = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A curve and how far it may lie elsewhere on other groups of the same sort.

    Attributes:
        x, y: float64 ``(K,)``, the curve of all clips, x ascending.
        grid: float64 ``(G,)``, where the band stands.
        band: an interval for each place of the grid; None where none can be given, below ten groups above all.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    grid: NDArray[np.float64]
    band: tuple[Interval | None, ...]


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a threshold does: how many events reach it, and how many other clips."""

    threshold: float
    found: int
    false_alarms: int


def roc_line(is_event: NDArray[np.bool_], scores: NDArray[np.float64], weights: Weights) -> Line:
    """Returns false positive rates and recalls, from (0, 0) to (1, 1); equal scores make one slanted step."""
    events, others = _falling(is_event, scores, weights)
    return _from_zero(others / others[-1]), _from_zero(events / events[-1])


def pr_line(is_event: NDArray[np.bool_], scores: NDArray[np.float64], weights: Weights) -> Line:
    """Returns recalls and precisions in falling score; a step that begins at recall 0 with its first precision."""
    events, others = _falling(is_event, scores, weights)
    alarms = events + others
    some = alarms > 0
    recall, precision = events[some] / events[-1], events[some] / alarms[some]
    return _from_zero(recall), np.concatenate([precision[:1], precision])


def recall_at(line: Line, rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Reads a ROC curve at false positive rates: the most recall there, straight between its corners."""
    x, y = line
    before = np.searchsorted(x, rates, side="right") - 1
    after = np.minimum(before + 1, len(x) - 1)
    gap = x[after] - x[before]
    part = np.where(gap > 0, (rates - x[before]) / np.where(gap > 0, gap, 1), 0)
    read: NDArray[np.float64] = y[before] + part * (y[after] - y[before])
    return read


def precision_at(line: Line, recalls: NDArray[np.float64]) -> NDArray[np.float64]:
    """Reads a precision-recall curve: the precision of the first alarms that reach a recall."""
    x, y = line
    # 0.3 * 10 events is 3 of them: a hair's breadth of rounding must not ask for a fourth.
    read: NDArray[np.float64] = y[np.minimum(np.searchsorted(x[1:], recalls - 1e-12) + 1, len(x) - 1)]
    return read


def roc_curve(is_event: NDArray[np.bool_], scores: NDArray[np.float64], groups: Sequence[str]) -> Curve | None:
    """Returns the ROC curve with a band of recall at each false positive rate; None unless events and others occur.

    Args:
        is_event: bool ``(N,)``.
        scores: float64 ``(N,)``, event probabilities.
        groups: of the clips.
    """
    return _curve(roc_line, recall_at, is_event, scores, groups)


def pr_curve(is_event: NDArray[np.bool_], scores: NDArray[np.float64], groups: Sequence[str]) -> Curve | None:
    """Returns the precision-recall curve with a band of precision at each recall; arguments as :func:`roc_curve`."""
    return _curve(pr_line, precision_at, is_event, scores, groups)


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


def _curve(
    line_of: Callable[[NDArray[np.bool_], NDArray[np.float64], Weights], Line],
    read: Callable[[Line, NDArray[np.float64]], NDArray[np.float64]],
    is_event: NDArray[np.bool_],
    scores: NDArray[np.float64],
    groups: Sequence[str],
) -> Curve | None:
    if not is_event.any() or is_event.all():
        return None
    seen: dict[bytes, NDArray[np.float64]] = {}

    def on_grid(weights: Weights) -> NDArray[np.float64]:
        key = np.packbits(weights > 0).tobytes()  # groups are left out whole: weights are 0 or 1
        if key not in seen:
            both = (weights * is_event).sum() > 0 and (weights * ~is_event).sum() > 0
            seen[key] = read(line_of(is_event, scores, weights), GRID) if both else np.full(len(GRID), np.nan)
        return seen[key]

    x, y = line_of(is_event, scores, np.ones(len(scores)))
    kinds = is_event.astype(np.int64)
    band = [
        group_interval(lambda weights, place=place: float(on_grid(weights)[place]), groups, kinds=kinds)  # type: ignore[misc]
        for place in range(len(GRID))
    ]
    return Curve(x=x, y=y, grid=GRID, band=tuple(band))


def _falling(
    is_event: NDArray[np.bool_], scores: NDArray[np.float64], weights: Weights
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the weight of events, and of other clips, that reach each score that occurs, the highest score first."""
    values, places = np.unique(-scores, return_inverse=True)
    events = np.bincount(places, weights * is_event, len(values)).cumsum()
    others = np.bincount(places, weights * ~is_event, len(values)).cumsum()
    return events, others


def _from_zero(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([[0.0], values])
