"""What out-of-fold scores say for a final model: temperatures undone, fitted anew, and a point by the user's flags."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax

from tillwatch.config import TrainConfig
from tillwatch.errors import RunError
from tillwatch.training.out_of_fold import calibrate_final, choose_point, read_fold_point, uncalibrated


def drawn(count: int, sharpness: float) -> tuple[Any, Any]:
    """Logits that are too large by a factor, with labels drawn from what is right."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 1.5, (count, 2))
    labels = (softmax(logits, 1)[:, 0] < random.random(count)).astype(np.int64)
    return logits * sharpness, labels


def test_the_folds_temperatures_are_undone_before_one_is_fitted_for_all() -> None:
    logits, labels = drawn(4000, 2.5)
    folds = np.where(np.arange(4000) % 2, 1.0, 4.0)
    tabled = softmax(logits / folds[:, None], 1).round(8)
    assert uncalibrated(tabled, folds) == pytest.approx(softmax(logits, 1), abs=1e-4)
    temperature, _ = calibrate_final(tabled, folds, labels, [1], None, TrainConfig())
    plain, _ = calibrate_final(softmax(logits, 1), np.ones(4000), labels, [1], None, TrainConfig())
    assert temperature.value == pytest.approx(plain.value, rel=1e-3)
    assert temperature.value == pytest.approx(2.5, rel=0.1)
    assert temperature.source == "fitted on 4000 out-of-fold clips"


def test_the_point_follows_the_flags_and_says_what_it_was_chosen_on() -> None:
    logits, labels = drawn(400, 1.0)
    scores, is_event = softmax(logits, 1)[:, 1], labels == 1
    by_recall = choose_point(scores, is_event, None, TrainConfig(min_recall=0.95))
    assert (scores[is_event] >= by_recall.threshold).mean() >= 0.95
    assert "recall of at least 0.95, chosen on 400 out-of-fold clips" in by_recall.source
    by_budget = choose_point(scores, is_event, 2.0, TrainConfig(max_false_alarms_per_hour=3))
    assert (scores[~is_event] >= by_budget.threshold).sum() <= 6
    assert by_budget.threshold > by_recall.threshold
    assert "not chosen" in choose_point(scores, is_event, None, TrainConfig(max_false_alarms_per_hour=3)).source
    assert "not chosen" in choose_point(scores, np.ones(400, bool), None, TrainConfig()).source


def test_a_tables_zero_does_not_decide_the_temperature() -> None:
    logits, labels = drawn(400, 1.0)
    tabled = softmax(logits, 1)
    tabled[0] = np.eye(2)[1 - labels[0]]  # sure, wrong, and written with eight digits
    found, _ = calibrate_final(tabled, np.ones(400), labels, [1], None, TrainConfig())
    assert found.value < 2


def test_a_fold_without_its_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is damaged"):
        read_fold_point(tmp_path)
    record = {"temperature": 2, "operating_point": {"threshold": 0.5, "source": "default, not chosen on data"}}
    (tmp_path / "model.json").write_text(json.dumps(record))
    assert not read_fold_point(tmp_path).chosen
