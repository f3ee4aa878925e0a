"""What needs no network, five folds on labelled clips, grouped and random: majority, a single frame, motion.

    python benchmarks/results.py CLIPS

CLIPS are class folders of videos or frame folders with their groups in clips.csv. Nothing is cached: the time that
motion takes runs from the videos to the pooled scores. For networks: tillwatch crossval.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tillwatch.clip_spec import Reading, choose_event, draft_for
from tillwatch.data.catalog import Clip, find_clips
from tillwatch.data.dataset import read_clip
from tillwatch.data.splits import fold_splits
from tillwatch.evaluation import figures
from tillwatch.evaluation.baselines import measure_baselines, scene_features
from tillwatch.evaluation.intervals import group_interval
from tillwatch.models.motion import MOTION, motion_features


def folds_of(clips: Sequence[Clip], folds: int, seed: int) -> list[NDArray[np.bool_]]:
    """Returns the test clips of each fold as bool ``(N,)``; all others train: there is nothing to validate."""
    return [np.array([sides[clip.name] == "test" for clip in clips]) for sides in fold_splits(clips, folds, seed)]


def print_figures(name: str, pooled: NDArray[np.float64], labels: NDArray[Any], groups: Sequence[str]) -> None:
    """Prints the mean figures of the repeats; intervals are of that mean, all repeats left without a group at once.

    Args:
        name: of the line.
        pooled: float64 ``(repeats, N)``, probability of the event.
        labels: 1 for the event.
        groups: of the clips.
    """
    is_event = labels == 1

    def accuracy(weights: NDArray[np.float64]) -> float:
        return float(np.mean([figures.share((scores >= 0.5) == is_event, weights) for scores in pooled]))

    def auroc(weights: NDArray[np.float64]) -> float:
        return float(np.mean([figures.auroc(is_event, scores, weights) for scores in pooled]))

    line = f"{name:<58}"
    for statistic, kinds in ((accuracy, None), (auroc, is_event.astype(np.int64))):
        interval = group_interval(statistic, groups, kinds=kinds)
        around = "" if interval is None else f" ({interval.low:.3f} to {interval.high:.3f})"
        line += f"  {statistic(np.ones(len(labels))):.3f}{around}"
    print(line, flush=True)


def main(folder: Path, folds: int, repeats: int) -> None:
    """Prints accuracy and AUROC of the pooled out-of-fold scores, the mean of the repeats, with intervals by group."""
    started = time.perf_counter()
    found = find_clips(folder, num_frames=MOTION.num_frames)
    size = MOTION.resize, MOTION.resize
    reading = Reading(num_frames=MOTION.num_frames, resize=size, draft=draft_for(size))

    def describe(clip: Clip) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        frames = read_clip(clip, reading)
        return scene_features(frames), motion_features(frames)

    with ThreadPoolExecutor() as pool:
        described = list(pool.map(describe, found.clips))
    features = {"single frame": np.stack([d[0] for d in described]), "motion": np.stack([d[1] for d in described])}
    event = found.classes.index(choose_event(found.classes)[0])
    labels = np.array([found.classes.index(clip.label) for clip in found.clips])
    groups = [clip.group for clip in found.clips]
    print(f"{'accuracy':>68}  {'event AUROC':>22}")
    for grouping in ("grouped", "random"):
        clips = [clip if grouping == "grouped" else replace(clip, group=clip.name) for clip in found.clips]
        pooled: dict[str, NDArray[np.float64]] = {}
        for seed in range(repeats):
            for test in folds_of(clips, folds, seed):
                train = {name: rows[~test] for name, rows in features.items()}
                held = {name: rows[test] for name, rows in features.items()}
                for baseline in measure_baselines(
                    train, labels[~test], held, labels[test], found.classes, [event], seed
                ):
                    scores = pooled.setdefault(baseline.name, np.zeros((repeats, len(clips))))
                    scores[seed, test] = baseline.probabilities[:, event]
        for name, scores in pooled.items():
            print_figures(f"{grouping}: {name}", scores, (labels == event).astype(int), groups)
        if grouping == "grouped":
            print(f"from the videos until here: {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    main(options.clips, options.folds, options.repeats)
