"""The operating point against hand-computed cases."""

from __future__ import annotations

import numpy as np
import pytest

from tillwatch.errors import DataError
from tillwatch.evaluation.operating_point import (
    choose_threshold,
    expected_a_day,
    false_alarms_per_hour,
    measure,
    most_per_hour,
)

SCORES = np.array([0.9, 0.8, 0.7, 0.6, 0.4, 0.2])
EVENT = np.array([True, True, False, True, False, False])


def test_best_f1() -> None:
    # Above 0.7: 2 of 3, F1 0.8; above 0.4: 3 of 3 with one false alarm, F1 6/7.
    choice = choose_threshold(SCORES, EVENT)
    assert choice.threshold == pytest.approx(0.5)
    assert "best F1, chosen on 6 validation clips, 3 of them events: 3 of 3 found, 1 false alarm" in choice.source


def test_budget_of_false_alarms() -> None:
    none = choose_threshold(SCORES, EVENT, max_false_alarms_per_hour=0.9, hours=1.0)
    assert none.threshold == pytest.approx(0.75)
    one = choose_threshold(SCORES, EVENT, max_false_alarms_per_hour=0.5, hours=2.0)
    assert one.threshold == pytest.approx(0.5)
    with pytest.raises(DataError, match="needs the hours"):
        choose_threshold(SCORES, EVENT, max_false_alarms_per_hour=1)


def test_least_recall() -> None:
    assert choose_threshold(SCORES, EVENT, min_recall=0.6).threshold == pytest.approx(0.75)
    assert choose_threshold(SCORES, EVENT, min_recall=1).threshold == pytest.approx(0.5)


def test_a_budget_that_no_event_survives_is_said() -> None:
    choice = choose_threshold(SCORES, ~EVENT, max_false_alarms_per_hour=0, hours=1)
    assert "no event stays found" in choice.source
    assert measure(SCORES, ~EVENT, choice.threshold).false_alarms == 0
    top = choose_threshold(np.array([1.0, 0.5]), np.array([False, True]), max_false_alarms_per_hour=0, hours=1)
    assert top.threshold > 1, "a score of 1 must not reach it"


def test_ties_fall_on_one_side_and_equal_scores_are_said() -> None:
    tied = choose_threshold(np.array([0.5, 0.5, 0.1]), np.array([True, False, False]), min_recall=1)
    assert tied.threshold == pytest.approx(0.3)
    assert "1 false alarm" in tied.source
    equal = choose_threshold(np.full(4, 0.5), np.array([True, False, True, False]))
    assert "all scores are equal" in equal.source
    near = np.nextafter(0.5, 1)
    assert choose_threshold(np.array([0.5, near]), np.array([False, True])).threshold == near


@pytest.mark.parametrize("event", [True, False])
def test_one_kind_of_clip_gives_no_point(event: bool) -> None:
    with pytest.raises(DataError, match="takes events and others"):
        choose_threshold(SCORES, np.full(6, event))


def test_measured() -> None:
    point = measure(SCORES, EVENT, 0.6, hours=2.0)
    assert (point.found, point.false_alarms, point.others) == (3, 1, 3)
    assert point.recall == 1.0
    assert point.precision == 0.75
    assert point.f1 == pytest.approx(6 / 7)
    assert point.alarms is not None
    assert point.alarms.per_hour == 0.5
    nothing = measure(SCORES, np.zeros(6, bool), 2.0)
    assert nothing.recall is nothing.precision is nothing.f1 is None


# Limits of a Poisson mean, 95 % two-sided, as tables print them (Garwood, 1936). By hand:
# with one seen, exp(-m) (1 + m) = 0.025 gives 5.572, and 1 - exp(-m) = 0.025 gives 0.0253.
GARWOOD = {1: (0.0253, 5.572), 2: (0.242, 7.225), 3: (0.619, 8.767), 5: (1.623, 11.668), 10: (4.795, 18.390)}


@pytest.mark.parametrize("count", GARWOOD)
@pytest.mark.parametrize("hours", [0.5, 10.0])
def test_false_alarms_an_hour_and_their_bounds_against_tables(count: int, hours: float) -> None:
    alarms, (low, high) = false_alarms_per_hour(count, hours), GARWOOD[count]
    assert alarms.per_hour == count / hours
    assert (alarms.low * hours, alarms.high * hours) == pytest.approx((low, high), abs=6e-4)


@pytest.mark.parametrize("hours", [0.5, 3.0, 40.0])
def test_no_false_alarm_has_the_one_sided_bound(hours: float) -> None:
    none = false_alarms_per_hour(0, hours)
    assert (none.per_hour, none.low) == (0.0, 0.0)
    assert none.high * hours == pytest.approx(2.9957, abs=1e-4)  # exp(-m) = 0.05: m = ln 20, the rule of three


@pytest.mark.parametrize(("count", "most"), [(0, 2.996), (1, 4.744), (2, 6.296), (5, 10.513)])
def test_the_one_sided_bound_against_tables(count: int, most: float) -> None:
    assert most_per_hour(count, 2.0) == pytest.approx(most / 2, abs=5e-4)


def test_alarms_a_day_by_bayes() -> None:
    # 1000 clips a day, one in a hundred an event: 8 of 10 found, 99 of 990 others are alarms.
    # 10 of 100 normal clips alarm; they stand for 2.4 h, so a day holds 1,000 clips: 10 events, 8 of them found.
    day = expected_a_day(0.8, 100, false_alarms_per_hour(10, 2.4), 0.01)
    assert (day.clips, day.true, day.false) == pytest.approx((1000, 8, 99))
    assert day.true_share == pytest.approx(8 / 107)
    assert (day.false_low, day.false_high) == pytest.approx((99 * 0.4795, 99 * 1.8390), rel=1e-3)
    assert (day.true_share_low, day.true_share_high) == pytest.approx((8 / 190.1, 8 / 55.47), rel=1e-3)
    # None of 6: at most 3 in those hours, and so a bound on how many alarms are true.
    none = expected_a_day(1.0, 6, false_alarms_per_hour(0, 0.1), 0.001)
    assert (none.false, none.true_share) == (0, 1)
    assert none.false_high == pytest.approx(24 * 0.999 * 2.9957 / 0.1, rel=1e-4)
    assert str(none) == (
        "1.44 alarms, 1.44 of them true and 0 false (at most 718, 95 %): at least 0.2 % of all alarms would be true"
    )
    nothing = expected_a_day(0.0, 100, false_alarms_per_hour(0, 2.4), 0.0)
    assert nothing.true_share is None
    # The same hours count a day as an hour, whoever told them.
    declared = expected_a_day(0.8, 6, false_alarms_per_hour(10, 40), 0.0)
    assert declared.false == pytest.approx(24 * 10 / 40)
