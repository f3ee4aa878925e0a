"""Intervals by group: what they must hold, where they must be refused."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from tillwatch.evaluation.figures import auroc, average_precision, f1, mean_recall, precision, share
from tillwatch.evaluation.intervals import (
    clips_for,
    group_interval,
    least_groups,
    paired_interval,
    too_few,
    why_no_interval,
)

RIGHT = np.array([True, True, True, False] * 15)
GROUPS = [f"g{place // 5}" for place in range(60)]


def test_weighted_figures_equal_those_of_repeated_clips() -> None:
    random = np.random.default_rng(0)
    event, scores = random.random(40) < 0.4, np.round(random.random(40), 1)
    times = random.integers(0, 4, 40)
    again = np.repeat(np.arange(40), times)
    weights = times.astype(float)
    assert auroc(event, scores, weights) == pytest.approx(roc_auc_score(event[again], scores[again]))
    expected = average_precision_score(event[again], scores[again])
    assert average_precision(event, scores, weights) == pytest.approx(expected)
    alarm = scores >= 0.5
    hits, alarms, events = (int(x[again].sum()) for x in (event & alarm, alarm, event))
    assert precision(event, alarm, weights) == pytest.approx(hits / alarms)
    assert f1(event, alarm, weights) == pytest.approx(2 * hits / (alarms + events))
    assert share(alarm, weights * event) == pytest.approx(hits / events)
    assert mean_recall(np.array([0, 0, 1]), np.array([0, 1, 1]), np.ones(3)) == pytest.approx(0.75)
    assert np.isnan(auroc(np.ones(3, bool), np.ones(3), np.ones(3)))


def test_interval_holds_the_figure_and_narrows_with_groups() -> None:
    few = group_interval(lambda w: share(RIGHT, w), GROUPS)
    four_times = np.tile(RIGHT, 4)
    many = group_interval(lambda w: share(four_times, w), [f"{copy}{group}" for copy in range(4) for group in GROUPS])
    assert few is not None
    assert many is not None
    assert few.low < 0.75 < few.high
    assert many.high - many.low < 0.6 * (few.high - few.low)


def test_clips_that_go_together_in_groups_widen_the_interval() -> None:
    apart = group_interval(lambda w: share(RIGHT, w), [f"g{place % 15}" for place in range(60)])
    together = np.repeat([True, True, True, False], 15)  # the same 45 of 60, group by group
    clumped = group_interval(lambda w: share(together, w), [f"g{place // 4}" for place in range(60)])
    spread = group_interval(lambda w: share(RIGHT, w), [f"g{place // 4}" for place in range(60)])
    assert apart is not None
    assert clumped is not None
    assert spread is not None
    assert clumped.high - clumped.low > 1.5 * (spread.high - spread.low)


def test_mistakes_of_every_kind_tell_how_they_gather_worked_out_by_hand() -> None:
    groups = [f"g{place // 5}" for place in range(60)]
    labels = np.tile([1, 1, 0, 0, 0], 12)  # 24 events, 36 others
    predicted = labels.copy()
    predicted[[2, 3]] = 1  # both mistakes in one group
    interval = group_interval(lambda w: mean_recall(labels, predicted, w), groups, kinds=labels)
    figure = (1 + 34 / 36) / 2
    left_out = np.array([1.0] + [(1 + 31 / 33) / 2] * 11)
    variance = 11 / 12 * ((left_out - left_out.mean()) ** 2).sum()
    leaning = 1 / (1 + (1 - figure) * 60) ** 4  # of all 60 clips, not of the 24 events alone
    # The events, 2 to a group, are worth 24 / 1.2 = 20; with the others twice that. t(11) is 2.201.
    number = 1 / (leaning / 40 + (1 - leaning) * variance / (figure * (1 - figure)))
    low = (figure + 2.201**2 / (2 * number)) / (1 + 2.201**2 / number)
    low -= 2.201 / (1 + 2.201**2 / number) * (figure * (1 - figure) / number + (2.201 / (2 * number)) ** 2) ** 0.5
    assert interval is not None
    assert interval.low == pytest.approx(low, abs=1e-4)


def test_a_faultless_ranking_is_worth_five_times_the_clips_worked_out_by_hand() -> None:
    groups = [f"g{place // 5}" for place in range(60)]
    labels = np.tile([1, 1, 0, 0, 0], 12)
    interval = group_interval(lambda w: 1.0, groups, kinds=labels, ranking=True)
    assert interval is not None
    # The events are worth 20 clips, both kinds 40; Wilson's lower end of a share of 1 is n / (n + t^2).
    assert interval.low == pytest.approx(200 / (200 + 2.201**2), abs=1e-4)
    assert interval.high == 1.0


def test_a_few_large_groups_count_as_few_worked_out_by_hand() -> None:
    sizes = [30] * 3 + [2] * 17
    groups = [f"g{place}" for place, size in enumerate(sizes) for _ in range(size)]
    interval = group_interval(lambda w: 1.0, groups)
    worth = 124**2 / (3 * 30 * (1 + 29 * 0.2) + 17 * 2 * 1.2)
    t = float(stats.t.ppf(0.975, 1.5 * 124**2 / (3 * 900 + 17 * 4) - 1))  # they tell as much as 5.6 groups of one size
    assert interval is not None
    assert t == pytest.approx(2.34, abs=0.01)
    assert interval.low == pytest.approx(worth / (worth + t**2), abs=1e-4)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_perfect_and_hopeless_classifiers_get_an_interval_of_some_width(value: float) -> None:
    interval = group_interval(lambda w: share(np.full(60, bool(value)), w), GROUPS)
    assert interval is not None
    assert interval.low <= value <= interval.high
    # 60 clips in 12 groups, correlated by 0.2, are worth 60 / 1.8 = 33.3; t(11) is 2.201.
    assert interval.high - interval.low == pytest.approx(2.201**2 / (60 / 1.8 + 2.201**2), abs=1e-3)


def test_no_interval_below_ten_groups_of_each_kind_and_the_sentence_says_why() -> None:
    nine = [f"g{place % 9}" for place in range(60)]
    assert group_interval(lambda w: share(RIGHT, w), nine) is None
    assert "9 groups" in (why_no_interval(nine) or "")
    assert "tillwatch crossval" in (why_no_interval(nine) or "")
    assert why_no_interval(GROUPS) is None
    kinds = np.where(np.arange(60) < 15, 1, 0)  # the event's clips lie in three groups
    assert least_groups(GROUPS, kinds) == 3
    assert group_interval(lambda w: share(RIGHT, w * kinds), GROUPS, kinds=kinds) is None
    assert least_groups(GROUPS, np.where(kinds == 1, -1, 0)) == 9


def test_a_figure_that_cannot_be_computed_has_no_interval() -> None:
    assert group_interval(lambda w: float("nan"), GROUPS) is None


def test_paired_interval_is_narrower_than_the_models_own_and_never_a_point() -> None:
    right = np.random.default_rng(2).random(60) < 0.7
    better = right.copy()
    better[int((~right).argmax())] = True
    paired = paired_interval(lambda w: share(better, w), lambda w: share(right, w), GROUPS)
    own = group_interval(lambda w: share(right, w), GROUPS)
    same = paired_interval(lambda w: share(RIGHT, w), lambda w: share(RIGHT, w), GROUPS)
    assert paired is not None
    assert own is not None
    assert same is not None
    assert paired.low < 1 / 60 < paired.high
    assert paired.high - paired.low < own.high - own.low
    assert same.low < 0 < same.high


def test_too_few_clips_say_how_many_it_would_take() -> None:
    assert clips_for(0.1) == 62  # 0.8 * 0.2 * (1.96 / 0.1)^2 = 61.5
    assert "4 event clips are too few" in (too_few(4, 100) or "")
    assert "about 62" in (too_few(4, 100) or "")
    assert "9 other clips" in (too_few(10, 9) or "")
    assert too_few(10, 10) is None


def test_coverage_of_simulated_groups() -> None:
    random, held = np.random.default_rng(1), 0
    for _ in range(200):
        sizes = random.integers(2, 12, 12)
        places = np.repeat(np.arange(12), sizes)
        shared = random.normal(0, 0.2**0.5, 12)[places]
        right = shared + random.normal(0, 0.8**0.5, len(places)) < 0.8416  # true in 80 of 100
        interval = group_interval(lambda w, right=right: share(right, w), [str(place) for place in places])  # type: ignore[misc]
        assert interval is not None
        held += interval.low <= 0.8 <= interval.high
    assert 0.90 <= held / 200 <= 0.99


def test_many_groups_are_left_out_several_at_a_time() -> None:
    calls, right = [], np.arange(3000) % 4 > 0

    def statistic(weights: NDArray[np.float64]) -> float:
        calls.append(1)
        return share(right, weights)

    interval = group_interval(statistic, [str(place) for place in range(3000)])
    assert interval is not None
    assert len(calls) == 201
    assert interval.high - interval.low == pytest.approx(2 * 1.97 * (0.75 * 0.25 / 3000) ** 0.5, rel=0.35)
