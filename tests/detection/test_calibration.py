"""The operating point of incidents: hand-computed cases."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tillwatch.detection.calibration import Goal, choose_point
from tillwatch.detection.incidents import Rule
from tillwatch.detection.results import Recording, Scan, WindowScore
from tillwatch.detection.scoring import TrueEvent
from tillwatch.errors import DataError


def scan_of(*files: Sequence[float], hours: float = 1.0) -> Scan:
    """A window a second, one second long, of files that last so many hours in all; after those told they score 0.1."""
    seconds = round(hours * 3600 / len(files))
    return Scan(
        model={"path": "run", "arch": "tinynet", "sha256": "abc"},
        classes=("theft", "normal"),
        event=("theft",),
        window_s=1.0,
        stride_s=1.0,
        rule=Rule(threshold=0.5, release=1.0),
        rule_source="",
        recordings=tuple(
            Recording(
                file=str(number),
                camera="c",
                seconds=seconds,
                started=None,
                regions={"whole": None},
                scores=[
                    WindowScore(
                        region="whole", number=n, start_s=n, end_s=n + 1.0, frames=5, probabilities=(score, 1 - score)
                    )
                    for n, score in enumerate([*scores, *[0.1] * (seconds - len(scores))])
                ],
            )
            for number, scores in enumerate(files)
        ),
        left_out={},
    )


def event(start: float, file: int = 0) -> TrueEvent:
    return TrueEvent(file=str(file), start_s=start, end_s=start + 1)


# Events at 2 (0.9), 6 (0.6) and 10 (0.4); 0.7 at 14 is a false alarm and 0.5 at 18 another.
SCORES = [0.1, 0.1, 0.9, 0.1, 0.1, 0.1, 0.6, 0.1, 0.1, 0.1, 0.4, 0.1, 0.1, 0.1, 0.7, 0.1, 0.1, 0.1, 0.5, 0.1]
EVENTS = [event(2), event(6), event(10)]


@pytest.mark.parametrize(
    ("goal", "threshold", "told"),
    [
        (Goal(max_false_alarms_per_hour=0), 0.8, "1 of 3 events found, 0 false alarms"),
        (Goal(max_false_alarms_per_hour=1), 0.55, "2 of 3 events found, 1 false alarm"),
        (Goal(max_false_alarms_per_hour=2), 0.25, "3 of 3 events found, 2 false alarms"),
        (Goal(min_recall=0.3), 0.8, "1 of 3 events found, 0 false alarms"),
        (Goal(min_recall=2 / 3), 0.55, "2 of 3 events found, 1 false alarm"),
        (Goal(min_recall=1), 0.25, "3 of 3 events found, 2 false alarms"),
        (Goal(), 0.25, "3 of 3 events found, 2 false alarms"),  # F1 of 1/2, 2/3 and 3/4
    ],
)
def test_a_threshold_does_what_is_asked_for(goal: Goal, threshold: float, told: str) -> None:
    choice = choose_point(scan_of(SCORES), EVENTS, goal)
    assert choice.threshold == pytest.approx(threshold)
    assert told in choice.source
    assert "chosen on incidents in 1 h of 1 file:" in choice.source


def test_a_budget_is_for_each_hour() -> None:
    choice = choose_point(scan_of(SCORES, hours=2.0), EVENTS, Goal(max_false_alarms_per_hour=0.5))
    assert choice.threshold == pytest.approx(0.55)


def test_a_threshold_under_which_all_is_one_incident_is_no_choice() -> None:
    # Under 0.3 a hundred seconds are one incident, which finds both events at no false alarm.
    long = [0.9, *[0.3] * 98, 0.2]
    choice = choose_point(scan_of(long, hours=0.05), [event(0), event(99)], Goal(max_false_alarms_per_hour=0))
    assert choice.threshold == pytest.approx(0.6)
    assert "1 of 2 events found" in choice.source
    with pytest.raises(DataError, match="no threshold gives recall of at least 1, finds an event and leaves 95%"):
        choose_point(scan_of(long, hours=0.05), [event(0), event(99)], Goal(min_recall=1))


def test_a_goal_out_of_reach_says_what_can_be_had() -> None:
    scan = scan_of([0.2, *[0.1] * 9, 0.9, *[0.1] * 9, 0.3], hours=0.1)
    with pytest.raises(DataError, match=r"What can be had: 10 false alarms an hour, or 1 events\.$"):
        choose_point(scan, [event(20)], Goal(max_false_alarms_per_hour=5))


def test_footage_without_events_chooses_nothing() -> None:
    with pytest.raises(DataError, match="holds no event"):
        choose_point(scan_of(SCORES), [], Goal())
