"""Curves and bands against cases computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tillwatch.evaluation.curves import (
    GRID,
    pr_curve,
    pr_line,
    precision_at,
    recall_at,
    roc_curve,
    roc_line,
    threshold_steps,
)
from tillwatch.evaluation.figures import average_precision
from tillwatch.evaluation.intervals import group_interval

EVENT = np.array([True, False, True, True, False])
SCORES = np.array([0.9, 0.8, 0.7, 0.4, 0.1])
ONES = np.ones(5)


def test_roc_corners_by_hand_and_equal_scores_make_one_slanted_step() -> None:
    x, y = roc_line(EVENT, SCORES, ONES)
    assert x.tolist() == pytest.approx([0, 0, 0.5, 0.5, 0.5, 1])
    assert y.tolist() == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 1, 1])
    assert recall_at((x, y), np.array([0, 0.25, 0.5, 0.75, 1])).tolist() == pytest.approx([1 / 3, 1 / 3, 1, 1, 1])
    tied = roc_line(np.array([True, False]), np.array([0.5, 0.5]), np.ones(2))
    assert recall_at(tied, np.array([0.25, 0.5])).tolist() == pytest.approx([0.25, 0.5])


def test_precision_is_that_of_the_first_alarms_that_reach_a_recall() -> None:
    line = pr_line(EVENT, SCORES, ONES)
    assert line[0].tolist() == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 1, 1])
    assert line[1].tolist() == pytest.approx([1, 1, 1 / 2, 2 / 3, 3 / 4, 3 / 5])
    recalls = np.array([0, 1 / 3, 0.34, 2 / 3, 0.9, 1])
    assert precision_at(line, recalls).tolist() == pytest.approx([1, 1, 2 / 3, 2 / 3, 3 / 4, 3 / 4])


def test_weights_count_clips_as_often_and_areas_are_the_figures() -> None:
    random = np.random.default_rng(0)
    event, scores, times = random.random(60) < 0.4, np.round(random.random(60), 1), random.integers(0, 3, 60)
    x, y = roc_line(event, scores, times.astype(float))
    again = np.repeat(np.arange(60), times)
    assert np.trapezoid(y, x) == pytest.approx(roc_auc_score(event[again], scores[again]))
    recall, precision = pr_line(event, scores, times.astype(float))
    area = float((np.diff(recall) * precision[1:]).sum())
    assert area == pytest.approx(average_precision(event, scores, times.astype(float)))


def test_the_band_at_a_place_is_the_interval_by_group_of_the_recall_there() -> None:
    random = np.random.default_rng(1)
    groups = [f"g{place // 10}" for place in range(120)]
    event = np.arange(120) % 2 == 0
    scores = random.normal(event * 1.5, 1)
    curve = roc_curve(event, scores, groups)
    assert curve is not None
    place = 8  # a false positive rate of 0.2: 12 of 60 others
    assert GRID[place] == pytest.approx(0.2)

    def recall(weights: np.ndarray) -> float:
        # By hand: the threshold that lets a fifth of the kept others pass; all sizes divide by five.
        kept = np.sort(scores[(weights > 0) & ~event])[::-1]
        return float((scores[(weights > 0) & event] > kept[len(kept) // 5]).mean())

    expected = group_interval(recall, groups, kinds=event.astype(np.int64))
    band = curve.band[place]
    assert expected is not None
    assert band is not None
    assert (band.low, band.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert pr_curve(event, scores, groups) is not None


def test_no_band_below_ten_groups_and_no_curve_of_one_kind() -> None:
    groups = [f"g{place % 9}" for place in range(90)]
    event, scores = np.arange(90) % 3 == 0, np.linspace(0, 1, 90)
    curve = roc_curve(event, scores, groups)
    assert curve is not None
    assert set(curve.band) == {None}
    assert roc_curve(np.ones(90, bool), scores, groups) is None


def test_a_clip_at_the_threshold_counts_as_an_alarm() -> None:
    steps = threshold_steps(EVENT, SCORES, [0.0, 0.4, 0.41, 0.8, 1.0])
    assert [(step.found, step.false_alarms) for step in steps] == [(3, 2), (3, 1), (2, 1), (1, 1), (0, 0)]
