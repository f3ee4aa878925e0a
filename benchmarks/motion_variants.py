"""What was tried for the motion model: features and learners, five grouped folds, three repeats, pooled scores.

    python benchmarks/motion_variants.py CLIPS [--nested]

CLIPS are class folders with their groups in clips.csv. Each line is one variant; the best of them is the best of that
many tried, so --nested also chooses among them inside the folds: for each fold the variant that does best in three
grouped folds of its training clips alone. Minutes on two cores; --nested, a quarter of an hour.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from results import folds_of, print_figures
from sklearn.calibration import CalibratedClassifierCV
from sklearn.decomposition import PCA
from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import QuantileTransformer
from sklearn.svm import SVC

from tillwatch.clip_spec import Reading, choose_event, draft_for
from tillwatch.data.catalog import Clip, find_clips
from tillwatch.data.dataset import read_clip
from tillwatch.models import motion

Blocks = dict[str, NDArray[np.float32]]
View = tuple[int, int]  # frames, and pixels each way
Rows = dict[View, list[Blocks]]
Learner = Callable[[int], Any]

VIEW = motion.MOTION.num_frames, motion.MOTION.resize
OWN = ("speed", "sudden", "uneven", "directions", "steadiness")


@dataclass(frozen=True)
class Variant:
    """Blocks of features into a learner; the scores of several learners and views are averaged."""

    name: str
    blocks: tuple[str, ...]
    learners: tuple[Learner, ...]
    views: tuple[View, ...] = (VIEW,)


def trees(seed: int) -> Any:
    """Extremely randomised trees, as the motion model has them."""
    return ExtraTreesClassifier(300, min_samples_leaf=2, class_weight="balanced", random_state=seed, n_jobs=-1)


def _normal() -> Any:
    return QuantileTransformer(n_quantiles=50, output_distribution="normal")


def machine(seed: int) -> Any:
    """A support vector machine with a Gaussian kernel."""
    return make_pipeline(_normal(), CalibratedClassifierCV(SVC(C=1), ensemble=False))


def logistic(seed: int) -> Any:
    """Logistic regression, strongly regularised."""
    return make_pipeline(_normal(), LogisticRegression(C=0.003, max_iter=2000))


def boosting(seed: int) -> Any:
    """Boosted trees."""
    return HistGradientBoostingClassifier(learning_rate=0.06, max_leaf_nodes=8, random_state=seed)


class Fisher:
    """Fisher vectors (Perronnin et al., 2010) of local motion into a support vector machine, all fitted on train."""

    def __init__(self, seed: int, kinds: int = 16, parts: int = 24) -> None:
        self.seed, self.kinds, self.parts = seed, kinds, parts

    def fit(self, bags: Sequence[NDArray[np.float32]], labels: NDArray[np.int64]) -> Fisher:
        """Fits all three stages."""
        rng = np.random.default_rng(self.seed)
        some = np.concatenate([bag[rng.permutation(len(bag))[:100]] for bag in bags])
        self.pca = PCA(self.parts, whiten=True, random_state=self.seed).fit(some)
        self.mixture = GaussianMixture(self.kinds, covariance_type="diag", random_state=self.seed, reg_covar=1e-3)
        self.mixture.fit(self.pca.transform(some))
        self.machine = CalibratedClassifierCV(SVC(kernel="linear"), ensemble=False).fit(self._vectors(bags), labels)
        return self

    def predict_proba(self, bags: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
        """Scores clips."""
        scores: NDArray[np.float64] = self.machine.predict_proba(self._vectors(bags))
        return scores

    def _vectors(self, bags: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
        return np.stack([self._vector(self.pca.transform(bag)) for bag in bags])

    def _vector(self, local: NDArray[np.float64]) -> NDArray[np.float64]:
        share = self.mixture.predict_proba(local)[..., None]
        off = (local[:, None] - self.mixture.means_) / np.sqrt(self.mixture.covariances_)
        weight = np.sqrt(self.mixture.weights_)[:, None] * len(local)
        vector = np.concatenate([(share * off).sum(0) / weight, (share * (off**2 - 1)).sum(0) / weight]).ravel()
        vector = np.sign(vector) * np.sqrt(np.abs(vector))
        unit: NDArray[np.float64] = vector / (np.linalg.norm(vector) + 1e-9)
        return unit


def blocks_of(frames: NDArray[np.uint8], *, local: bool) -> Blocks:
    """Returns the motion model's own features by block, and others that were tried."""
    grey = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])
    flow = motion._flow(grey)
    speed = np.hypot(flow[..., 0], flow[..., 1])
    sudden = np.diff(flow, axis=0)
    uneven = np.stack(list(np.gradient(flow, axis=(1, 2))))
    change = np.abs(np.diff(grey.astype(np.float32), axis=0))
    found = {
        "speed": speed,
        "sudden": np.hypot(sudden[..., 0], sudden[..., 1]),
        "uneven": np.sqrt((uneven**2).sum((0, -1))),
        "changes": change,
    }
    absolute = {name: motion._over_time(motion._spread(values)) for name, values in found.items()}
    scale = {"changes": change.mean() + 1e-3}
    relative = {name: values / scale.get(name, speed.mean() + 1e-3) for name, values in absolute.items()}
    cells = motion._cells(speed[..., None]).reshape(len(speed), -1)
    wave = np.abs(np.fft.rfft((cells - cells.mean(0)) * np.hanning(len(cells))[:, None], axis=0)) ** 2
    flip = (np.abs(np.diff(speed, axis=0)) > np.abs(np.diff(speed, axis=0)).mean((1, 2), keepdims=True)).mean(0)
    return {
        **({"local": _local(flow, uneven)} if local else {}),
        **relative,
        **{f"absolute {name}": values for name, values in absolute.items()},
        "directions": motion._directions(flow, speed),
        "steadiness": motion._steadiness(flow, speed),
        "cells": np.concatenate([np.sort(cells.mean(0)), np.sort(cells.std(0))]) / (speed.mean() + 1e-3),
        "spectrum": ((wave / (wave.sum(0) + 1e-6)) * cells.mean(0) / (cells.mean() + 1e-6)).mean(1)[:17],
        "violent flows": np.histogram(flip, 16, (0, 1))[0] / flip.size,
    }


