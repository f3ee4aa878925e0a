"""What needs no network: the commonest class, a single frame, and motion; scored beside every network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tillwatch.evaluation.metrics import Metrics, compute_metrics
from tillwatch.models.motion import MotionNetwork, fit_trees

_BINS = 8
_THUMBNAIL = 8
_CELLS, _ORIENTATIONS = 4, 8


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What one baseline makes of the test clips.

    Attributes:
        name: "majority", "single frame" or "motion".
        probabilities: float64 ``(N, classes)``.
        metrics: its figures.
    """

    name: str
    probabilities: NDArray[np.float64]
    metrics: Metrics


def scene_features(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Describes a clip's middle frame: its colours, a thumbnail, and which way its edges run. Nothing moves in it.

    Args:
        frames: uint8 ``(T, H, W, 3)``, RGB.

    Returns:
        float32 ``(344,)``: 8 bins a colour channel, 8 x 8 pixels of RGB, and 8 edge orientations in each of
        4 x 4 cells (histograms of oriented gradients after Dalal and Triggs, 2005, without their overlapping blocks).
    """
    frame = np.ascontiguousarray(frames[len(frames) // 2])
    colours = [np.histogram(frame[..., channel], _BINS, (0, 256))[0] / frame[..., channel].size for channel in range(3)]
    thumbnail = cv2.resize(frame, (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA).ravel() / 255
    return np.concatenate([*colours, thumbnail, _edges(frame)]).astype(np.float32)


def _edges(frame: NDArray[np.uint8]) -> NDArray[np.float64]:
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    dx, dy = cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)
    strength = np.hypot(dx, dy)
    orientation = (np.arctan2(dy, dx) % np.pi / np.pi * _ORIENTATIONS).astype(int) % _ORIENTATIONS
    height, width = grey.shape
    rows, columns = np.arange(height) * _CELLS // height, np.arange(width) * _CELLS // width
    place = (rows[:, None] * _CELLS + columns) * _ORIENTATIONS + orientation
    cells = np.bincount(place.ravel(), strength.ravel(), _CELLS * _CELLS * _ORIENTATIONS)
    shares: NDArray[np.float64] = cells.astype(np.float64) / (cells.sum() + 1e-6)
    return shares


def measure_baselines(
    train: Mapping[str, NDArray[np.float32]],
    train_labels: NDArray[np.int64],
    test: Mapping[str, NDArray[np.float32]],
    test_labels: NDArray[np.int64],
    classes: Sequence[str],
    event_indices: Sequence[int],
    seed: int = 0,
) -> list[Baseline]:
    """Fits the baselines on the training clips and scores the test clips.

    Args:
        train: float32 ``(N, F)`` by the baseline's name: "single frame" of :func:`scene_features`, "motion" of
            :func:`~tillwatch.models.motion.motion_features`. One that is missing is not measured.
        train_labels: int64 ``(N,)``; every class that is to be told apart occurs.
        test, test_labels: likewise, of the test clips.
        classes: names in label order.
        event_indices: the classes worth an alarm.
        seed: of the trees.
    """
    found = {
        "majority": np.tile(
            np.bincount(train_labels, minlength=len(classes)) / len(train_labels), (len(test_labels), 1)
        )
    }
    if "single frame" in train:
        # 344 features of tens of clips: strong regularisation, and classes that count alike.
        scene = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=1000))
        scene.fit(train["single frame"], train_labels)
        found["single frame"] = np.zeros((len(test_labels), len(classes)))
        found["single frame"][:, scene.classes_] = scene.predict_proba(test["single frame"])
    if "motion" in train:
        trees = fit_trees(train["motion"], train_labels, seed)
        found["motion"] = np.zeros((len(test_labels), len(classes)))
        found["motion"][:, trees.classes_] = np.exp(MotionNetwork(trees).log_probabilities(test["motion"]))
    return [
        Baseline(
            name=name, probabilities=values, metrics=compute_metrics(test_labels, values, classes, tuple(event_indices))
        )
        for name, values in found.items()
    ]
