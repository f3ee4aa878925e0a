"""Baselines: what they know, what they cannot know, and what is said of them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tillwatch.evaluation.baselines import measure_baselines, scene_features
from tillwatch.evaluation.confounds import scene_note
from tillwatch.evaluation.paired import cost_note, rivals_of

CLASSES = ("normal", "theft")


def clips(count: int, brighter: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Noise, class 1 ``brighter`` grey levels brighter."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    frames = [rng.integers(60, 160, (3, 24, 24, 3)) + brighter * int(label) for label in labels]
    return np.stack([scene_features(frame.astype(np.uint8)) for frame in frames]), labels


def test_scene_features_see_the_middle_frame_alone() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 20, 30, 3)).astype(np.uint8)
    other = frames.copy()
    other[[0, 1, 3, 4]] = 0
    assert scene_features(frames).shape == (344,)
    assert (scene_features(frames) == scene_features(other)).all()
    other[2] = 255 - other[2]
    assert not np.allclose(scene_features(frames), scene_features(other))


@pytest.mark.parametrize(("brighter", "told"), [(60, True), (0, False)])
def test_a_scene_that_tells_the_class_is_named_and_noise_is_not(brighter: int, told: bool) -> None:
    features, labels = clips(40, brighter, 0)
    test_features, test_labels = clips(30, brighter, 1)
    found = measure_baselines(
        {"single frame": features}, labels, {"single frame": test_features}, test_labels, CLASSES, [1]
    )
    assert ("the scene alone" in (scene_note(found[1].probabilities, test_labels, [1]) or "")) == told
    assert (found[1].metrics.accuracy > 0.95) == told


def test_majority_is_the_training_shares_and_a_network_like_it_is_not_worth_its_cost() -> None:
    features, labels = clips(8, 0, 0)
    kept = np.array([0, 1, 2, 4])
    given = {"single frame": features[kept]}, labels[kept], {"single frame": features}
    majority, _ = measure_baselines(*given, labels, CLASSES, [1])
    assert majority.probabilities == pytest.approx(np.tile([0.75, 0.25], (8, 1)))
    assert majority.metrics.event_auroc == 0.5
    groups = [f"g{place}" for place in range(8)]
    rivals = rivals_of(labels, majority.probabilities[None], {"majority": majority.probabilities[None]}, groups, [1])
    assert "not worth its cost" in (cost_note(rivals) or "")


def test_a_run_holds_the_baselines_of_its_own_test_clips(tiny_run: tuple[Path, Path]) -> None:
    with (tiny_run[1] / "baselines.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (tiny_run[1] / "predictions.csv").open(newline="") as file:
        tested = {row["path"] for row in csv.DictReader(file) if row["split"] == "test"}
    record = json.loads((tiny_run[1] / "baselines.json").read_text())["baselines"]
    for name in ("majority", "single frame", "motion"):
        own = [row for row in rows if row["baseline"] == name]
        assert {row["path"] for row in own} == tested
        hits = sum(row["predicted"] == row["label"] for row in own)
        assert record[name]["accuracy"] == pytest.approx(hits / len(own))
        ahead = record[name]["network_ahead"]["accuracy"]
        network = json.loads((tiny_run[1] / "evaluation.json").read_text())["accuracy"]
        assert ahead["value"] == pytest.approx(network - hits / len(own))
        assert (ahead["interval"], "group" in ahead["reason"]) == (None, True)
    assert record["single frame"]["accuracy"] == 1.0  # the tiny classes differ in brightness
