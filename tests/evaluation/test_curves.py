"""Curves and bands against cases computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from tillwatch.evaluation.curves import PLACES, pr_curve, pr_line, roc_curve, roc_line, threshold_steps
from tillwatch.evaluation.summary import summarize

EVENT = np.array([True, False, True, True, False])
SCORES = np.array([0.9, 0.8, 0.7, 0.4, 0.1])


def test_corners_by_hand_and_equal_scores_make_one_slanted_step() -> None:
    x, y = roc_line(EVENT, SCORES)
    assert x.tolist() == pytest.approx([0, 0, 0.5, 0.5, 0.5, 1])
    assert y.tolist() == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 1, 1])
    recall, precision = pr_line(EVENT, SCORES)
    assert recall.tolist() == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 1, 1])
    assert precision.tolist() == pytest.approx([1, 1, 1 / 2, 2 / 3, 3 / 4, 3 / 5])
    tied = roc_line(np.array([True, False]), np.array([0.5, 0.5]))
    assert np.array(tied).tolist() == [[0, 1], [0, 1]]


def test_areas_are_the_figures() -> None:
    random = np.random.default_rng(0)
    event, scores = random.random(60) < 0.4, np.round(random.random(60), 1)
    x, y = roc_line(event, scores)
    assert np.trapezoid(y, x) == pytest.approx(roc_auc_score(event, scores))
    recall, precision = pr_line(event, scores)
    assert float((np.diff(recall) * precision[1:]).sum()) == pytest.approx(average_precision_score(event, scores))


def test_the_band_of_a_perfect_model_by_hand() -> None:
    groups = [f"g{place // 10}" for place in range(120)]  # 12 groups of 5 events and 5 others
    event = np.arange(120) % 2 == 0
    roc, pr = roc_curve(event, event * 1.0, groups), pr_curve(event, event * 1.0, groups)
    assert roc is not None
    assert pr is not None
    # Where all are found: 60 events in 12 groups, correlated by 0.2, are worth 60 / 1.8; t(11) is 2.201.
    width = 2.201**2 / (60 / 1.8 + 2.201**2)
    assert [(place.x, place.y) for place in roc.band] == [(0, 1), (1, 1)]
    assert [1 - place.interval.low for place in roc.band] == pytest.approx([width, width], abs=1e-4)
    assert [place.interval.high for place in roc.band] == [1, 1]
    assert [(place.x, place.y) for place in pr.band] == [(1, 1), (1, 0.5)]
    assert 1 - pr.band[0].interval.low == pytest.approx(width, abs=1e-4)


def test_the_band_at_the_operating_point_is_the_interval_of_the_headline() -> None:
    random = np.random.default_rng(1)
    groups = [f"g{place // 10}" for place in range(200)]
    event = np.arange(200) % 2 == 0
    scores = 1 / (1 + np.exp(-random.normal(event * 2 - 1, 1)))
    roc, pr = roc_curve(event, scores, groups), pr_curve(event, scores, groups)
    assert roc is not None
    assert pr is not None
    assert len(roc.band) == PLACES
    threshold = float(np.quantile(scores, 0.5, method="nearest"))
    figures = summarize(1 - event, np.stack([scores, 1 - scores], 1), groups, [0], threshold).figures
    for curve, name in ((roc, "recall"), (pr, "precision")):
        assert any(place.interval == figures[name].interval and place.y == figures[name].value for place in curve.band)
        assert [place.x for place in curve.band] == sorted(place.x for place in curve.band)
        assert all(place.interval.low <= place.y <= place.interval.high for place in curve.band)


def test_repeats_of_the_same_scores_leave_curves_and_bands_as_they_are() -> None:
    random = np.random.default_rng(2)
    groups = [f"g{place // 10}" for place in range(200)]
    event = np.arange(200) % 2 == 0
    scores = 1 / (1 + np.exp(-random.normal(event * 2 - 1, 1)))
    for curve in (roc_curve, pr_curve):
        once, thrice = curve(event, scores, groups), curve(event, np.stack([scores] * 3), groups)
        assert once is not None
        assert thrice is not None
        assert (once.x == thrice.x).all()
        assert once.y == pytest.approx(thrice.y)
        assert len(once.band) == len(thrice.band)
        for one, other in zip(once.band, thrice.band, strict=True):
            assert (one.x, one.y) == pytest.approx((other.x, other.y))
            assert (one.interval.low, one.interval.high) == pytest.approx((other.interval.low, other.interval.high))
    # Of different repeats, what is drawn is what all of them find.
    both = np.stack([scores, np.roll(scores, 2)])
    mixed = roc_curve(event, both, groups)
    assert mixed is not None
    thresholds = np.unique(np.quantile(both, np.linspace(0, 1, PLACES), method="nearest"))[::-1]
    assert [place.x for place in mixed.band] == pytest.approx([(both[:, ~event] >= t).mean() for t in thresholds])
    assert [place.y for place in mixed.band] == pytest.approx([(both[:, event] >= t).mean() for t in thresholds])


def test_precision_has_no_band_where_the_other_clips_fall_into_too_few_groups() -> None:
    event = np.arange(120) < 60
    groups = [f"e{place // 3}" for place in range(60)] + [f"o{place // 20}" for place in range(60)]
    scores = np.where(event, 0.6, 0.3) + np.random.default_rng(3).random(120) * 0.4
    roc, pr = roc_curve(event, scores, groups), pr_curve(event, scores, groups)
    assert roc is not None
    assert pr is not None
    assert len(roc.band) > 10
    assert pr.band == ()


def test_no_band_below_ten_groups_and_no_curve_of_one_kind() -> None:
    groups = [f"g{place % 9}" for place in range(90)]
    event, scores = np.arange(90) % 3 == 0, np.linspace(0, 1, 90)
    curve = roc_curve(event, scores, groups)
    assert curve is not None
    assert curve.band == ()
    assert roc_curve(np.ones(90, bool), scores, groups) is None
    assert pr_curve(np.zeros(90, bool), scores, groups) is None


def test_a_clip_at_the_threshold_counts_as_an_alarm() -> None:
    steps = threshold_steps(EVENT, SCORES, [0.0, 0.4, 0.41, 0.8, 1.0])
    assert [(step.found, step.false_alarms) for step in steps] == [(3, 2), (3, 1), (2, 1), (1, 1), (0, 0)]
