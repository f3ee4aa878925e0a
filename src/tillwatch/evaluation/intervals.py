"""Intervals of a figure by group: what it may be on other groups of clips, not on these alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

#: Below this many groups no interval is printed: none holds what it promises.
MIN_GROUPS = 10

#: A figure of weighted clips: float64 ``(N,)``, a weight of at least 0 for each, to a number in [0, 1].
Statistic = Callable[[NDArray[np.float64]], float]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """From ``low`` to ``high``; ``level`` of such intervals hold the true figure."""

    low: float
    high: float
    level: float = 0.95


def group_interval(
    statistic: Statistic, groups: Sequence[str], *, kinds: NDArray[np.int64] | None = None, level: float = 0.95
) -> Interval | None:
    """Returns the interval of a figure on other groups of the same sort; None where none can be given.

    Args:
        statistic: the figure with a weight for each clip; NaN where it cannot be computed.
        groups: the group of each of N clips.
        kinds: int64 ``(N,)``, what the figure needs several groups of: for AUROC 1 for the event and 0 for others; for
            recall 0 for the event, and -1 for clips that do not count. Unless given, all clips are of one kind.
        level: share of such intervals that hold the true figure.

    Returns:
        None if a kind falls into fewer than ``MIN_GROUPS`` groups, or the figure cannot be computed.
    """
    places = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    kinds = np.zeros(len(places), dtype=np.int64) if kinds is None else kinds
    if least_groups(groups, kinds) < MIN_GROUPS:
        return None
    figure = statistic(np.ones(len(places)))
    left_out = np.array([statistic((places != place).astype(float)) for place in range(places.max() + 1)])
    if not (math.isfinite(figure) and np.isfinite(left_out).all()):
        return None
    t = float(stats.t.ppf((1 + level) / 2, len(left_out) - 1))
    clipped = np.clip(np.append(left_out, figure), 1e-3, 1 - 1e-3)
    logits = np.log(clipped / (1 - clipped))
    spread = math.sqrt((len(left_out) - 1) / len(left_out) * float(((logits[:-1] - logits[:-1].mean()) ** 2).sum()))
    low, high = (1 / (1 + math.exp(-(logits[-1] + sign * t * spread))) for sign in (-1, 1))
    return Interval(low=min(low, figure), high=max(high, figure), level=level)


def paired_interval(
    statistic_a: Statistic,
    statistic_b: Statistic,
    groups: Sequence[str],
    *,
    kinds: NDArray[np.int64] | None = None,
    level: float = 0.95,
) -> Interval | None:
    """Returns the interval of figure a less figure b of the same clips, paired by group; None as above."""
    places = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    kinds = np.zeros(len(places), dtype=np.int64) if kinds is None else kinds
    if least_groups(groups, kinds) < MIN_GROUPS:
        return None

    def difference(weights: NDArray[np.float64]) -> float:
        return statistic_a(weights) - statistic_b(weights)

    figure = difference(np.ones(len(places)))
    left_out = np.array([difference((places != place).astype(float)) for place in range(places.max() + 1)])
    if not (math.isfinite(figure) and np.isfinite(left_out).all()):
        return None
    t = float(stats.t.ppf((1 + level) / 2, len(left_out) - 1))
    spread = math.sqrt((len(left_out) - 1) / len(left_out) * float(((left_out - left_out.mean()) ** 2).sum()))
    return Interval(low=max(-1.0, figure - t * spread), high=min(1.0, figure + t * spread), level=level)


def least_groups(groups: Sequence[str], kinds: NDArray[np.int64] | None = None) -> int:
    """Returns into how many groups the kind of clips falls that falls into the fewest; -1 is no kind."""
    kinds = np.zeros(len(groups), dtype=np.int64) if kinds is None else kinds
    found = {kind: {group for group, other in zip(groups, kinds, strict=True) if other == kind} for kind in set(kinds)}
    return min((len(names) for kind, names in found.items() if kind >= 0), default=0)
