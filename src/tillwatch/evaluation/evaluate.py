"""A model and labelled clips to predictions.csv, evaluation.json and classification_report.txt."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from tillwatch.clip_spec import ClipSpec
from tillwatch.data.catalog import CLIPS_CSV, Catalog, Clip, Skip, count_and_names, look_into, search_folder
from tillwatch.data.duplicates import find_exact, find_same_files
from tillwatch.data.grouping import join_groups, mostly_named
from tillwatch.data.loader import evaluation_loader
from tillwatch.data.provenance import check_region
from tillwatch.data.splits import SIDES
from tillwatch.data.store import ClipStore
from tillwatch.errors import DataError, RunError, one_line, reason_of
from tillwatch.evaluation.audit_report import read_claim
from tillwatch.evaluation.exposure import CHOSEN_GROUPS_NOTE, CROSS_VALIDATION, Exposure, exposure_of
from tillwatch.evaluation.metrics import Metrics, compute_metrics
from tillwatch.evaluation.summary import Footage, Summary, summarize
from tillwatch.files import read_csv, write_csv, write_json, write_text
from tillwatch.models.saved import Classifier, dataset_of


@dataclass(frozen=True, kw_only=True)
class Scores:
    """A classifier's scores of labelled clips.

    Attributes:
        clips: those that could be read, in the order given.
        labels: int64 ``(N,)``.
        probabilities: float64 ``(N, num_classes)``.
        skipped: those that could not be read.
    """

    clips: tuple[Clip, ...]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    skipped: tuple[Skip, ...]

    def where(self, keep: Callable[[Clip], bool]) -> Scores:
        """Returns the scores of some of the clips; skips stay."""
        rows = [index for index, clip in enumerate(self.clips) if keep(clip)]
        return Scores(
            clips=tuple(self.clips[index] for index in rows),
            labels=self.labels[rows],
            probabilities=self.probabilities[rows],
            skipped=self.skipped,
        )


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation found and where it was written."""

    folder: Path
    split: str
    metrics: Metrics
    summary: Summary
    threshold: float
    scores: Scores
    notes: tuple[str, ...]


