"""What was evaluated, read back from a run, a cross-validation, an evaluation or any program's predictions.csv."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from tillwatch.clip_spec import choose_event, event_scores
from tillwatch.data.catalog import count_and_names
from tillwatch.data.grouping import mostly_named
from tillwatch.data.recordings import camera_of
from tillwatch.data.splits import SIDES
from tillwatch.errors import ConfigError, DataError, RunError, did_you_mean, one_line
from tillwatch.evaluation.exposure import CHOSEN_GROUPS_NOTE, CROSS_VALIDATION, Exposure, exposure_of, read_exposure
from tillwatch.evaluation.operating_point import choose_threshold
from tillwatch.evaluation.predictions import Predictions, predictions_of, read_rows
from tillwatch.files import read_csv

#: How an operating point came about that somebody gave.
GIVEN = "given with --threshold"

#: Stands above a cross-validation's figures, unless another threshold is asked for.
OWN_THRESHOLDS_NOTE = (
    "Recall, precision and false alarms are those of each fold's own threshold, chosen on its validation clips and "
    "applied to its test clips."
)

PREDICTIONS_CSV, BASELINES_CSV = "predictions.csv", "baselines.csv"


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A baseline's scores of the same clips: its name, and float64 ``(R, N, classes)``."""

    name: str
    probabilities: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Told:
    """What the user says beside a table: None where nothing is said.

    Attributes:
        event: classes worth an alarm.
        threshold: event probability from which on a clip is an alarm.
        normal_hours: of footage that all normal clips of the run or table stand for; of an evaluation on other clips
            than the run's own, all of those.
        groups: by path, to go by in place of those that the run or table names.
    """

    event: Sequence[str] | None = None
    threshold: float | None = None
    normal_hours: float | None = None
    groups: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ConfigError(f"--threshold is {self.threshold}; it must be between 0 and 1.")
        if self.normal_hours is not None and not 0 < self.normal_hours < float("inf"):
            raise ConfigError(f"--normal-hours is {self.normal_hours}; it must be a positive number.")


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """Scored clips and all that stands beside them.

    Attributes:
        source: the folder or table.
        kind: "run", "crossval", "final" (a model trained on all clips, with its cross-validation's figures),
            "evaluation" (of a run's model on other clips) or "table".
        names, labels, groups: of N clips; labels int64 ``(N,)``, places in ``classes``.
        classes, event: names in label order, and those worth an alarm.
        probabilities: float64 ``(R, N, classes)``, R repeats of a cross-validation, otherwise 1.
        threshold, point_source: the operating point, and how it came about.
        own_thresholds: float64 ``(R, N)``, of the fold that tested each clip, chosen on that fold's validation clips:
            recall, precision and alarms are at these. None where one threshold stands for all.
        split: what the clips are: "test", "out of fold", "train", "all".
        exposure: what the model had to do with them.
        normal_hours: of footage that these normal clips stand for, once; None if unknown.
        hours_told: whether somebody said so; otherwise they are the clips' own lengths.
        clip_hours, prevalence: what the normal clips last, and the user's own share of events; None if unknown.
        told: what the user said beside it, which repeats the page.
        notes: sentences that must stand beside the figures.
        baselines: what needs no network, on the same clips.
        clips: the run's clips.csv by path; empty for a table.
        groups_told: whether anything says what belongs together; otherwise each clip is a group of its own.
        split_told: whether anything says which clips the model learnt from.
        known_groups: by path, of all clips that the run or table puts into a group with a name of its own, measured or
            not.
        cues_known: whether the run's audit looked for what else tells this event from the rest.
        cameras: of each clip, as the data set's clips.csv or the table says, else by its name; empty where unknown.
        record, model, settings, audit: evaluation.json, model.json, config.yaml or crossval.yaml, and audit.json; empty
            where there is none.
        epochs: rows of metrics.csv.
    """

    source: Path
    kind: str
    names: tuple[str, ...]
    labels: NDArray[np.int64]
    groups: tuple[str, ...]
    classes: tuple[str, ...]
    event: tuple[str, ...]
    probabilities: NDArray[np.float64]
    threshold: float
    point_source: str
    split: str
    exposure: Exposure
    own_thresholds: NDArray[np.float64] | None = None
    normal_hours: float | None = None
    hours_told: bool = False
    clip_hours: float | None = None
    prevalence: float | None = None
    told: Told = Told()
    notes: tuple[str, ...] = ()
    baselines: tuple[Contender, ...] = ()
    clips: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    groups_told: bool = True
    split_told: bool = True
    cues_known: bool = True
    known_groups: Mapping[str, str] = field(default_factory=dict)
    cameras: tuple[str, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    audit: Mapping[str, Any] = field(default_factory=dict)
    epochs: Sequence[Mapping[str, str]] = ()

    @property
    def repeats(self) -> int:
        """How many times each clip was scored, by models of other folds."""
        return len(self.probabilities)

    @property
    def event_indices(self) -> tuple[int, ...]:
        """Columns whose sum is the event probability."""
        return tuple(self.classes.index(name) for name in self.event)

    @property
    def is_event(self) -> NDArray[np.bool_]:
        """Which clips show the event, bool ``(N,)``."""
        found: NDArray[np.bool_] = np.isin(self.labels, list(self.event_indices))
        return found

    @property
    def event_scores(self) -> NDArray[np.float64]:
        """Event probabilities, float64 ``(R, N)``."""
        return event_scores(self.probabilities, self.event_indices)

    @property
    def thresholds(self) -> NDArray[np.float64]:
        """The operating point that each score is held against, float64 ``(R, N)``."""
        if self.own_thresholds is not None:
            return self.own_thresholds
        return np.full(self.probabilities.shape[:2], self.threshold)

    @property
    def unsaid(self) -> tuple[str, ...]:
        """What must hold for these figures to be those of other clips, and nothing says."""
        doubts = {
            "each clip is of a source of its own": not self.groups_told,
            "the model learnt from none of these clips": not self.split_told,
            "the threshold was not chosen on them": self.point_source == GIVEN,
            "nothing else tells this event from the rest": not self.cues_known,
        }
        return tuple(words for words, holds in doubts.items() if holds)

    @property
    def alarms(self) -> NDArray[np.bool_]:
        """Which scores reach it, bool ``(R, N)``."""
        reached: NDArray[np.bool_] = self.event_scores >= self.thresholds
        return reached


_OF_THE_EVENT = ("prevalence", "normal_hours", "normal_footage", "max_false_alarms_per_hour", "min_recall")


def read_evaluated(source: Path, told: Told | None = None) -> Evaluated:
    """Reads what was evaluated.

    Args:
        source: a run folder, a folder of ``tillwatch crossval``, one below a run's ``evaluations``, or a table
            ``path,label,[group],[split],p_<class>,...``.
        told: what to believe instead of what stands there.

    Raises:
        RunError: if a folder holds no evaluation.
        DataError: if its predictions cannot be used.
        ConfigError: if the event is none of the classes, or nothing settles it.
    """
    told = told or Told()
    if source.is_dir():
        return _of_folder(source, told)
    if not source.exists():
        raise RunError(f"{source} does not exist; give a run folder or a predictions.csv.")
    return _of_table(source, told)


def _of_folder(folder: Path, told: Told) -> Evaluated:
    record = _json(folder / "evaluation.json")
    if not record or not (folder / PREDICTIONS_CSV).is_file():
        raise RunError(
            f"{folder} holds no evaluation (evaluation.json and predictions.csv); give a run folder or a table."
        )
    crossval = _yaml(folder / "crossval.yaml")
    run = folder.parent.parent if folder.parent.name == "evaluations" else folder
    split = str(record.get("split", "test"))
    rows = read_rows(folder / PREDICTIONS_CSV)
    of_folds = bool(crossval) or CROSS_VALIDATION in record
    if not of_folds and split != "all":
        rows = [row for row in rows if row.get("split") == split]
    first, probabilities, partly = repeats_of(rows, folder / PREDICTIONS_CSV)
    event = choose_event(first.classes, told.event or _names(record.get("event")))
    clips = _clips(folder / "folds" / "1" if crossval else run)
    settings, audit = crossval or _yaml(run / "config.yaml"), _json(run / "audit.json")
    notes = [*map(str, record.get("notes", ()))]
    record_of_event = record
    if set(event) != set(_names(record.get("event")) or event):
        # What was chosen and counted for one event is nothing to another.
        record_of_event, settings = {}, {name: settings[name] for name in settings if name not in _OF_THE_EVENT}
        notes.append(
            f"The event here is {' or '.join(event)}, the run's is {' or '.join(record['event'])}: its operating "
            "point, hours and prevalence do not hold for this one."
        )
    cues_known = record_of_event is record
    if not cues_known:
        audit = _without_cues(audit)
    own_points = of_folds and told.threshold is None and record_of_event is record
    if not own_points:
        notes = [note for note in notes if not note.startswith(OWN_THRESHOLDS_NOTE)]
    threshold, source = _point(record_of_event, told)
    normal = [name for name, label in zip(first.names, first.labels, strict=True) if first.classes[label] not in event]
    exposure = read_exposure(record) or _exposure(folder, record, rows, run == folder)
    # Of other data, a side of the run's split means clips of the same names, whose groups are the run's.
    grouped_by_run = exposure.own_clips or split in SIDES
    of_measured = clips if exposure.own_clips else {}
    named = _groups_in(clips.values() if grouped_by_run else ()) | _groups_in(rows)
    groups = tuple(told.groups.get(name, group) for name, group in zip(first.names, first.groups, strict=True))
    groups_told = exposure.groups_told and not (grouped_by_run and _nothing_groups(audit))
    if told.groups:
        held_out = grouped_by_run and not of_folds and split in ("test", "validation")
        learnt = [name for name, row in clips.items() if row["split"] == "train"] if held_out else []
        divided = not {told.groups.get(name, name) for name in learnt}.isdisjoint(groups)
        divided |= exposure.groups_divided or _folds_divide_groups(rows, first.names, groups)
        exposure = replace(exposure, groups_divided=divided)
        labels = [first.classes[label] for label in first.labels]
        groups_told |= mostly_named(labels, [group != name for name, group in zip(first.names, groups, strict=True)])
    whole = "crossval" if crossval else "final" if of_folds else "run"
    return Evaluated(
        source=folder,
        kind=whole if run == folder else "evaluation",
        names=first.names,
        labels=first.labels,
        groups=groups,
        classes=first.classes,
        event=event,
        probabilities=probabilities,
        threshold=threshold,
        point_source=source,
        split=split,
        exposure=exposure,
        own_thresholds=own_thresholds_of(rows, first.names) if own_points else None,
        normal_hours=None
        if exposure.learnt_from
        else _hours(record_of_event, of_measured, normal, event, told.normal_hours),
        hours_told=told.normal_hours is not None or (exposure.own_clips and settings.get("normal_hours") is not None),
        clip_hours=sum(_seconds(of_measured, normal)) / 3600 or None,
        prevalence=settings.get("prevalence"),
        told=told,
        notes=tuple(dict.fromkeys((*notes, *partly_note(partly)))),
        baselines=contenders_of(_rows(folder / BASELINES_CSV), first, folder / BASELINES_CSV),
        clips=clips,
        cameras=_cameras(first.names, clips),
        record=record,
        model=_json(run / "model.json"),
        settings=settings,
        audit=audit,
        groups_told=groups_told,
        cues_known=cues_known,
        known_groups={name: group for name, group in named.items() if name != group},
        epochs=_rows(run / "metrics.csv"),
    )


def _groups_in(rows: Iterable[Mapping[str, str]]) -> dict[str, str]:
    return {row["path"]: row["group"] for row in rows if row.get("group")}


def _without_cues(audit: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an audit less what it says of cues, which were measured for another event."""
    findings = audit.get("findings")
    kept = [one for one in findings if isinstance(one, Mapping)] if isinstance(findings, list) else []
    changed = {"cues": [], "findings": [one for one in kept if one.get("kind") != "confound"]}
    return {**audit, **changed} if audit else {}


def _nothing_groups(audit: Mapping[str, Any]) -> bool:
    """Whether a run's audit says that nothing told which clips share a source."""
    claim, groups = audit.get("claim"), audit.get("groups")
    unknown = isinstance(claim, Mapping) and claim.get("kind") == "unknown"
    return unknown or (isinstance(groups, Mapping) and groups.get("source") == "none")


def _of_table(path: Path, told: Told) -> Evaluated:
    rows = read_rows(path)
    if told.groups:
        rows = [row | {"group": told.groups.get(row.get("path", ""), "")} for row in rows]
    first, probabilities, partly = repeats_of(rows, path, one_class_ok=False)
    event = choose_event(first.classes, told.event)
    splits = np.array([_side(split, path) for split in first.splits])
    # What tells most of new clips: a test, else rows that say nothing, else validation, and training last.
    split = next(side for side in ("test", "", "validation", "train") if (splits == side).any())
    wanted = splits == split
    groups = np.array(first.groups, dtype=object)
    measured = set(groups[wanted])
    # What Tillwatch writes of a clip that is a group of its own is its path.
    grouped = {name: group for name, group in _groups_in(rows).items() if name != group}
    alone = [name for name in np.array(first.names, dtype=object)[wanted] if name not in grouped]
    chosen_on = split in ("test", "") and bool(measured & set(groups[splits == "validation"]))
    others = np.array(first.names, dtype=object)[np.isin(splits, ("train", "validation")) & ~wanted]
    unknown = sum(name not in grouped for name in others)
    doubt = CHOSEN_GROUPS_NOTE if chosen_on else ""
    if unknown and grouped and split in ("test", ""):
        rows_of = "row of training or validation" if unknown == 1 else "rows of training or validation"
        doubt = f"Whether groups of {unknown} {rows_of} without a group are measured here cannot be told."
    exposure = exposure_of(
        list(splits[wanted]),
        groups_divided=split != "train"
        and (bool(measured & set(groups[splits == "train"])) or _folds_divide_groups(rows, first.names, first.groups)),
        doubt=doubt,
        groups_told=mostly_named(
            [first.classes[label] for label in first.labels[wanted]],
            [name in grouped for name in np.array(first.names, dtype=object)[wanted]],
        ),
    )
    notes = [*exposure.notes, *partly_note(partly)]
    if grouped and alone:
        notes.append(f"{count_and_names(alone)} without a group: each is a group of its own.")
    elif not grouped:
        notes.append("No row has a group: each clip is a group of its own, and intervals may be too narrow.")
    split_told = split != "" or bool((splits == "train").any())
    if not split_told:
        notes.append(
            "No row says that it is of a test, and none that it is of training: that the model learnt from none of "
            "these clips is for whoever made the table to say, with test in a column split."
        )
    if not wanted.all():
        others = ", ".join(f"{count} {side or 'without a split'}" for side, count in _counted(splits[~wanted]))
        notes.append(
            f"The figures are of the {int(wanted.sum())} rows {_ROWS[split]}; {others} are left out of every figure."
        )
    elif split in ("validation", "train"):
        notes.append(f"All {len(splits)} rows are {_ROWS[split].removeprefix('of ')}: no row is of a test.")
    is_event = np.isin(first.labels, [first.classes.index(name) for name in event])
    scores = event_scores(probabilities, [first.classes.index(name) for name in event])
    threshold, source = 0.5, "default, not chosen on data"
    if told.threshold is not None:
        threshold, source = told.threshold, GIVEN
    elif (chosen := splits == "validation").any() and len(set(is_event[chosen])) == 2:
        choice = choose_threshold(scores[0, chosen], is_event[chosen])
        threshold, source = choice.threshold, choice.source
    hours = told.normal_hours
    if hours is not None and (~is_event).any():
        hours *= float((~is_event & wanted).sum() / (~is_event).sum())
    return Evaluated(
        source=path,
        kind="table",
        names=tuple(np.array(first.names, dtype=object)[wanted]),
        labels=first.labels[wanted],
        groups=tuple(np.array(first.groups, dtype=object)[wanted]),
        classes=first.classes,
        event=event,
        probabilities=probabilities[:, wanted],
        threshold=threshold,
        point_source=source,
        split=split or "all",
        exposure=exposure,
        normal_hours=None if exposure.learnt_from else hours,
        hours_told=hours is not None,
        groups_told=exposure.groups_told,
        split_told=split_told,
        known_groups=grouped,
        told=told,
        cameras=_cameras(tuple(np.array(first.names, dtype=object)[wanted]), {row["path"]: row for row in rows}),
        notes=tuple(notes),
    )


def _folds_divide_groups(rows: Sequence[Mapping[str, str]], names: Sequence[str], groups: Sequence[str]) -> bool:
    """Tells from a table's column fold, which says in which fold a clip was tested, whether groups were divided."""
    group_of = dict(zip(names, groups, strict=True))
    folds: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        if row.get("fold") and row["path"] in group_of:
            folds.setdefault((row.get("repeat", ""), group_of[row["path"]]), set()).add(row["fold"])
    return any(len(found) > 1 for found in folds.values())


def _exposure(folder: Path, record: Mapping[str, Any], rows: Sequence[Mapping[str, str]], is_run: bool) -> Exposure:
    """Works out what an older evaluation.json does not tell."""
    sides = {row["path"]: row.get("split", "") for row in rows}
    return exposure_of(
        list(sides.values()),
        groups_divided=record.get("grouping") == "random",
        own_clips=is_run or folder.name in (*SIDES, "all"),
    )


#: What the rows are that a table's figures are of.
_ROWS = {
    "test": "of the split test",
    "": "without a split",
    "validation": "of the split validation",
    "train": "of the split train",
}


def _side(split: str, path: Path) -> str:
    """Returns which side a table's row is on; empty where it says none, as "all" does, which evaluate writes.

    Raises:
        DataError: if it says something else: taken for a test, it might be none.
    """
    side = split.strip().lower()
    if side in ("", "all"):
        return ""
    if side not in SIDES:
        raise DataError(
            f"{path}: the column split says {split!r}; it must be test, validation or train, or be empty."
            f"{did_you_mean(side, SIDES)}"
        )
    return side


def _counted(sides: NDArray[np.str_]) -> list[tuple[str, int]]:
    names, counts = np.unique(sides, return_counts=True)
    return [(str(name), int(count)) for name, count in zip(names, counts, strict=True)]


def repeats_of(
    rows: Sequence[Mapping[str, str]], path: Path, *, one_class_ok: bool = True
) -> tuple[Predictions, NDArray[np.float64], list[str]]:
    """Takes the clips that stand in each repeat, as in the first, which all must agree with.

    Returns:
        The clips; their scores, float64 ``(R, N, classes)``; and the names of those that stand in some repeats alone.

    Raises:
        DataError: as :func:`~tillwatch.evaluation.predictions.predictions_of`; if no clip stands in each repeat, or one
            has another label, group or split in another.
    """
    numbers = dict.fromkeys(row.get("repeat", "") for row in rows)
    several = [
        predictions_of([row for row in rows if row.get("repeat", "") == number], path, one_class_ok=one_class_ok)
        for number in numbers
    ] or [predictions_of(rows, path)]
    first = several[0]
    places = [{name: place for place, name in enumerate(one.names)} for one in several]
    kept = [place for place, name in enumerate(first.names) if all(name in of for of in places)]
    if not kept:
        raise DataError(f"{path}: no clip stands in each of the {len(several)} repeats.")
    taken = Predictions(
        names=tuple(first.names[place] for place in kept),
        labels=first.labels[kept],
        groups=tuple(first.groups[place] for place in kept),
        splits=tuple(first.splits[place] for place in kept),
        classes=first.classes,
        probabilities=first.probabilities[kept],
    )
    for one, of, number in zip(several, places, numbers or [""], strict=True):
        _refuse_contradictions(taken, one, of, f"repeat {number}", path)
    scores = [one.probabilities[[of[name] for name in taken.names]] for one, of in zip(several, places, strict=True)]
    everything = dict.fromkeys(name for one in several for name in one.names)
    return taken, np.stack(scores), [name for name in everything if any(name not in of for of in places)]


def _refuse_contradictions(
    first: Predictions, other: Predictions, places: Mapping[str, int], where: str, path: Path
) -> None:
    """Refuses a repeat that says of a clip what the first repeat does not."""
    for place, name in enumerate(first.names):
        there = places[name]
        for what, ours, theirs in (
            ("label", first.classes[first.labels[place]], other.classes[other.labels[there]]),
            ("group", first.groups[place], other.groups[there]),
            ("split", first.splits[place], other.splits[there]),
        ):
            if ours != theirs:
                raise DataError(
                    f"{path}: {name!r} has the {what} {ours!r} in the first repeat and {theirs!r} in {where}; repeats "
                    "must agree on it. Scores of different splits are different tables: report each by itself."
                )


def partly_note(names: Sequence[str]) -> tuple[str, ...]:
    """Says which clips stand in some repeats alone; nothing if there are none."""
    if not names:
        return ()
    return (f"Clips that stand in some repeats alone are left out of every figure: {count_and_names(names)}.",)


def contenders_of(rows: Sequence[Mapping[str, str]], first: Predictions, path: Path) -> tuple[Contender, ...]:
    """Takes from baselines.csv those that scored every one of the clips; another set would be no comparison."""
    found = []
    for name in dict.fromkeys(row.get("baseline", "") for row in rows):
        try:
            own, scores, _ = repeats_of([row for row in rows if row.get("baseline") == name], path)
        except DataError:
            continue
        places = {clip: place for place, clip in enumerate(own.names)}
        if own.classes == first.classes and all(clip in places for clip in first.names):
            found.append(Contender(name=name, probabilities=scores[:, [places[clip] for clip in first.names]]))
    return tuple(found)


def _point(record: Mapping[str, Any], told: Told) -> tuple[float, str]:
    if told.threshold is not None:
        return told.threshold, GIVEN
    point = record.get("operating_point")
    if isinstance(point, Mapping) and isinstance(point.get("threshold"), int | float):
        return float(point["threshold"]), str(point.get("source", "not told"))
    return 0.5, "default, not chosen on data"


def own_thresholds_of(rows: Sequence[Mapping[str, str]], names: Sequence[str]) -> NDArray[np.float64] | None:
    """Returns the threshold of the fold that tested each clip, ``(R, N)``; None if the table does not tell them."""
    try:
        told = {(row.get("repeat", ""), row["path"]): float(row["threshold"]) for row in rows}
    except (KeyError, ValueError):
        return None
    return np.array([[told[repeat, name] for name in names] for repeat in dict.fromkeys(repeat for repeat, _ in told)])


def _hours(
    record: Mapping[str, Any],
    clips: Mapping[str, Mapping[str, str]],
    normal: Sequence[str],
    event: Sequence[str],
    told: float | None,
) -> float | None:
    """Returns the hours that normal clips stand for: their share of those told, those of the record, their lengths."""
    if told is not None:
        everything = sum(row["label"] not in event for row in clips.values()) or len(normal)
        return told * min(1.0, len(normal) / everything) if normal else None
    alarms = ((record.get("summary") or {}).get("at_point") or {}).get("alarms") or {}
    if alarms.get("hours"):
        return float(alarms["hours"])
    seconds = _seconds(clips, normal)
    return sum(seconds) / 3600 if seconds else None


def _seconds(clips: Mapping[str, Mapping[str, str]], names: Sequence[str]) -> list[float]:
    """Returns the lengths of clips; none unless all are known."""
    told = [clips.get(name, {}).get("seconds") for name in names]
    try:
        return [float(seconds or "") for seconds in told]
    except ValueError:
        return []


def _cameras(names: Sequence[str], rows: Mapping[str, Mapping[str, str]]) -> tuple[str, ...]:
    return tuple(rows.get(name, {}).get("camera") or camera_of(name) for name in names)


def _names(value: object) -> list[str] | None:
    return [str(name) for name in value] if isinstance(value, list) and value else None


def _clips(run: Path) -> dict[str, Mapping[str, str]]:
    return {row["path"]: row for row in _rows(run / "clips.csv") if row.get("path") and row.get("split")}


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        return read_csv(path)
    except (OSError, ValueError):
        return []


def _json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ValueError("it holds no JSON object")
        return data
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is damaged ({one_line(error)}).") from None


def _yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RunError(f"{path} is damaged ({one_line(error)}).") from None
    return data if isinstance(data, dict) else {}
