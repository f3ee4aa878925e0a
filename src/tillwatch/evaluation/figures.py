"""Figures of weighted clips, as intervals by group need them: NaN where there is nothing to compute."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float64]


def share(right: NDArray[np.bool_] | Weights, weights: Weights) -> float:
    """Returns the weighted share of clips that are right: accuracy; recall, with weight on the event's clips alone.

    Args:
        right: bool ``(N,)``; or float64, in which share of the repeats each clip is right.
        weights: float64 ``(N,)``.
    """
    total = float(weights.sum())
    return float((weights * right).sum()) / total if total > 0 else math.nan


def mean_recall(labels: NDArray[np.int64], predicted: NDArray[np.int64], weights: Weights) -> float:
    """Returns the mean recall of the classes that occur: balanced accuracy."""
    return float(np.mean([share(labels == predicted, weights * (labels == label)) for label in np.unique(labels)]))


def precision(is_event: NDArray[np.bool_], alarm: NDArray[np.bool_], weights: Weights) -> float:
    """Returns the weighted share of alarms that are events."""
    return share(is_event, weights * alarm)


def f1(is_event: NDArray[np.bool_], alarm: NDArray[np.bool_], weights: Weights) -> float:
    """Returns the harmonic mean of precision and recall: ``2 TP / (events + alarms)``."""
    total = float((weights * is_event).sum() + (weights * alarm).sum())
    return 2 * float((weights * (is_event & alarm)).sum()) / total if total > 0 else math.nan


def auroc(is_event: NDArray[np.bool_], scores: NDArray[np.float64], weights: Weights) -> float:
    """Returns the chance that an event scores higher than another clip; equal scores count half."""
    events, others = _by_score(is_event, scores, weights)
    pairs = float(events.sum() * others.sum())
    below = np.cumsum(others) - others / 2
    return float((events * below).sum()) / pairs if pairs > 0 else math.nan


def average_precision(is_event: NDArray[np.bool_], scores: NDArray[np.float64], weights: Weights) -> float:
    """Returns the mean precision at each event found, in falling score, as scikit-learn's."""
    events, others = (column[::-1] for column in _by_score(is_event, scores, weights))
    found, alarms = np.cumsum(events), np.cumsum(events + others)
    if not len(found) or found[-1] <= 0 or found[-1] == alarms[-1]:
        return math.nan
    some = alarms > 0
    return float((events[some] * found[some] / alarms[some]).sum()) / float(found[-1])


def _by_score(is_event: NDArray[np.bool_], scores: NDArray[np.float64], weights: Weights) -> tuple[Weights, Weights]:
    """Returns the weight of events and of other clips at each score that occurs, ascending."""
    values, places = np.unique(scores, return_inverse=True)
    return (
        np.bincount(places, weights * is_event, len(values)).astype(np.float64),
        np.bincount(places, weights * ~is_event, len(values)).astype(np.float64),
    )