def _local(flow: NDArray[np.float32], uneven: NDArray[np.float32]) -> NDArray[np.float32]:
    """Directions of flow and its gradients (Dalal et al., 2006) in moving blocks of 16 x 16 pixels and 8 frames."""
    fields = [flow, np.moveaxis(uneven[..., 0], 0, -1), np.moveaxis(uneven[..., 1], 0, -1)]
    maps = []
    for field in fields:
        size = np.hypot(field[..., 0], field[..., 1])
        place = ((np.arctan2(field[..., 1], field[..., 0]) / (2 * np.pi) % 1) * 8).astype(int) % 8
        maps += [size * (place == number) for number in range(8)]
    every = np.stack(maps, -1)  # (T, H, W, 24)
    time, side = len(every) // 8, every.shape[1] // 8
    sums = every[: time * 8, : side * 8, : side * 8].reshape(time, 8, side, 8, side, 8, 24).mean((1, 3, 5))
    near = np.concatenate([sums[:, :-1, :-1], sums[:, 1:, :-1], sums[:, :-1, 1:], sums[:, 1:, 1:]], -1).reshape(-1, 96)
    moving = np.argsort(-near[:, :8].sum(1), kind="stable")[:400]
    chosen = np.sqrt(near[moving] / (near[moving].sum(1, keepdims=True) + 1e-6))
    found: NDArray[np.float32] = chosen.astype(np.float32)
    return found


def variants() -> list[Variant]:
    """Returns what is tried."""
    absolute = ("absolute speed", "absolute sudden", "absolute uneven")
    tried = [Variant("the motion model's features, trees", OWN, (trees,))]
    tried += [Variant(f"{block} alone, trees", (block,), (trees,)) for block in OWN]
    tried += [
        Variant("absolute speeds instead of relative, trees", (*absolute, "directions", "steadiness"), (trees,)),
        Variant("and absolute speeds, trees", (*OWN, *absolute), (trees,)),
        Variant("and frame differences, relative, trees", (*OWN, "changes"), (trees,)),
        Variant("and frame differences, absolute, trees", (*OWN, "absolute changes"), (trees,)),
        Variant("and cells by energy, trees", (*OWN, "cells"), (trees,)),
        Variant("and spectrum, trees", (*OWN, "spectrum"), (trees,)),
        Variant("violent flows alone, trees", ("violent flows",), (trees,)),
        Variant("the model's features, support vectors", OWN, (machine,)),
        Variant("the model's features, logistic regression", OWN, (logistic,)),
        Variant("the model's features, boosting", OWN, (boosting,)),
        Variant("the model's features, trees and support vectors", OWN, (trees, machine)),
        Variant("local motion, Fisher vectors, support vectors", ("local",), (Fisher,)),
    ]
    others = (16, 128), (24, 128), (48, 128), (32, 96), (32, 160)
    for frames, size in others:
        tried.append(Variant(f"{frames} frames of {size} x {size}, trees", OWN, (trees,), ((frames, size),)))
    several = VIEW, (16, 128), (32, 96), (32, 160)
    tried += [
        Variant("four sizes and rates averaged, trees", OWN, (trees,), several),
        Variant("four sizes and rates averaged, support vectors", OWN, (machine,), several),
        Variant("four sizes and rates averaged, trees and support vectors", OWN, (trees, machine), several),
    ]
    return tried


