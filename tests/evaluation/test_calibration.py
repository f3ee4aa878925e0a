"""Temperature and reliability against known distortions."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import softmax

from tillwatch.evaluation.calibration import apply_temperature, calibration, fit_temperature, logs


def drawn(count: int, temperature: float, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logits of three classes, too large by a factor, with labels drawn from what is right."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1.5, (count, 3))
    labels = (softmax(logits, 1).cumsum(1) < random.random((count, 1))).sum(1)
    return logits * temperature, labels


@pytest.mark.parametrize("true", [0.5, 2.5])
def test_a_known_distortion_of_20000_clips_comes_back(true: float) -> None:
    logits, labels = drawn(20_000, true)
    assert fit_temperature(logits, labels).value == pytest.approx(true, rel=0.05)


def test_logits_scaled_by_three_scale_the_temperature_by_three() -> None:
    logits, labels = drawn(240, 1.0)
    once, thrice = fit_temperature(logits, labels).value, fit_temperature(3 * logits, labels).value
    assert thrice == pytest.approx(3 * once, rel=1e-3)
    probabilities = softmax(logits, 1)
    assert fit_temperature(logs(probabilities), labels).value == pytest.approx(once, rel=1e-5)
    assert apply_temperature(probabilities, 2.0) == pytest.approx(softmax(logits / 2, 1))


def test_few_clips_leave_it_at_one_and_say_so() -> None:
    logits, labels = drawn(49, 3.0)
    assert fit_temperature(logits, labels).value == 1.0
    assert "left at 1: 49 validation clips" in fit_temperature(logits, labels).source
    rare = np.array([0] * 60 + [1] * 60 + [2] * 9)
    assert "9 of the rarest class" in fit_temperature(np.zeros((129, 3)), rare).source


def test_it_stays_within_its_bounds_and_says_when_it_reached_one() -> None:
    labels = np.arange(90) % 3
    sure = np.eye(3)[labels] * 8
    assert fit_temperature(sure, labels).value == 0.2
    assert "bound" in fit_temperature(sure, labels).source
    assert fit_temperature(np.roll(sure, 1, axis=1), labels).value == 10.0


def test_reliability_worked_out_by_hand() -> None:
    found = calibration(np.array([0.05, 0.15, 0.15, 1.0]), np.array([False, True, False, True]))
    assert [bin_.clips for bin_ in found.bins] == [1, 2, 0, 0, 0, 0, 0, 0, 0, 1]
    assert found.bins[1].share_of_events == 0.5
    assert found.bins[1].mean_probability == pytest.approx(0.15)
    assert found.bins[2].share_of_events is None
    # |0.05 - 0| * 1/4 + |0.15 - 0.5| * 2/4 + 0
    assert found.ece == pytest.approx(0.05 / 4 + 0.35 / 2)


def test_right_scores_stay_within_chance_and_wrong_ones_leave_it() -> None:
    random = np.random.default_rng(3)
    scores = random.random(300)
    right = calibration(scores, random.random(300) < scores)
    wrong = calibration(scores, random.random(300) < 0.5)
    assert right.ece < 1.2 * right.ece_by_chance_95
    assert wrong.ece > 2 * wrong.ece_by_chance_95
    assert calibration(scores[:36], scores[:36] > 0.5).ece_by_chance > right.ece_by_chance
