"""How often the intervals by group hold the true figure: 500 simulated sets of known truth at 10, 20 and 40 groups.

    python benchmarks/coverage.py

A clip's score is normal: its class's mean, what its group shares and what is its own (intraclass correlation 0.2).
Groups are of uneven sizes (log-normal, 2 to 40 clips). So the truth is known in closed form.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tillwatch.evaluation.figures import auroc, share
from tillwatch.evaluation.intervals import Statistic, group_interval

CORRELATION = 0.2
FIGURES = ("accuracy", "recall", "AUROC")


@dataclass(frozen=True)
class Clips:
    """Simulated clips: group, class and score of each."""

    groups: list[str]
    is_event: NDArray[np.bool_]
    scores: NDArray[np.float64]


def simulate(random: np.random.Generator, num_groups: int, distance: float) -> Clips:
    """Draws clips; every group holds at least one event and one other clip, so that all figures have all groups.

    Args:
        random: the generator.
        num_groups: how many.
        distance: between the means of the two classes, in standard deviations of the scores.
    """
    sizes = np.clip(np.round(random.lognormal(math.log(8), 0.7, num_groups)), 2, 40).astype(int)
    places = np.repeat(np.arange(num_groups), sizes)
    is_event = random.random(len(places)) < 0.4
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    is_event[first], is_event[first + 1] = True, False
    shared = random.normal(0, math.sqrt(CORRELATION), num_groups)[places]
    own = random.normal(0, math.sqrt(1 - CORRELATION), len(places))
    return Clips([f"group{place}" for place in places], is_event, distance * is_event + shared + own)


def figure(name: str, clips: Clips, distance: float) -> tuple[Statistic, NDArray[np.int64] | None, float]:
    """Returns a figure of weighted clips, the kinds it needs, and its true value in the long run."""
    right = (clips.scores >= distance / 2) == clips.is_event
    if name == "accuracy":
        return lambda weights: share(right, weights), None, float(stats.norm.cdf(distance / 2))
    if name == "recall":
        kinds = np.where(clips.is_event, 0, -1)
        return lambda weights: share(right, weights * clips.is_event), kinds, float(stats.norm.cdf(distance / 2))
    truth = float(stats.norm.cdf(distance / math.sqrt(2)))
    return lambda weights: auroc(clips.is_event, clips.scores, weights), clips.is_event.astype(np.int64), truth


def coverage(name: str, num_groups: int, distance: float, sets: int, seed: int) -> tuple[float, float, float]:
    """Returns the true figure, the share of intervals that hold it, and their mean width."""
    random = np.random.default_rng((seed, num_groups, int(distance * 10)))
    held, widths, truth = 0, 0.0, 0.0
    for _ in range(sets):
        clips = simulate(random, num_groups, distance)
        statistic, kinds, truth = figure(name, clips, distance)
        interval = group_interval(statistic, clips.groups, kinds=kinds)
        assert interval is not None
        held += interval.low <= truth <= interval.high
        widths += interval.high - interval.low
    return truth, held / sets, widths / sets


def main(say: Callable[[str], None] = print) -> None:
    """Prints a table of coverages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    told = parser.parse_args()
    say("| figure | truth | groups | coverage | mean width |\n|---|---|---|---|---|")
    for distance in (1.5, 3.0):
        for name in FIGURES:
            for num_groups in (10, 20, 40):
                truth, held, width = coverage(name, num_groups, distance, told.sets, told.seed)
                say(f"| {name} | {truth:.3f} | {num_groups} | {held:.3f} | {width:.3f} |")


if __name__ == "__main__":
    main()
