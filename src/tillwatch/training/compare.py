"""The baselines of a run: fitted on its training clips, scored on its test clips, written beside its figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tillwatch.clip_spec import draft_for
from tillwatch.data.catalog import Clip, Skip, count_and_names
from tillwatch.data.dataset import VideoFrameDataset
from tillwatch.data.transforms import ClipTransform
from tillwatch.evaluation.baselines import Baseline, measure_baselines, scene_features
from tillwatch.evaluation.confounds import scene_note
from tillwatch.evaluation.evaluate import Evaluation
from tillwatch.evaluation.evaluated import BASELINES_CSV
from tillwatch.evaluation.paired import Rival, cost_note, rivals_of
from tillwatch.files import write_csv, write_json
from tillwatch.models.motion import ARCH as MOTION_ARCH
from tillwatch.models.motion import MOTION, motion_features
from tillwatch.models.saved import Classifier
from tillwatch.training.describe import Describer, Row, describe_clips
from tillwatch.training.prepare import Job
from tillwatch.training.runlog import RunLog

BASELINES_JSON = "baselines.json"


def compare_with_baselines(out: Path, classifier: Classifier, job: Job, evaluation: Evaluation, log: RunLog) -> None:
    """Scores the baselines on the clips that the network was tested on, and prints all side by side.

    Writes baselines.csv (baseline, path, label, group, predicted, p_<class>...) and baselines.json, their figures.

    Args:
        out: the run folder.
        classifier: tells how clips are read.
        job: clips and sides.
        evaluation: of the network, on the test clips.
        log: where to say what comes out.
    """
    spec, tested, trained = job.spec, evaluation.scores.clips, job.side("train")
    described = _describe([*trained, *tested], classifier, job)
    lost = {row.name for rows in described.values() for row in rows if isinstance(row, Skip)}
    if lost:
        log.note(f"the baselines leave out {count_and_names(sorted(lost))}: not readable.")
    if lost & {clip.name for clip in tested}:
        return  # other test clips than the network's would be no comparison
    kept = [index for index, clip in enumerate(trained) if clip.name not in lost]
    labels = np.array([spec.classes.index(clip.label) for clip in (*trained, *tested)], dtype=np.int64)
    if len(set(labels[kept])) < 2:
        return
    test_labels = labels[len(trained) :]
    baselines = measure_baselines(
        {name: _stacked([rows[index] for index in kept]) for name, rows in described.items()},
        labels[kept],
        {name: _stacked(rows[len(trained) :]) for name, rows in described.items()},
        test_labels,
        spec.classes,
        spec.event_indices,
    )
    rivals = rivals_of(
        evaluation.scores.labels,
        evaluation.scores.probabilities[None],
        {baseline.name: baseline.probabilities[None] for baseline in baselines},
        [clip.group for clip in tested],
        spec.event_indices,
    )
    frame = next((one.probabilities for one in baselines if one.name == "single frame"), None)
    told = (cost_note(rivals), scene_note(frame, test_labels, spec.event_indices))
    notes = [note for note in told if note]
    _write(out, baselines, rivals, tested, spec.classes, notes)
    ours = "this model" if spec.arch == MOTION_ARCH else "this network"
    log.say(f"\n{'':>13}  accuracy  balanced  event AUROC")
    for name, metrics in (*((b.name, b.metrics) for b in baselines), (ours, evaluation.metrics)):
        auroc = "-" if metrics.event_auroc is None else f"{metrics.event_auroc:.3f}"
        log.say(f"{name:>13}  {metrics.accuracy:8.3f}  {metrics.balanced_accuracy:8.3f}  {auroc:>11}")
    for note in notes:
        log.note(note)


def _describe(clips: Sequence[Clip], classifier: Classifier, job: Job) -> dict[str, list[Row]]:
    """Returns what each baseline sees of each clip: a frame as the network reads it, motion as its own model reads it.

    So motion's figures are the same beside every network. It costs a second decoding, once where a store keeps it.
    """
    options: dict[str, Any] = {"step": job.spec.step, "roi": job.spec.roi, "clips": clips, "store": job.store}
    own = classifier.spec.num_frames, classifier.transform
    size = MOTION.resize, MOTION.resize
    usual = MOTION.num_frames, ClipTransform(size, size, None, None, augment=False, draft=draft_for(size))
    wanted: dict[str, tuple[tuple[int, ClipTransform], Describer]] = {"single frame": (own, scene_features)}
    if job.spec.arch != MOTION_ARCH:  # motion beside itself would say nothing
        wanted["motion"] = usual, motion_features
    return {
        name: describe_clips(
            VideoFrameDataset(".", job.spec.classes, num_frames, transform, **options), describer, job.workers + 1
        )
        for name, ((num_frames, transform), describer) in wanted.items()
    }


def _stacked(rows: Sequence[Row]) -> NDArray[np.float32]:
    return np.stack([row for row in rows if not isinstance(row, Skip)])


def _write(
    out: Path,
    baselines: Sequence[Baseline],
    rivals: Sequence[Rival],
    clips: Sequence[Clip],
    classes: Sequence[str],
    notes: Sequence[str],
) -> None:
    rows = [
        {
            "baseline": baseline.name,
            "path": clip.name,
            "label": clip.label,
            "group": clip.group,
            "predicted": classes[int(row.argmax())],
            **{f"p_{name}": f"{p:.8f}" for name, p in zip(classes, row, strict=True)},
        }
        for baseline in baselines
        for clip, row in zip(clips, baseline.probabilities, strict=True)
    ]
    columns = ("baseline", "path", "label", "group", "predicted", *(f"p_{name}" for name in classes))
    write_csv(out / BASELINES_CSV, columns, rows)
    figures = {
        baseline.name: {
            "accuracy": baseline.metrics.accuracy,
            "balanced_accuracy": baseline.metrics.balanced_accuracy,
            "event_auroc": baseline.metrics.event_auroc,
            "network_ahead": {name: asdict(difference) for name, difference in rival.ahead.items()},
        }
        for baseline, rival in zip(baselines, rivals, strict=True)
    }
    write_json(out / BASELINES_JSON, {"baselines": figures, "notes": list(notes)})
