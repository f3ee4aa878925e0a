"""Figures against hand-computed ones."""

from __future__ import annotations

import numpy as np
import pytest

from tillwatch.errors import DataError
from tillwatch.evaluation.metrics import balanced_accuracy, compute_metrics
from tillwatch.evaluation.summary import summarize

CLASSES = ("theft", "normal")
LABELS = np.array([0, 0, 0, 1, 1, 1, 1, 1])
# Event scores: thefts 0.9, 0.6, 0.2; others 0.7, 0.3, 0.2, 0.1, 0.0.
EVENT = np.array([0.9, 0.6, 0.2, 0.7, 0.3, 0.2, 0.1, 0.0])
SCORES = np.stack([EVENT, 1 - EVENT], axis=1)


def test_figures_equal_those_worked_out_by_hand() -> None:
    metrics = compute_metrics(LABELS, SCORES, CLASSES, [0])
    assert metrics.confusion.tolist() == [[2, 1], [1, 4]]
    assert metrics.accuracy == pytest.approx(6 / 8)
    assert metrics.balanced_accuracy == pytest.approx((2 / 3 + 4 / 5) / 2)
    # Of 15 pairs of a theft and another: 0.9 beats 5, 0.6 beats 4, 0.2 beats 2 and ties with one.
    assert metrics.event_auroc == pytest.approx((5 + 4 + 2.5) / 15)
    # Precision at each theft found, in falling score: 1/1, 2/3, and 3/6 (0.2 is reached together with a normal).
    assert metrics.event_average_precision == pytest.approx((1 / 1 + 2 / 3 + 3 / 6) / 3)
    assert metrics.report["theft"]["precision"] == pytest.approx(2 / 3)
    assert metrics.report["theft"]["recall"] == pytest.approx(2 / 3)
    assert metrics.report["normal"]["support"] == 5


def test_report_names_classes_in_their_own_order() -> None:
    text = compute_metrics(LABELS, SCORES, CLASSES, [0]).report_text
    assert text.index("theft") < text.index("normal")


def test_event_of_several_classes_is_scored_by_their_sum() -> None:
    labels = np.array([0, 1, 2, 2])
    scores = np.array([[0.4, 0.3, 0.3], [0.2, 0.4, 0.4], [0.3, 0.2, 0.5], [0.1, 0.1, 0.8]])
    # Sums: 0.7 and 0.6 for the event, 0.5 and 0.2 for the rest: perfectly ranked by the sum.
    assert compute_metrics(labels, scores, ("a", "b", "no"), [0, 1]).event_auroc == 1.0
    # With the second and third clip as the event (0.6, 0.5), both beat 0.2 and neither beats 0.7.
    assert compute_metrics(np.array([2, 0, 1, 2]), scores, ("a", "b", "no"), [0, 1]).event_auroc == 0.5


def test_ranking_figures_are_absent_where_only_one_kind_of_clip_is_there() -> None:
    metrics = compute_metrics(np.array([0, 0]), SCORES[:2], CLASSES, [0])
    assert metrics.event_auroc is None
    assert metrics.event_average_precision is None
    assert metrics.balanced_accuracy == 1.0, "the class that does not occur has no recall to average"


def test_balanced_accuracy_does_not_depend_on_how_many_clips_a_class_has() -> None:
    assert balanced_accuracy(np.array([[9, 1], [5, 5]])) == pytest.approx(0.7)
    assert balanced_accuracy(np.array([[900, 100], [5, 5]])) == pytest.approx(0.7)


def test_scores_that_are_not_finite_are_refused_with_their_number() -> None:
    broken = SCORES.copy()
    broken[[1, 4], 0] = np.nan
    with pytest.raises(DataError, match="scores of 2 of 8 clips are not finite"):
        compute_metrics(LABELS, broken, CLASSES, [0])


def test_no_clip_is_refused() -> None:
    with pytest.raises(DataError, match="no clip to evaluate"):
        compute_metrics(LABELS[:0], SCORES[:0], CLASSES, [0])


def test_sums_that_are_equal_on_paper_tie_and_reach_their_threshold() -> None:
    labels = np.array([0] * 5 + [2] * 5)
    scores = np.array([[0.6, 0.2, 0.2]] * 5 + [[0.7, 0.1, 0.2]] * 5)
    assert compute_metrics(labels, scores, ("fight", "theft", "no"), [0, 1]).event_auroc == 0.5
    summary = summarize(labels, scores, list("abcdefghij"), [0, 1], 0.8)
    assert summary.figures["event_auroc"].value == 0.5
    assert (summary.at_point.recall, summary.at_point.precision) == (1.0, 0.5)
