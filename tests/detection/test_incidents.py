"""Window scores to incidents: table tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tillwatch.clip_spec import Roi
from tillwatch.detection.incidents import Incident, Rule, Scored, find_incidents, incidents_of_regions, smooth
from tillwatch.errors import ConfigError


def windows(scores: Sequence[float | None], length: float = 2, stride: float = 1) -> list[Scored]:
    """A window a second, two seconds long; None leaves one out."""
    return [
        Scored(start_s=place * stride, end_s=place * stride + length, score=score, label=f"class {place}")
        for place, score in enumerate(scores)
        if score is not None
    ]


def spans(incidents: Sequence[Incident]) -> list[tuple[float, float]]:
    return [(incident.start_s, incident.end_s) for incident in incidents]


@pytest.mark.parametrize(
    ("scores", "rule", "expected"),
    [
        ([0.1, 0.2, 0.1], {}, []),
        ([0.1, 0.5, 0.1], {}, [(1, 3)]),  # a window that reaches the threshold is one
        ([0.1, 0.4999, 0.1], {}, []),
        ([0.9], {}, [(0, 2)]),
        ([], {}, []),
        # hysteresis: neighbours that reach the release belong to it, before and after
        ([0.1, 0.41, 0.9, 0.41, 0.39], {}, [(1, 5)]),
        ([0.1, 0.45, 0.45, 0.45], {}, []),  # the release alone starts nothing
        ([0.9, 0.45, 0.9], {}, [(0, 4)]),  # and holds two peaks together
        ([0.9, 0.45, 0.9], {"release": 1.0}, [(0, 4)]),  # overlapping windows touch, whatever lies between
        ([0.9, 0.1, 0.1, 0.9], {}, [(0, 2), (3, 5)]),
        ([0.9, 0.1, 0.1, 0.1, 0.9], {"merge_gap": 1}, [(0, 2), (4, 6)]),
        ([0.9, 0.1, 0.1, 0.1, 0.9], {"merge_gap": 2}, [(0, 6)]),
        ([0.9, 0.1, 0.1, 0.1, 0.9, 0.9], {"min_seconds": 3}, [(4, 7)]),
        # what is joined first is long enough
        ([0.9, 0.1, 0.1, 0.9], {"merge_gap": 1, "min_seconds": 5}, [(0, 5)]),
        # smoothing: one window alone is no incident, three are
        ([0, 0, 0.9, 0, 0], {"smoothing": 3}, []),
        ([0, 0, 0.9, 0.9, 0.9, 0, 0], {"smoothing": 3}, [(2, 6)]),
        # a gap in the recording ends an incident, and nothing is smoothed over it
        ([0.9, None, None, None, 0.9], {}, [(0, 2), (4, 6)]),
        ([0.9, 0.9, None, None, None, 0.0], {"smoothing": 3}, [(0, 3)]),
    ],
)
def test_which_windows_make_an_incident(
    scores: Sequence[float | None], rule: dict[str, Any], expected: list[tuple[float, float]]
) -> None:
    assert spans(find_incidents(windows(scores), Rule(**{"threshold": 0.5, "merge_gap": 0, **rule}))) == expected


def test_what_is_said_of_an_incident() -> None:
    (incident,) = find_incidents(windows([0.1, 0.4, 0.6, 0.8, 0.1]), Rule(threshold=0.5))
    assert incident.peak == 0.8
    assert incident.peak_s == 4
    assert incident.mean == pytest.approx(0.6)
    assert incident.windows == 3
    assert incident.label == "class 3"
    assert incident.alert_s == 4  # the end of the first window over the threshold, not over the release


def test_joined_incidents_keep_the_first_alert_and_the_highest_peak() -> None:
    (incident,) = find_incidents(windows([0.6, 0.1, 0.1, 0.9, 0.9]), Rule(threshold=0.5, merge_gap=1))
    assert (incident.alert_s, incident.peak, incident.label, incident.windows) == (2, 0.9, "class 3", 3)
    assert incident.mean == pytest.approx(0.8)


def test_an_alert_waits_for_the_windows_that_smoothing_looks_at() -> None:
    (incident,) = find_incidents(windows([0.0, 0.6, 0.9, 0.6, 0.0]), Rule(threshold=0.7, smoothing=3))
    assert incident.alert_s == 5  # window 2 is over, known when window 3 has been seen


def test_smoothing_is_a_mean_of_those_that_there_are() -> None:
    assert smooth([1, 0, 0, 1], 3).tolist() == pytest.approx([0.5, 1 / 3, 1 / 3, 0.5])
    assert smooth([0.3, 0.7], 1).tolist() == [0.3, 0.7]


LEFT, MORE_LEFT, RIGHT = (
    Roi(x=0, y=0, width=0.5, height=1),
    Roi(x=0, y=0, width=0.4, height=1),
    Roi(x=0.4, y=0, width=0.6, height=1),
)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        # the same place at the same time is one incident
        ({"left": [0.9, 0.1], "more": [0.1, 0.7]}, [(("left", "more"), 0, 3)]),
        # at another time it is another
        ({"left": [0.9, 0.1, 0.1], "more": [0.1, 0.1, 0.7]}, [(("left",), 0, 2), (("more",), 2, 4)]),
        # another place at the same time is another
        ({"left": [0.9], "right": [0.9]}, [(("left",), 0, 2), (("right",), 0, 2)]),
        # one that overlaps two others makes them one
        ({"left": [0.9, 0, 0, 0, 0.9], "more": [0, 0.9, 0.9, 0.9, 0]}, [(("left", "more"), 0, 6)]),
    ],
)
def test_regions_that_overlap_are_merged(
    scores: dict[str, list[float]], expected: list[tuple[tuple[str, ...], float, float]]
) -> None:
    boxes = {"left": LEFT, "more": MORE_LEFT, "right": RIGHT}
    found = incidents_of_regions({name: windows(of) for name, of in scores.items()}, boxes, Rule(threshold=0.5))
    assert [(incident.regions, incident.start_s, incident.end_s) for incident in found] == expected


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=30), st.floats(0.01, 1), st.floats(0, 4))
def test_incidents_are_apart_and_hold_every_window_over_the_threshold(
    scores: list[float | None], threshold: float, merge_gap: float
) -> None:
    rule = Rule(threshold=threshold, merge_gap=merge_gap)
    made_of = windows(scores)
    found = find_incidents(made_of, rule)
    for one, other in pairwise(found):
        assert other.start_s - one.end_s > merge_gap
    for window in made_of:
        inside = any(one.start_s <= window.start_s and window.end_s <= one.end_s for one in found)
        assert inside or window.score < threshold
    assert all(one.peak >= threshold for one in found)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": -0.1}, "--threshold is -0.1"),
        ({"threshold": 1.5}, "--threshold is 1.5"),
        ({"threshold": math.nan}, "--threshold is nan"),
        ({"threshold": 0.5, "release": 0}, "--release is 0"),
        ({"threshold": 0.5, "smoothing": 2}, "--smoothing is 2"),
        ({"threshold": 0.5, "smoothing": -1}, "--smoothing is -1"),
        ({"threshold": 0.5, "min_seconds": -1}, "--min-seconds is -1"),
        ({"threshold": 0.5, "merge_gap": math.inf}, "--merge-gap is inf"),
    ],
)
def test_a_rule_that_means_nothing_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Rule(**settings)
