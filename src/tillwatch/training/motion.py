"""Training the motion model: each clip's features once, then its trees, in seconds."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import balanced_accuracy_score

from tillwatch.config import TrainConfig
from tillwatch.data.catalog import Skip
from tillwatch.errors import DataError
from tillwatch.models.motion import MotionNetwork, fit_trees, motion_features
from tillwatch.models.saved import dataset_of, transform_of
from tillwatch.training.describe import describe_clips
from tillwatch.training.prepare import Job
from tillwatch.training.runlog import EpochMetrics, RunLog


def fit_motion(network: MotionNetwork, job: Job, config: TrainConfig, out: Path, log: RunLog) -> dict[str, Skip]:
    """Fits a motion network's trees, in place; metrics.csv gets one line.

    Args:
        network: to be fitted.
        job: clips, spec, store.
        config: the seed.
        out: the run folder.
        log: where to say what happens.

    Returns:
        The clips that turned out unreadable, by name.

    Raises:
        DataError: if no clip of a class, or of a side, can be read.
    """
    started, skipped = time.perf_counter(), dict[str, Skip]()
    features, labels = _side(job, "train", skipped, log)
    if len(set(labels)) < len(job.spec.classes):
        raise DataError("of one class, not one training clip could be read.")
    described = time.perf_counter() - started
    network.trees = fit_trees(features, labels, config.seed)
    train_loss, _ = _measured(network, features, labels)
    validated = _measured(network, *_side(job, "validation", skipped, log)) if config.hold_out else (None, None)
    metrics = EpochMetrics(
        epoch=1,
        train_loss=train_loss,
        val_loss=validated[0],
        val_balanced_accuracy=validated[1],
        lr=None,
        seconds=time.perf_counter() - started,
        clips_per_s=len(labels) / described,
        data_wait_s=0.0,
    )
    log.epoch(out, [metrics], 1, best=False)
    return skipped


def _side(job: Job, side: str, skipped: dict[str, Skip], log: RunLog) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    dataset = dataset_of(job.spec, job.side(side), transform_of(job.spec.preprocessing), store=job.store)
    with log.progress(f"motion of the {side} clips") as on_clip:
        rows = describe_clips(dataset, motion_features, job.workers + 1, on_clip)
    skipped.update({row.name: row for row in rows if isinstance(row, Skip)})
    read = [(row, label) for row, (_, label) in zip(rows, dataset.samples, strict=True) if not isinstance(row, Skip)]
    if not read:
        raise DataError(f"not one {side} clip could be read.")
    log.note_once(None if job.store is None else job.store.trouble)
    return np.stack([row for row, _ in read]), np.array([label for _, label in read], dtype=np.int64)


def _measured(network: MotionNetwork, features: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[float, float]:
    """Returns mean cross entropy and balanced accuracy."""
    logs = network.log_probabilities(features)
    return float(-logs[np.arange(len(labels)), labels].mean()), float(balanced_accuracy_score(labels, logs.argmax(1)))
