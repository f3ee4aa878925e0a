"""How often the intervals by group hold the true figure: 500 simulated sets of known truth at 10, 20 and 40 groups.

    python benchmarks/coverage.py [--seed 1]
    python benchmarks/coverage.py --dominated

A clip's score is normal: its class's mean, what its group shares and what is its own (intraclass correlation 0.2).
Groups are of uneven sizes (log-normal, 2 to 40 clips). So the truth is known. Every figure that `evaluate` prints is
there, and the difference in accuracy to a second, worse model of the same clips. "Too low" and "too high" are shares
of intervals that lie wholly below or above the truth. With ``--dominated``, a few groups hold most clips, and a clip is
right or not by a chance that its group shares (beta-binomial, of the same correlation).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tillwatch.evaluation import figures
from tillwatch.evaluation.intervals import Interval, Statistic, group_interval, paired_interval

CORRELATION = 0.2
SHARE_OF_EVENTS = 0.4
WORSE_BY = 0.5  # the second model's classes lie nearer to each other by this
GROUPS = (10, 20, 40)
#: Sizes of groups, a few of which hold most clips, and as many even ones to compare with.
DOMINATED: dict[str, list[int]] = {
    "3 of 30, 17 of 2": [30] * 3 + [2] * 17,
    "1 of 100, 20 of 1": [100] + [1] * 20,
    "1 of 30, 9 of 5": [30] + [5] * 9,
    "10 from 2 to 40": [2, 2, 3, 3, 5, 6, 8, 12, 20, 40],
    "20 from 1 to 40": [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 5, 6, 8, 10, 12, 16, 20, 30, 40],
    "10 of 6": [6] * 10,
}
RANKINGS = ("AUROC", "average precision")


@dataclass(frozen=True)
class Clips:
    """Simulated clips: group, class, score, and a second model's score of each."""

    groups: list[str]
    is_event: NDArray[np.bool_]
    scores: NDArray[np.float64]
    second: NDArray[np.float64]


def draw_sizes(random: np.random.Generator, num_groups: int) -> NDArray[np.int64]:
    """Draws how many clips each group has."""
    return np.clip(np.round(random.lognormal(math.log(8), 0.7, num_groups)), 2, 40).astype(np.int64)


def simulate(random: np.random.Generator, num_groups: int, distance: float) -> Clips:
    """Draws clips; every group holds at least one event and one other clip, so that all figures have all groups.

    Args:
        random: the generator.
        num_groups: how many.
        distance: between the means of the two classes, in standard deviations of the scores.
    """
    sizes = draw_sizes(random, num_groups)
    places = np.repeat(np.arange(num_groups), sizes)
    is_event = random.random(len(places)) < SHARE_OF_EVENTS
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    is_event[first], is_event[first + 1] = True, False
    shared = random.normal(0, math.sqrt(CORRELATION), num_groups)[places]
    own, other = random.normal(0, math.sqrt(1 - CORRELATION), (2, len(places)))
    second = (distance - WORSE_BY) * is_event + shared + (own + other) / math.sqrt(2)
    return Clips([f"group{place}" for place in places], is_event, distance * is_event + shared + own, second)


def share_of_events() -> float:
    """Returns the share of events among all clips in the long run, the two that each group surely holds included."""
    sizes = draw_sizes(np.random.default_rng(9), 1_000_000)
    return float((1 + SHARE_OF_EVENTS * (sizes - 2)).sum() / sizes.sum())


def truths(distance: float, events: float) -> dict[str, float]:
    """Returns the true figures, at the threshold half-way between the classes.

    Args:
        distance: between the means of the classes.
        events: share of clips that are events.
    """
    right = float(stats.norm.cdf(distance / 2))
    alarms = events * right + (1 - events) * (1 - right)
    thresholds = np.linspace(-8, distance + 8, 200_001)
    found, false = stats.norm.sf(thresholds - distance), stats.norm.sf(thresholds)
    precisions = events * found / (events * found + (1 - events) * false)
    return {
        "accuracy": right,
        "balanced accuracy": right,
        "recall": right,
        "precision": events * right / alarms,
        "F1": 2 * events * right / (events + alarms),
        "AUROC": float(stats.norm.cdf(distance / math.sqrt(2))),
        "average precision": float(-np.trapezoid(precisions, found)),
        "difference": right - float(stats.norm.cdf((distance - WORSE_BY) / 2)),
    }