def out_of_fold(
    variant: Variant, rows: Rows, labels: NDArray[np.int64], folds: Sequence[NDArray[np.bool_]], seed: int
) -> NDArray[np.float64]:
    """Returns each clip's probability of class 1 by a model that has not seen its fold."""
    scores = np.zeros(len(labels))
    for view, learner in product(variant.views, variant.learners):
        given = _inputs(variant, rows[view])
        for test in folds:
            fitted = learner(seed).fit(_take(given, ~test), labels[~test])
            scores[test] += fitted.predict_proba(_take(given, test))[:, 1]
    return scores / (len(variant.views) * len(variant.learners))


def _inputs(variant: Variant, rows: Sequence[Blocks]) -> Any:
    if variant.blocks == ("local",):
        return [row["local"] for row in rows]
    return np.stack([np.concatenate([row[name] for name in variant.blocks]) for row in rows])


def _take(given: Any, kept: NDArray[np.bool_]) -> Any:
    return given[kept] if isinstance(given, np.ndarray) else [given[index] for index in np.flatnonzero(kept)]


def nested(
    tried: Sequence[Variant],
    rows: Rows,
    labels: NDArray[np.int64],
    groups: NDArray[Any],
    folds: Sequence[NDArray[np.bool_]],
    seed: int,
) -> NDArray[np.float64]:
    """As out_of_fold, the variant of each fold chosen by AUROC in grouped folds of its training clips."""
    scores = np.zeros(len(labels))
    for test in folds:
        inner = StratifiedGroupKFold(3, shuffle=True, random_state=seed)
        places = [part for _, part in inner.split(labels[~test], labels[~test], groups[~test])]
        masks = [np.isin(np.arange((~test).sum()), part) for part in places]
        seen: Rows = {view: _take(of_view, ~test) for view, of_view in rows.items()}
        inside = [out_of_fold(variant, seen, labels[~test], masks, seed) for variant in tried]
        reached = [roc_auc_score(labels[~test], scored) for scored in inside]
        best = tried[int(np.argmax(reached))]
        print(f"  chosen: {best.name} ({max(reached):.3f})", flush=True)
        scores[test] = out_of_fold(best, rows, labels, [test], seed)[test]
    return scores


def read_blocks(clips: Sequence[Clip], view: View) -> list[Blocks]:
    """Returns the blocks of each clip."""
    frames, size = view
    reading = Reading(num_frames=frames, resize=(size, size), draft=draft_for((size, size)))
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda clip: blocks_of(read_clip(clip, reading), local=view == VIEW), clips))


def main(folder: Path, repeats: int, also_nested: bool) -> None:
    """Prints a line for each variant."""
    found = find_clips(folder, num_frames=2)
    event = found.classes.index(choose_event(found.classes)[0])
    labels = np.array([int(found.classes.index(clip.label) == event) for clip in found.clips])
    groups = np.array([clip.group for clip in found.clips])
    tried = variants()
    rows: Rows = {view: read_blocks(found.clips, view) for view in {view for v in tried for view in v.views}}
    folds = [folds_of(found.clips, 5, seed) for seed in range(repeats)]
    print(f"{len(tried)} variants", flush=True)
    for variant in tried:
        pooled = [out_of_fold(variant, rows, labels, of_repeat, seed) for seed, of_repeat in enumerate(folds)]
        print_figures(variant.name, np.stack(pooled), labels, groups.tolist())
    if also_nested:
        whole = [variant for variant in tried if len(variant.blocks) > 1]
        pooled = [nested(whole, rows, labels, groups, of_repeat, seed) for seed, of_repeat in enumerate(folds)]
        print_figures(f"chosen inside the folds among {len(whole)}", np.stack(pooled), labels, groups.tolist())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--nested", action="store_true")
    options = parser.parse_args()
    main(options.clips, options.repeats, options.nested)
