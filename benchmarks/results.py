"""What needs no network, five folds on labelled clips, grouped and random: majority and a single frame.

    python benchmarks/results.py FRAMES

FRAMES are class folders of frame folders or videos with their groups in clips.csv. For networks: tillwatch crossval.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from tillwatch.clip_spec import Reading, choose_event
from tillwatch.data.catalog import find_clips
from tillwatch.data.dataset import read_clip
from tillwatch.data.splits import fold_splits
from tillwatch.evaluation.baselines import measure_baselines, scene_features
from tillwatch.evaluation.metrics import compute_metrics


def main(frames: Path, folds: int, seeds: int, event: tuple[str, ...]) -> None:
    """Prints accuracy and AUROC of the pooled out-of-fold scores, the mean of the seeds."""
    found = find_clips(frames, num_frames=16)
    reading = Reading(num_frames=16, resize=(128, 128))
    features = np.stack([scene_features(read_clip(clip, reading)) for clip in found.clips])
    labels = np.array([found.classes.index(clip.label) for clip in found.clips])
    events = [found.classes.index(name) for name in choose_event(found.classes, event or None)]
    for grouping in ("group", "random"):
        clips = [clip if grouping == "group" else replace(clip, group=clip.name) for clip in found.clips]
        figures: dict[str, list[tuple[float, float]]] = {}
        for seed in range(seeds):
            pooled: dict[str, np.ndarray[tuple[int, int], np.dtype[np.float64]]] = {}
            for sides in fold_splits(clips, folds, seed):
                side = np.array([sides[clip.name] for clip in clips])
                train, test = side == "train", side == "test"
                for baseline in measure_baselines(
                    features[train], labels[train], features[test], labels[test], found.classes, events
                ):
                    empty = np.zeros((len(clips), len(found.classes)))
                    pooled.setdefault(baseline.name, empty)[test] = baseline.probabilities
            for name, scores in pooled.items():
                metrics = compute_metrics(labels, scores, found.classes, events)
                figures.setdefault(name, []).append((metrics.accuracy, metrics.event_auroc or np.nan))
        for name, values in figures.items():
            accuracy, auroc = np.mean(values, axis=0)
            print(f"{grouping:>6}  {name:>12}  accuracy {accuracy:.3f}  AUROC {auroc:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("frames", type=Path)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--event", nargs="*", default=())
    options = parser.parse_args()
    main(options.frames, options.folds, options.seeds, tuple(options.event))
