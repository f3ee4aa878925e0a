"""Intervals of a figure by group: what it may be on other groups of clips, not on these alone.

Each group is left out once (the jackknife), which says how far the figure moves with its groups. From that comes how
many independent clips these are worth, and from that number Wilson's interval of a share, with Student's t instead
of the normal quantile, its degrees of freedom fewer where a few groups hold most clips. It stays within [0, 1], and a
figure of 1 gets an interval as well. What it covers: benchmarks/coverage.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tillwatch.data.splits import n_groups

#: Below this many groups no interval is printed: none holds what it promises.
MIN_GROUPS = 10

#: Clips of a kind below which a figure of them says nothing: one more mistake is ten points.
MIN_CLIPS = 10

#: A figure of weighted clips: float64 ``(N,)``, a weight of at least 0 for each, to a number in [0, 1].
Statistic = Callable[[NDArray[np.float64]], float]

_CORRELATION = 0.2  # within groups, where too few mistakes tell it
_RANKING_WORTH = 5.0  # times a share's clips, near 1: what a group shares moves both sides of a comparison alike
_EVEN_FOR = 1.5  # times the groups of equal size: sizes up to there cost no coverage (benchmarks/coverage.py)
_LEFT_OUT_AT_MOST = 200  # more groups are left out several at a time, which costs no coverage and saves hours


@dataclass(frozen=True, kw_only=True)
class Interval:
    """From ``low`` to ``high``; ``level`` of such intervals hold the true figure."""

    low: float
    high: float
    level: float = 0.95


def group_interval(
    statistic: Statistic,
    groups: Sequence[str],
    *,
    kinds: NDArray[np.int64] | None = None,
    ranking: bool = False,
    level: float = 0.95,
) -> Interval | None:
    """Returns the interval of a figure on other groups of the same sort; None where none can be given.

    Args:
        statistic: the figure with a weight for each clip; NaN where it cannot be computed.
        groups: the group of each of N clips.
        kinds: int64 ``(N,)``, what the figure needs several groups of: for AUROC 1 for the event and 0 for others; for
            recall 0 for the event, and -1 for clips that do not count. Unless given, all clips are of one kind.
        ranking: whether the figure compares scores of two kinds with each other, as AUROC does, and no score with a
            threshold.
        level: share of such intervals that hold the true figure.

    Returns:
        None if a kind falls into fewer than ``MIN_GROUPS`` groups, or the figure cannot be computed.
    """
    known = _jackknife(statistic, groups, kinds)
    if known is None:
        return None
    p, variance, worth = known.figure, known.variance, known.worth
    spread = p * (1 - p)
    # Where mistakes are few, how they gather in groups cannot be seen: lean on what is usual. Those of every kind tell.
    leaning = 1 / (1 + min(p, 1 - p) * known.all_clips) ** 4
    usual = worth * _RANKING_WORTH if ranking else worth
    inverse = leaning / usual + (1 - leaning) * (variance / spread if spread > 0 else 0.0)
    number = 1 / max(inverse, 1 / (len(groups) ** 2))
    t = float(stats.t.ppf((1 + level) / 2, known.freedom))
    middle = (p + t * t / (2 * number)) / (1 + t * t / number)
    half = t / (1 + t * t / number) * math.sqrt(spread / number + (t / (2 * number)) ** 2)
    return Interval(low=max(0.0, min(p, middle - half)), high=min(1.0, max(p, middle + half)), level=level)


def paired_interval(
    statistic_a: Statistic,
    statistic_b: Statistic,
    groups: Sequence[str],
    *,
    kinds: NDArray[np.int64] | None = None,
    level: float = 0.95,
) -> Interval | None:
    """Returns the interval of figure a less figure b of the same clips, paired by group; None as above.

    Two models that agree on every clip get an interval too: the next clip may divide them.
    """
    known = _jackknife(lambda weights: statistic_a(weights) - statistic_b(weights), groups, kinds)
    if known is None:
        return None
    t = float(stats.t.ppf((1 + level) / 2, known.freedom))
    half = t * math.sqrt(max(known.variance, known.clips**-2))
    return Interval(low=max(-1.0, known.figure - half), high=min(1.0, known.figure + half), level=level)


def least_groups(groups: Sequence[str], kinds: NDArray[np.int64] | None = None) -> int:
    """Returns into how many groups the kind of clips falls that falls into the fewest; a kind of -1 does not count."""
    return min((len(sizes) for sizes in _sizes(_places(groups), _kinds(groups, kinds))), default=0)


def why_no_interval(groups: Sequence[str], kinds: NDArray[np.int64] | None = None) -> str | None:
    """Says in a sentence why a figure has no interval, and what would help; None if it has one."""
    least = least_groups(groups, kinds)
    if least >= MIN_GROUPS:
        return None
    of_what = "the clips" if kinds is None else "the clips of a kind"
    return (
        f"no intervals: {of_what} fall into {n_groups(least)}, and under {MIN_GROUPS} no interval holds what it "
        "promises; it takes more groups, and tillwatch crossval measures on all there are."
    )


def too_few(events: int, others: int) -> str | None:
    """Says in a sentence that there are too few clips of a kind to say anything, and how many it would take."""
    sentences = [
        f"{count} {what} clips are too few to say anything of them: one more mistake is "
        f"{100 / max(count, 1):.0f} points of 100. It takes {MIN_CLIPS} at least, and about {clips_for(0.1)} "
        "for an interval of 10 points either way."
        for count, what in ((events, "event"), (others, "other"))
        if count < MIN_CLIPS
    ]
    return sentences[0] if sentences else None


def clips_for(half_width: float, share: float = 0.8) -> int:
    """Returns how many independent clips give a share a 95 % interval of this half-width, by the normal law."""
    return math.ceil(share * (1 - share) * (float(stats.norm.ppf(0.975)) / half_width) ** 2)


@dataclass(frozen=True, kw_only=True)
class _Jackknife:
    """A figure left without each group in turn.

    Attributes:
        figure: of all clips.
        variance: over groups.
        freedom: degrees, of the kind that has fewest: one less than its groups. Where a few large groups hold most
            clips, one less than half as many again as the groups of equal size that would tell as much (Kish, 1965).
        clips: of the kind that has fewest.
        all_clips: of all kinds that count.
        worth: independent clips that these are worth at the usual correlation. A mean over kinds, as balanced accuracy
            is, draws on the clips of each; so, near 1, does AUROC (Hanley and McNeil, 1982).
    """

    figure: float
    variance: float
    freedom: float
    clips: int
    all_clips: int
    worth: float


def _jackknife(statistic: Statistic, groups: Sequence[str], kinds: NDArray[np.int64] | None) -> _Jackknife | None:
    places = _places(groups)
    kinds = _kinds(groups, kinds)
    sizes = _sizes(places, kinds)
    least = min((len(some) for some in sizes), default=0)
    if least < MIN_GROUPS:
        return None
    lots = _lots(places, kinds >= 0)
    number = int(lots.max()) + 1
    figure = statistic(np.ones(len(places)))
    left_out = np.array([statistic((lots != lot).astype(np.float64)) for lot in range(number)])
    if not (math.isfinite(figure) and np.isfinite(left_out).all()):
        return None
    variance = (number - 1) / number * float(((left_out - left_out.mean()) ** 2).sum())
    worth = min(some.sum() ** 2 / (some * (1 + (some - 1) * _CORRELATION)).sum() for some in sizes)
    return _Jackknife(
        figure=figure,
        variance=variance,
        freedom=max(1.0, min(number, least, *(_EVEN_FOR * some.sum() ** 2 / (some**2).sum() for some in sizes)) - 1),
        clips=min(int(some.sum()) for some in sizes),
        all_clips=sum(int(some.sum()) for some in sizes),
        worth=len(sizes) * float(worth),
    )


def _places(groups: Sequence[str]) -> NDArray[np.int64]:
    names = {name: place for place, name in enumerate(dict.fromkeys(groups))}
    return np.array([names[name] for name in groups], dtype=np.int64)


def _kinds(groups: Sequence[str], kinds: NDArray[np.int64] | None) -> NDArray[np.int64]:
    return np.zeros(len(groups), dtype=np.int64) if kinds is None else kinds


def _sizes(places: NDArray[np.int64], kinds: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Returns for each kind that counts how many clips of it each group holds that holds any."""
    return [np.unique(places[kinds == kind], return_counts=True)[1] for kind in np.unique(kinds) if kind >= 0]


def _lots(places: NDArray[np.int64], counted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Returns which clips are left out together: those of a group, or of several, large ones with small ones."""
    sizes = np.bincount(places, counted)
    kept = np.flatnonzero(sizes)  # a group in which nothing counts moves nothing
    kept = np.random.default_rng(0).permutation(kept)  # neighbours in a table are alike in ways that repeat
    order = kept[np.argsort(-sizes[kept], kind="stable")]
    lot_of = np.full(len(sizes), -1, dtype=np.int64)
    number = min(len(order), _LEFT_OUT_AT_MOST)
    there_and_back = np.concatenate([np.arange(number), np.arange(number)[::-1]])
    lot_of[order] = np.resize(there_and_back, len(order))
    return lot_of[places]