def score_clips(
    classifier: Classifier,
    clips: Sequence[Clip],
    *,
    batch_size: int = 4,
    workers: int = 0,
    store: ClipStore | None = None,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> Scores:
    """Scores clips under the classifier's own spec, by its engine; each clip once, unreadable ones named.

    Args:
        classifier: with its spec.
        clips: labelled with classes of the spec.
        batch_size: clips in one forward pass.
        workers: processes that read clips.
        store: keeps decoded clips.
        on_batch: called with (clips done, clips in all).
    """
    spec = classifier.spec
    dataset = dataset_of(spec, clips, classifier.transform, store=store)
    indices: list[int] = []
    rows: list[NDArray[np.float64]] = []
    skipped: list[Skip] = []
    for batch in evaluation_loader(dataset, batch_size, workers=workers):
        skipped.extend(batch.skipped)
        if len(batch.indices):
            rows.append(classifier.probabilities(batch.clips(classifier.transform, classifier.device)))
            indices.extend(batch.indices.tolist())
        on_batch(len(indices) + len(skipped), len(clips))
    return Scores(
        clips=tuple(dataset.clips[index] for index in indices),
        labels=np.array([dataset.samples[index][1] for index in indices], dtype=np.int64),
        probabilities=np.concatenate(rows) if rows else np.empty((0, len(spec.classes))),
        skipped=tuple(skipped),
    )


def write_evaluation(
    folder: Path,
    classifier: Classifier,
    scores: Scores,
    sides: Mapping[str, str],
    split: str,
    notes: Sequence[str] = (),
    footage: Footage | None = None,
    exposure: Exposure | None = None,
) -> Evaluation:
    """Computes the figures of one split and writes them with the predictions.

    Args:
        folder: gets predictions.csv, evaluation.json and classification_report.txt.
        classifier: whose scores they are.
        scores: of the split's clips; clips of other splits are written to predictions.csv alone.
        sides: the split of each clip by name.
        split: the one that is evaluated, or "all".
        notes: sentences that must stand beside the figures.
        footage: what the split's clips stand for.
        exposure: what the model had to do with the split's clips; by their sides unless given.

    Raises:
        DataError: if no clip of the split could be scored.
    """
    spec = classifier.spec
    chosen = scores if split == "all" else scores.where(lambda clip: sides[clip.name] == split)
    if not chosen.clips:
        raise DataError(f"no clip of the split {split!r} could be scored.")
    exposure = exposure or exposure_of([sides[clip.name] for clip in chosen.clips])
    claim = read_claim(folder)
    if claim is not None and claim["kind"] == "unknown":
        exposure = replace(exposure, groups_told=False)
    metrics = compute_metrics(chosen.labels, chosen.probabilities, spec.classes, spec.event_indices)
    point = classifier.operating_point
    groups = [clip.group for clip in chosen.clips]
    summary = summarize(chosen.labels, chosen.probabilities, groups, spec.event_indices, point.threshold, footage)
    if exposure.why_no_claim is not None:
        summary = summary.without_claims(exposure.why_no_claim)
    counts = Counter(clip.label for clip in chosen.clips)
    record: dict[str, Any] = {
        "split": split,
        "notes": list(notes),
        "exposure": exposure.to_json(),
        "clips": len(chosen.clips),
        "clips_per_class": {name: counts[name] for name in spec.classes},
        "groups": len(set(groups)),
        "accuracy": metrics.accuracy,
        "balanced_accuracy": metrics.balanced_accuracy,
        "event": list(spec.event),
        "event_auroc": metrics.event_auroc,
        "event_average_precision": metrics.event_average_precision,
        "summary": summary.to_json(),
        "temperature": classifier.temperature,
        "operating_point": asdict(point),
        "confusion_matrix": {"classes": list(spec.classes), "rows_true": metrics.confusion.tolist()},
        "classification_report": metrics.report,
        "skipped": [{"path": skip.name, "reason": skip.reason} for skip in scores.skipped],
        "model_sha256": classifier.sha256,
        "engine": classifier.held.engine,
        "precision": classifier.held.precision,
    }
    # On clips that it was trained or chosen on, a model claims nothing of others.
    if split == "test" and claim is not None:
        record["claim"] = claim
    head = "".join(f"{note}\n" for note in notes)
    write_text(folder / "classification_report.txt", f"{head}{metrics.report_text}")
    write_json(folder / "evaluation.json", record)
    _write_predictions(folder / "predictions.csv", spec, scores, sides)
    return Evaluation(
        folder=folder,
        split=split,
        metrics=metrics,
        summary=summary,
        threshold=point.threshold,
        scores=chosen,
        notes=tuple(notes),
    )


def evaluate_split(
    folder: Path,
    classifier: Classifier,
    clips: Sequence[Clip],
    sides: Mapping[str, str],
    split: str,
    *,
    notes: Sequence[str] = (),
    skipped: Sequence[Skip] = (),
    footage: Footage | None = None,
    own_clips: bool = True,
    known_as: Mapping[str, str] | None = None,
    doubt: str = "",
    ungrouped: Set[str] = frozenset(),
    batch_size: int = 4,
    workers: int = 0,
    store: ClipStore | None = None,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Scores the clips of one split and writes what they show; with test, validation is scored beside.

    Args:
        folder: gets the three files; made if missing.
        classifier: the model.
        clips: all clips there are.
        sides: the split of each by name.
        split: a side, or "all".
        notes, skipped: what to write beside the figures.
        footage: the hours of all normal clips, if told, and the prevalence; the rest is worked out.
        own_clips: whether they are the run's own.
        known_as: the side of the run's clip that a clip of other data is a copy of, by name.
        doubt: what else may make the model look better than it is, in a sentence.
        ungrouped: names of the clips whose group nothing names.
        batch_size, workers, store, on_batch: as :func:`score_clips`.

    Raises:
        DataError: if the split has no clip that can be scored.
        OSError: if the folder cannot be written; what to do then, whoever asked knows.
    """
    chosen = [clip for clip in clips if sides[clip.name] in _scored_with(split)]
    if not any(split in ("all", sides[clip.name]) for clip in chosen):
        raise DataError(f"no clip is on the side {split!r}; there are {', '.join(sorted(set(sides.values())))}.")
    scores = score_clips(classifier, chosen, batch_size=batch_size, workers=workers, store=store, on_batch=on_batch)
    scores = replace(scores, skipped=(*skipped, *scores.skipped))
    folder.mkdir(parents=True, exist_ok=True)
    told = footage or Footage()
    of_split = [clip for clip in scores.clips if split in ("all", sides[clip.name])]
    footage = Footage(
        normal_hours=normal_hours(of_split, clips, classifier.spec.event, told.normal_hours),
        hours_told=told.normal_hours is not None,
        clip_hours=normal_hours(of_split, clips, classifier.spec.event, None),
        prevalence=told.prevalence,
    )
    learnt = {clip.group for clip in clips if sides[clip.name] == "train"}
    divided = any(clip.group in learnt for clip in of_split if sides[clip.name] != "train")
    chosen_on = {clip.group for clip in clips if sides[clip.name] == "validation"}
    if not doubt and not divided and any(clip.group in chosen_on for clip in of_split if sides[clip.name] == "test"):
        doubt = CHOSEN_GROUPS_NOTE
    measured = [(known_as or {}).get(clip.name, sides[clip.name]) for clip in of_split]
    exposure = exposure_of(
        measured,
        groups_divided=divided,
        own_clips=own_clips,
        doubt=doubt,
        groups_told=mostly_named([clip.label for clip in of_split], [clip.name not in ungrouped for clip in of_split]),
    )
    notes = (*exposure.notes, *notes)
    return write_evaluation(folder, classifier, scores, sides, split, notes, footage, exposure)


def evaluate_run(
    run: Path,
    classifier: Classifier,
    data: Path | None = None,
    split: str | None = None,
    *,
    batch_size: int = 4,
    workers: int = 0,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Evaluates a run's model on its own clips, or on others.

    The run's own held-out clips are evaluated into the run folder itself, as at the end of training;
    other splits, other data and other engines than torch into ``evaluations/<name>/`` below it.

    Args:
        run: the run folder.
        classifier: its model.
        data: class folders of clips; None for those that the run was trained on.
        split: "test", "validation", "train" or "all". None for what training reported, or all of other
            data. With other data, a side means the clips that bear the names of that side's.
        batch_size, workers, on_batch: as :func:`score_clips`.

    Raises:
        RunError: if the run folder lacks what is needed or cannot be written.
        DataError: if there is nothing to evaluate.
    """
    if split not in (None, "all", *SIDES):
        raise DataError(f"--split is {split!r}; it must be one of {', '.join((*SIDES, 'all'))}.")
    sides, groups = _read_sides(run)
    reported = "test" if "test" in sides.values() else "train"
    config = _config_of(run)
    trained_on = Path(config["data"])
    root = data or trained_on
    own = root.resolve() == trained_on.resolve()
    catalog = _catalog_below(root, classifier.spec)
    clips, notes = list(catalog.clips), list(catalog.notes)
    ungrouped: Set[str] = frozenset()
    lost: list[str] = []
    known_as: dict[str, str] = {}
    doubt = ""
    if own or split is not None:
        split = split or reported
        absent = [clip.name for clip in clips if clip.name not in sides]
        if absent:
            notes.append(f"{len(absent)} clips of {root} were not in the run and are left out.")
        clips = [replace(clip, group=groups[clip.name]) for clip in clips if clip.name in sides]
        here = {clip.name for clip in clips}
        lost = [name for name, side in sides.items() if side in _scored_with(split) and name not in here]
        if lost:
            notes.append(f"{count_and_names(lost)} of the run's clips cannot be read any more and are left out.")
    else:
        same, told = _copies_of_the_runs(clips, sides, trained_on, classifier.spec)
        notes += told
        named = sum(sides.get(clip.name) == "train" and clip.name not in same for clip in clips)
        if named:
            notes.append(
                f"{named} of these clips bear the names of training clips; if they show the same, the figures "
                "flatter. --split test leaves them out."
            )
        known_as = {name: sides[original] for name, original in same.items()}
        learnt = {groups[name] for name, side in sides.items() if side == "train"}
        doubt = _same_groups(clips, learnt, told_already={*same, *sides})
        clips, twice = _once(clips)
        notes += twice
        ungrouped = catalog.ungrouped
        if alone := sum(clip.name in ungrouped for clip in clips):
            notes.append(
                f"nothing says which sources {alone} of these {len(clips)} clips are of, so each is a group of its "
                "own, and intervals may be too narrow: name groups in their clips.csv."
            )
        split, sides = "all", {clip.name: "all" for clip in clips}
    name = split if own else f"{root.resolve().name}-{split}"
    exported = classifier.held.engine != "torch"
    if exported:
        name += f"-{classifier.held.engine}-{classifier.held.precision}"
    # The run's own figures are replaced only by figures of the same clips by the same engine, and never by those of
    # clips learnt from where a cross-validation measured the model.
    replaces = own and split == reported and not lost and not exported and not _measured_by_folds(run)
    folder = run if replaces else run / "evaluations" / name
    footage = Footage(normal_hours=config.get("normal_hours") if own else None, prevalence=config.get("prevalence"))
    try:
        return evaluate_split(
            folder,
            classifier,
            clips,
            sides,
            split,
            notes=notes,
            skipped=catalog.skipped,
            own_clips=own,
            known_as=known_as,
            doubt=doubt,
            ungrouped=ungrouped,
            footage=footage,
            batch_size=batch_size,
            workers=workers,
            on_batch=on_batch,
        )
    except OSError as error:
        raise RunError(f"{folder} cannot be written ({reason_of(error)}).") from None


def _once(clips: Sequence[Clip]) -> tuple[list[Clip], list[str]]:
    """Leaves out clips that are others byte for byte; those that bear another label stay, in one group."""
    copies, label_of = find_exact(clips), {clip.name: clip.label for clip in clips}
    groups = join_groups({clip.name: clip.group for clip in clips}, copies.items())
    same = {name: first for name, first in copies.items() if label_of[name] == label_of[first]}
    notes = []
    if same:
        named = [f"{name} is {first}" for name, first in same.items()]
        notes.append(
            f"left out, as they are others byte for byte: {count_and_names(named)}. Copies that were coded anew are "
            "found by tillwatch audit."
        )
    if others := [f"{name} is {first}" for name, first in copies.items() if name not in same]:
        notes.append(f"the same bytes under two labels: {count_and_names(others)}.")
    return [replace(clip, group=groups[clip.name]) for clip in clips if clip.name not in same], notes


def _same_groups(clips: Sequence[Clip], learnt: Set[str], told_already: Set[str]) -> str:
    """Says of clips of other data that their groups bear the names of groups learnt from; empty if none do."""
    alike = [clip for clip in clips if clip.group in learnt and clip.name not in told_already]
    if not alike:
        return ""
    names = list(dict.fromkeys(clip.group for clip in alike))
    return (
        f"{len(alike)} of these clips bear the names of groups that the model learnt from, {count_and_names(names)}; "
        "if they are of the same sources, these figures flatter."
    )


def clips_of_run(run: Path, spec: ClipSpec) -> dict[str, list[Clip]]:
    """Returns the clips of a run that can still be read, where the run found them, by each side of its split.

    Raises:
        RunError: if the run folder does not tell.
    """
    sides, _ = _read_sides(run)
    root = Path(_config_of(run)["data"])
    of_side: dict[str, list[Clip]] = {side: [] for side in sides.values()}
    for clip in _catalog_below(root, spec).clips:
        if clip.name in sides:
            of_side[sides[clip.name]].append(clip)
    return of_side


def normal_hours(
    clips: Sequence[Clip], everything: Sequence[Clip], event: Sequence[str], told: float | None
) -> float | None:
    """Returns the hours of normal footage that clips stand for; None if that is unknown.

    Args:
        clips: some of a data set's.
        everything: all of them.
        event: classes that are no normal footage.
        told: the hours that the normal clips of all stand for; their summed lengths unless given.
    """
    normal = [clip for clip in clips if clip.label not in event]
    if told is not None:
        count = sum(clip.label not in event for clip in everything)
        return told * len(normal) / count if count else None
    seconds = [clip.seconds for clip in normal]
    known = [length for length in seconds if length is not None]
    return sum(known) / 3600 if known and len(known) == len(seconds) else None


def _scored_with(split: str) -> tuple[str, ...]:
    """Returns the sides whose clips stand in predictions.csv when a split is evaluated."""
    return {"test": ("validation", "test"), "all": (*SIDES, "all")}.get(split, (split,))


def _catalog_below(root: Path, spec: ClipSpec) -> Catalog:
    """Returns the clips of other data; its notes are those on files: what groups they are in, the caller says."""
    search = search_folder(root, spec.classes, absent_ok=True)
    if not all(found.is_video for found in search.found):
        check_region(root, spec.roi)
    catalog = look_into(search, num_frames=spec.num_frames, step=spec.step)
    return replace(catalog, notes=tuple(search.notes))


def _copies_of_the_runs(
    clips: Sequence[Clip], sides: Mapping[str, str], trained_on: Path, spec: ClipSpec
) -> tuple[dict[str, str], list[str]]:
    """Finds clips of other data that are byte for byte those that the run learnt from or chose by.

    Returns:
        The run's clip by the clip's name, and sentences that a user should read.
    """
    known = {name: side for name, side in sides.items() if side in ("train", "validation")}
    try:
        search = search_folder(trained_on, spec.classes, absent_ok=True)
    except DataError:
        search = None
    there = [found for found in search.found if found.name in known] if search is not None else []
    same = find_same_files(clips, there)
    notes = []
    for side, what in (("train", "the model was trained on"), ("validation", "the run was validated on")):
        named = [f"{name} is {original}" for name, original in same.items() if known[original] == side]
        if named:
            notes.append(f"copies, byte for byte, of clips that {what}: {count_and_names(named)}. The figures flatter.")
    if gone := len(known) - len(there):
        notes.append(
            f"{gone} of the {len(known)} clips that the run was trained and validated on are not in {trained_on} any "
            "more: whether these clips are copies of them cannot be told."
        )
    return same, notes


def _measured_by_folds(run: Path) -> bool:
    try:
        return CROSS_VALIDATION in json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _config_of(run: Path) -> dict[str, Any]:
    path = run / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        Path(config["data"])
        return dict(config)
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path} does not tell which data the run was trained on ({one_line(error)}).") from None


def _read_sides(run: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the split and the group of each clip of a run, by name."""
    path = run / CLIPS_CSV
    try:
        rows = [row for row in read_csv(path) if row["split"]]
        return {row["path"]: row["split"] for row in rows}, {row["path"]: row["group"] for row in rows}
    except (OSError, KeyError, ValueError) as error:
        raise RunError(f"{path} does not tell how the clips were split ({one_line(error)}).") from None


def _write_predictions(path: Path, spec: ClipSpec, scores: Scores, sides: Mapping[str, str]) -> None:
    columns = ("path", "label", "group", "split", "predicted", *(f"p_{name}" for name in spec.classes))
    rows = []
    for clip, probabilities in zip(scores.clips, scores.probabilities, strict=True):
        row: dict[str, Any] = {
            "path": clip.name,
            "label": clip.label,
            "group": clip.group,
            "split": sides[clip.name],
            "predicted": spec.classes[int(probabilities.argmax())],
        }
        row |= {f"p_{name}": f"{p:.8f}" for name, p in zip(spec.classes, probabilities, strict=True)}
        rows.append(row)
    write_csv(path, columns, rows)
