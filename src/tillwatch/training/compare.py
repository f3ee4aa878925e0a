"""The baselines of a run: fitted on its training clips, scored on its test clips, written beside its figures."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tillwatch.data.catalog import Clip, count_and_names
from tillwatch.errors import ClipError
from tillwatch.evaluation.baselines import Baseline, measure_baselines, scene_features, verdicts
from tillwatch.evaluation.evaluate import Evaluation
from tillwatch.files import write_csv, write_json
from tillwatch.models.saved import Classifier, dataset_of
from tillwatch.training.prepare import Job
from tillwatch.training.runlog import RunLog

BASELINES_CSV = "baselines.csv"
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
    tested = evaluation.scores.clips
    trained = job.side("train")
    dataset = dataset_of(job.spec, [*trained, *tested], classifier.transform, store=job.store)

    def describe(index: int) -> np.ndarray[Any, np.dtype[np.float32]] | None:
        try:
            return scene_features(dataset.read(index))
        except ClipError:
            return None

    with ThreadPoolExecutor(max(1, job.workers)) as pool:
        described = list(pool.map(describe, range(len(dataset))))
    lost = [clip.name for clip, row in zip(dataset.clips, described, strict=True) if row is None]
    if lost:
        log.note(f"the baselines leave out {count_and_names(lost)}: not readable.")
    if any(row is None for row in described[len(trained) :]):
        return  # other test clips than the network's would be no comparison
    kept = [index for index in range(len(trained)) if described[index] is not None]
    labels = np.array([label for _, label in dataset.samples], dtype=np.int64)
    if len(set(labels[kept])) < 2:
        return
    baselines = measure_baselines(
        np.stack([row for row in described[: len(trained)] if row is not None]),
        labels[kept],
        np.stack([row for row in described[len(trained) :] if row is not None]),
        labels[len(trained) :],
        job.spec.classes,
        job.spec.event_indices,
    )
    notes = verdicts(evaluation.metrics, baselines, labels[len(trained) :], job.spec.event_indices)
    _write(out, baselines, tested, job.spec.classes, notes)
    log.say(f"\n{'':>13}  accuracy  balanced  event AUROC")
    for name, metrics in (*((b.name, b.metrics) for b in baselines), ("this network", evaluation.metrics)):
        auroc = "-" if metrics.event_auroc is None else f"{metrics.event_auroc:.3f}"
        log.say(f"{name:>13}  {metrics.accuracy:8.3f}  {metrics.balanced_accuracy:8.3f}  {auroc:>11}")
    for note in notes:
        log.note(note)


def _write(
    out: Path, baselines: Sequence[Baseline], clips: Sequence[Clip], classes: Sequence[str], notes: Sequence[str]
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
        }
        for baseline in baselines
    }
    write_json(out / BASELINES_JSON, {"baselines": figures, "notes": list(notes)})
