"""Incidents against the truth: hand-computed cases."""

from __future__ import annotations

from typing import Any

import pytest

from tillwatch.detection.scoring import Alarm, TrueEvent, match, score_incidents, seconds_far_from


def event(start: float, end: float, file: str = "a.mp4", region: str = "") -> TrueEvent:
    return TrueEvent(file=file, start_s=start, end_s=end, region=region)


def alarm(start: float, end: float, file: str = "a.mp4", **told: Any) -> Alarm:
    return Alarm(file=file, start_s=start, end_s=end, **told)


@pytest.mark.parametrize(
    ("incident", "what", "matches"),
    [
        (alarm(8, 12), event(10, 14), True),
        (alarm(8, 12), event(9, 10), True),
        (alarm(8, 10), event(10, 14), False),  # they touch, but share no time
        (alarm(14, 18), event(10, 14), False),
        (alarm(8, 12, file="b.mp4"), event(10, 14), False),
        (alarm(8, 12, regions=("till1",)), event(10, 14), True),
        (alarm(8, 12), event(10, 14, region="till1"), True),
        (alarm(8, 12, regions=("till1", "till2")), event(10, 14, region="till2"), True),
        (alarm(8, 12, regions=("till1",)), event(10, 14, region="till2"), False),
    ],
)
def test_what_matches(incident: Alarm, what: TrueEvent, matches: bool) -> None:
    assert match([incident], [what]).right == (matches,)
    assert (match([incident], [what]).delays_s[0] is not None) is matches


def test_a_tolerance_widens_events() -> None:
    assert match([alarm(8, 10)], [event(10, 14)], tolerance_s=1).right == (True,)
    assert match([alarm(8, 10)], [event(12, 14)], tolerance_s=1).right == (False,)


def test_the_first_alert_counts_and_others_on_the_same_event_repeat() -> None:
    incidents = [alarm(12, 20, alert_s=15), alarm(9, 11, alert_s=11), alarm(30, 40)]
    matches = match(incidents, [event(10, 18)])
    assert matches.delays_s == (1,)
    assert matches.right == (True, True, False)
    assert matches.repeats == 1


def test_an_incident_over_two_events_finds_both_and_repeats_nothing() -> None:
    matches = match([alarm(0, 30, alert_s=5)], [event(10, 12), event(20, 22)])
    assert matches.delays_s == (-5, -15)  # the alert came first
    assert matches.repeats == 0


def test_figures_by_hand() -> None:
    events = [event(10, 20), event(100, 110), event(50, 60, file="b.mp4")]
    incidents = [
        alarm(9, 15, alert_s=12, peak=0.9),
        alarm(16, 21, alert_s=18, peak=0.6),  # repeats the first
        alarm(200, 230, peak=0.8),  # false
        alarm(40, 50, file="b.mp4", peak=0.7),  # false: over when the event begins
    ]
    found = score_incidents(incidents, events, hours=2.0)
    assert (found.events, found.found, found.incidents, found.false_alarms, found.repeats) == (3, 1, 4, 2, 1)
    assert found.recall == pytest.approx(1 / 3)
    assert found.precision == 0.5
    assert found.alarms is not None
    assert found.alarms.per_hour == 1.0
    assert found.alarms.high == pytest.approx(7.225 / 2, abs=1e-3)
    assert found.at_most_per_hour == pytest.approx(6.296 / 2, abs=1e-3)
    assert found.alarm_share == pytest.approx((6 + 5 + 30 + 10) / 7200)
    assert (found.delay_median_s, found.delay_most_s) == (2, 2)
    assert found.missed == (events[1], events[2])
    curve = [(point.threshold, point.recall, point.false_alarms, point.precision) for point in found.curve]
    third: Any = pytest.approx(1 / 3)
    assert curve == [(0.9, third, 0, 1.0), (0.8, third, 1, 0.5), (0.7, third, 2, third), (0.6, third, 2, 0.5)]
    assert found.curve[1].false_alarms_per_hour == 0.5
    assert found.curve[1].alarm_share == pytest.approx((6 + 30) / 7200)
    assert any("at most 3.15, one-sided" in line for line in found.lines())
    assert any(line.startswith("missed: b.mp4, 50.0 to 60.0 s") for line in found.lines())


def test_nothing_to_divide_by_is_no_figure() -> None:
    nothing = score_incidents([], [], hours=None)
    assert [nothing.recall, nothing.precision, nothing.alarms, nothing.delay_median_s] == [None] * 4
    assert nothing.curve == ()
    quiet = score_incidents([], [event(0, 1)], hours=3.0)
    assert quiet.recall == 0
    assert quiet.alarms is not None
    assert quiet.alarms.high == quiet.at_most_per_hour  # no false alarm: the interval is the bound
    assert quiet.at_most_per_hour == pytest.approx(2.996 / 3, abs=1e-3)


def test_time_within_incidents_counts_once_where_they_overlap() -> None:
    incidents = [alarm(0, 10), alarm(5, 20), alarm(5, 8), alarm(0, 10, file="b.mp4")]
    assert score_incidents(incidents, [], hours=1.0).alarm_share == pytest.approx(30 / 3600)


@pytest.mark.parametrize(
    ("incidents", "far"),
    [
        ([alarm(10, 20)], 0),
        ([alarm(5, 25)], 6),  # two seconds either side are near
        ([alarm(0, 4)], 4),
        ([alarm(0, 4), alarm(2, 6)], 6),
        ([alarm(10, 20, file="b.mp4")], 10),
        ([], 0),
    ],
)
def test_time_far_from_events(incidents: list[Alarm], far: float) -> None:
    assert seconds_far_from(incidents, [event(10, 20), event(19, 20)], 2) == pytest.approx(far)


def test_recall_has_an_interval_from_ten_files_on() -> None:
    events = [event(10, 20, file=f"{number}.mp4") for number in range(10)]
    incidents = [alarm(10, 20, file=f"{number}.mp4") for number in range(8)]
    few = score_incidents(incidents[:7], events[:9], hours=1.0)
    assert few.recall_interval is None
    many = score_incidents(incidents, events, hours=1.0)
    assert many.recall_interval is not None
    assert many.recall_interval.low < 0.8 < many.recall_interval.high
    assert any("by file" in line for line in many.lines())


def test_the_curve_asks_for_the_incidents_at_each_threshold() -> None:
    asked: list[float] = []

    def at(threshold: float) -> list[Alarm]:
        asked.append(threshold)
        return [alarm(10, 20)] if threshold < 0.5 else []

    found = score_incidents(
        [], [event(10, 20)], hours=1.0, at_threshold=at, thresholds=[i / 1000 for i in range(1, 999)]
    )
    assert 100 < len(asked) <= 200
    assert asked[:20] == [1 - n / 1000 for n in range(2, 22)]  # the highest whole
    assert asked[-1] == 0.001
    assert [point.recall for point in found.curve if point.threshold < 0.5] == [1.0] * sum(t < 0.5 for t in asked)
