"""Cues that have nothing to do with motion: planted ones are flagged, shuffled ones are not."""

from __future__ import annotations

import numpy as np
import pytest

from tillwatch.evaluation.confounds import measure_cues


def test_a_planted_cue_is_flagged_with_its_interval() -> None:
    rng = np.random.default_rng(0)
    is_event = np.arange(120) % 2 == 0
    groups = [f"g{index // 4}" for index in range(120)]
    brightness = rng.normal(100, 10, 120) + 25 * ~is_event
    frame_rate = np.where(is_event, 25.0, rng.choice([12.0, 30.0], 120))  # in the middle: no rank tells it
    cues = {
        cue.cue: cue for cue in measure_cues({"brightness": brightness, "frame rate": frame_rate}, is_event, groups)
    }
    for cue in cues.values():
        assert cue.flagged
        assert cue.low is not None
        assert cue.high is not None
        assert 0.5 < cue.low < cue.auroc <= cue.high
    assert cues["frame rate"].auroc > 0.99
    assert "alone tells the classes apart" in cues["brightness"].sentence


@pytest.mark.parametrize("groups_of", [4, 1])
def test_shuffled_cues_are_not_flagged(groups_of: int) -> None:
    is_event = np.arange(60) % 2 == 0
    groups = [f"g{index // groups_of}" for index in range(60)]
    for seed in range(25):
        rng = np.random.default_rng(seed)
        values = {"brightness": rng.normal(size=60), "frame rate": rng.choice([12.0, 25.0, 30.0], 60)}
        assert not [cue for cue in measure_cues(values, is_event, groups) if cue.flagged], seed


def test_a_cue_of_groups_is_no_cue_of_the_class() -> None:
    """Each group has a brightness and mostly one class: a tree that had seen the group would know."""
    rng = np.random.default_rng(3)
    group = np.arange(160) // 8
    is_event = (rng.random(20) < 0.5)[group] ^ (rng.random(160) < 0.1)
    brightness = (rng.permutation(20)[group] * 10).astype(np.float64)
    (cue,) = measure_cues({"brightness": brightness}, is_event, [str(one) for one in group])
    assert not cue.flagged
    (leaking,) = measure_cues({"brightness": brightness}, is_event, [str(one) for one in range(160)])
    assert leaking.auroc > cue.auroc + 0.1


def test_few_groups_give_no_interval_and_one_value_no_cue() -> None:
    is_event = np.arange(12) % 2 == 0
    groups = [f"g{index // 2}" for index in range(12)]
    (cue,) = measure_cues({"width": np.where(is_event, 640.0, 320.0), "height": np.ones(12)}, is_event, groups)
    assert (cue.cue, cue.low, cue.high) == ("width", None, None)
    assert cue.flagged
    assert not measure_cues({"width": np.arange(4.0)}, np.array([1, 1, 0, 0], bool), ["a", "a", "b", "b"])
