"""Two models on the same clips: each difference with its interval, paired by group, and what it comes to in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tillwatch.evaluation.intervals import Interval, paired_interval, why_no_interval
from tillwatch.evaluation.summary import Figure, Weighed, figure_of, mean_statistics

#: Figures that a baseline can be compared by; recall and precision depend on a threshold that baselines lack.
COMPARED = ("accuracy", "balanced_accuracy", "event_auroc")

#: The figure that decides which of two is better.
DECIDES = "balanced_accuracy"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One model's figure less another's on the same clips.

    Attributes:
        value: None where a figure cannot be computed.
        interval: paired by group; None where there can be none.
        reason: why there is none.
    """

    value: float | None
    interval: Interval | None = None
    reason: str | None = None

    @property
    def ahead(self) -> bool:
        """Whether the first is shown to be ahead; without an interval the value has to do."""
        low = self.value if self.interval is None else self.interval.low
        return self.value is not None and low is not None and low > 0

    @property
    def behind(self) -> bool:
        """Whether the first is shown to be behind."""
        return self.interval is not None and self.interval.high < 0

    def __str__(self) -> str:
        if self.value is None:
            return "not defined"
        around = "" if self.interval is None else f" ({self.interval.low:+.3f} to {self.interval.high:+.3f})"
        return f"{self.value:+.3f}{around}"


@dataclass(frozen=True, kw_only=True)
class Rival:
    """A baseline beside the network: its figures, and the network's less its own."""

    name: str
    figures: dict[str, Figure]
    ahead: dict[str, Difference]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A model's scores of N clips.

    Attributes:
        probabilities: float64 ``(R, N, classes)``, R repeats of a cross-validation, otherwise 1.
        thresholds: float64 ``(R, N)``, each clip's operating point.
    """

    probabilities: NDArray[np.float64]
    thresholds: NDArray[np.float64]


def differences(
    labels: NDArray[np.int64],
    first: Scored,
    second: Scored,
    groups: Sequence[str],
    event_indices: Sequence[int],
    names: Sequence[str] = COMPARED,
) -> dict[str, Difference]:
    """Returns the first model's figures less the second's; of repeats their means.

    Args:
        labels: int64 ``(N,)``.
        first, second: scores of the same clips.
        groups: of the clips.
        event_indices: columns whose sum is the event probability.
        names: of the figures.
    """
    ours, theirs = (
        mean_statistics(labels, one.probabilities, event_indices, one.thresholds) for one in (first, second)
    )
    return {name: _difference(ours[name], theirs[name], groups) for name in names}


def rivals_of(
    labels: NDArray[np.int64],
    network: NDArray[np.float64],
    baselines: Mapping[str, NDArray[np.float64]],
    groups: Sequence[str],
    event_indices: Sequence[int],
) -> list[Rival]:
    """Compares a network with each baseline on the same clips.

    Args:
        labels: int64 ``(N,)``.
        network: float64 ``(R, N, classes)``.
        baselines: likewise, by name.
        groups: of the clips.
        event_indices: columns whose sum is the event probability.
    """
    found = []
    for name, probabilities in baselines.items():
        first, second = (
            Scored(probabilities=one, thresholds=np.full(one.shape[:2], 0.5)) for one in (network, probabilities)
        )
        own = mean_statistics(labels, probabilities, event_indices, second.thresholds)
        found.append(
            Rival(
                name=name,
                figures={figure: figure_of(own[figure], groups) for figure in COMPARED},
                ahead=differences(labels, first, second, groups, event_indices),
            )
        )
    return found


def strongest(rivals: Sequence[Rival]) -> Rival | None:
    """Returns the baseline with the best balanced accuracy; None if there is none to compare with."""
    known = [rival for rival in rivals if rival.figures[DECIDES].value is not None]
    return max(known, key=lambda rival: rival.figures[DECIDES].value or 0.0, default=None)


def cost_note(rivals: Sequence[Rival]) -> str | None:
    """Says in a sentence that a network does not beat the best baseline, or that nothing shows it; None if it does."""
    rival = strongest(rivals)
    if rival is None:
        return None
    difference, theirs = rival.ahead[DECIDES], rival.figures[DECIDES].value
    if difference.value is None or theirs is None:
        return None
    told = f"{theirs:.3f} against {theirs + difference.value:.3f} balanced accuracy"
    if difference.interval is not None:
        low, high = difference.interval.low, difference.interval.high
        told += f"; the model is ahead by {difference.value:+.3f}, 95 % interval by group {low:+.3f} to {high:+.3f}"
    if not difference.ahead:
        return f"the model does not beat {rival.name} ({told}); it is not worth its cost."
    if difference.interval is None:
        return f"the model is ahead of {rival.name} ({told}), but nothing says that it would be again: " + (
            difference.reason or "no interval can be given."
        )
    return None


def _difference(ours: Weighed, theirs: Weighed, groups: Sequence[str]) -> Difference:
    kinds = ours.kinds
    ones = np.ones(len(groups))
    value = ours.statistic(ones) - theirs.statistic(ones)
    if math.isnan(value):
        return Difference(value=None, reason="it cannot be computed on these clips.")
    interval = paired_interval(ours.statistic, theirs.statistic, groups, kinds=kinds)
    reason = why_no_interval(groups, kinds) if interval is None else None
    if interval is None and reason is None:
        reason = "no interval: without some of the groups it cannot be computed."
    return Difference(value=value, interval=interval, reason=reason)