def interval_of(name: str, clips: Clips, distance: float) -> Interval | None:
    """Returns the interval that a figure of these clips gets."""
    event, scores = clips.is_event, clips.scores
    alarm, both = scores >= distance / 2, event.astype(np.int64)
    right = alarm == event
    if name == "difference":
        second = (clips.second >= (distance - WORSE_BY) / 2) == event
        return paired_interval(lambda w: figures.share(right, w), lambda w: figures.share(second, w), clips.groups)
    wanted: dict[str, tuple[Statistic, NDArray[np.int64] | None]] = {
        "accuracy": (lambda w: figures.share(right, w), None),
        "balanced accuracy": (lambda w: figures.mean_recall(both, alarm.astype(np.int64), w), both),
        "recall": (lambda w: figures.share(alarm, w * event), np.where(event, 0, -1)),
        "precision": (lambda w: figures.precision(event, alarm, w), np.where(alarm, 0, -1)),
        "F1": (lambda w: figures.f1(event, alarm, w), both),
        "AUROC": (lambda w: figures.auroc(event, scores, w), both),
        "average precision": (lambda w: figures.average_precision(event, scores, w), both),
    }
    statistic, kinds = wanted[name]
    return group_interval(statistic, clips.groups, kinds=kinds, ranking=name in RANKINGS)


def print_dominated(say: Callable[[str], None], num_sets: int, seed: int) -> None:
    """Prints how often the interval of an accuracy holds it where a few groups hold most clips."""
    say("| groups | truth | coverage | mean width |\n|---|---|---|---|")
    for name, sizes in DOMINATED.items():
        places = np.repeat(np.arange(len(sizes)), sizes)
        groups = [f"group{place}" for place in places]
        for truth in (0.75, 0.9):
            random, spread = np.random.default_rng((seed, len(places), int(100 * truth))), 1 / CORRELATION - 1
            chances = random.beta(truth * spread, (1 - truth) * spread, (num_sets, len(sizes)))
            drawn = random.random((num_sets, len(places))) < chances[:, places]
            given = [group_interval(partial(figures.share, right), groups) for right in drawn]
            known = [interval for interval in given if interval is not None]
            held = float(np.mean([interval.low <= truth <= interval.high for interval in known]))
            say(f"| {name} | {truth} | {held:.3f} | {np.mean([one.high - one.low for one in known]):.3f} |")


def main(say: Callable[[str], None] = print) -> None:
    """Prints a table of coverages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--distances", type=float, nargs="+", default=(1.5, 2.5, 3.0))
    parser.add_argument("--dominated", action="store_true", help="sets in which a few groups hold most clips")
    told = parser.parse_args()
    if told.dominated:
        print_dominated(say, told.sets, told.seed)
        return
    say("| figure | truth | groups | coverage | too low | too high | mean width |\n|---|---|---|---|---|---|---|")
    events = share_of_events()
    for distance in told.distances:
        for num_groups in GROUPS:
            random = np.random.default_rng((told.seed, num_groups, int(distance * 10)))
            sets = [simulate(random, num_groups, distance) for _ in range(told.sets)]
            for name, truth in truths(distance, events).items():
                given = [interval for clips in sets if (interval := interval_of(name, clips, distance)) is not None]
                low = float(np.mean([interval.high < truth for interval in given]))
                high = float(np.mean([interval.low > truth for interval in given]))
                width = float(np.mean([interval.high - interval.low for interval in given]))
                none = f" ({len(sets) - len(given)} sets without)" if len(given) < len(sets) else ""
                coverage = f"{1 - low - high:.3f} | {low:.3f} | {high:.3f}"
                say(f"| {name} | {truth:.3f} | {num_groups} | {coverage} | {width:.3f}{none} |")


if __name__ == "__main__":
    main()
