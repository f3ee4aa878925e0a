"""Cross-validation: every clip scored by a network that has seen neither it nor its group."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray

from tillwatch.clip_spec import event_scores
from tillwatch.config import TrainConfig
from tillwatch.data.catalog import Clip
from tillwatch.data.splits import fold_splits
from tillwatch.errors import ConfigError, Interrupted, RunError, one_line, reason_of
from tillwatch.evaluation.audit_report import AUDIT_JSON
from tillwatch.evaluation.calibration import Temperature
from tillwatch.evaluation.evaluate import normal_hours
from tillwatch.evaluation.evaluated import (
    BASELINES_CSV,
    PREDICTIONS_CSV,
    contenders_of,
    own_thresholds_of,
    partly_note,
    repeats_of,
)
from tillwatch.evaluation.exposure import Exposure
from tillwatch.evaluation.metrics import Metrics, compute_metrics
from tillwatch.evaluation.paired import Rival, cost_note, rivals_of
from tillwatch.evaluation.publish import publish_or_say_why
from tillwatch.evaluation.report import REPORT_HTML
from tillwatch.evaluation.runs import UNFINISHED
from tillwatch.evaluation.summary import Footage, Summary, summarize
from tillwatch.files import read_csv, write_csv, write_json, write_text
from tillwatch.locks import open_held, release, take
from tillwatch.models.saved import OperatingPoint
from tillwatch.training.interrupts import SAME_WITHIN_S, Interrupts
from tillwatch.training.launch import standing
from tillwatch.training.loop import resume, train
from tillwatch.training.out_of_fold import (
    FoldPoint,
    Judged,
    calibrate_final,
    choose_point,
    leaking,
    own_points_note,
    read_fold_point,
)
from tillwatch.training.prepare import Job, paths_read, prepare, resolved, with_hours
from tillwatch.training.resume import refuse_other_clips, refuse_other_settings, settings_record, write_sides
from tillwatch.training.run_folder import check_run_folder
from tillwatch.training.runlog import RunLog

CROSSVAL_YAML = "crossval.yaml"
LOCK = ".crossval.lock"
LEAKS = (
    "Folds drawn at random, groups divided: clips of one source are in training and in test. These figures leak; they "
    "show what grouping prevents and are no estimate of anything."
)

# What does not change the figures may differ when a cross-validation goes on.
_FREE = ("out", "overwrite", "workers", "cache", "cache_folder", "checkpoint_minutes", "final", "log")


@dataclass(frozen=True, kw_only=True)
class Folds:
    """How to cross-validate.

    Attributes:
        folds: parts of the clips, each the test once.
        repeats: times the whole is done, with other folds and seeds.
        grouping: "group" keeps groups whole; "random" divides them, to show what that leaks.
        final: also train one model on all clips.
    """

    folds: int = 5
    repeats: int = 1
    grouping: Literal["group", "random"] = "group"
    final: bool = False

    def __post_init__(self) -> None:
        for name, least in (("folds", 2), ("repeats", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name} is {getattr(self, name)}; it must be at least {least}.")


@dataclass(frozen=True, kw_only=True)
class OutOfFold:
    """What a cross-validation found.

    Attributes:
        rows: of predictions.csv, each clip once a repeat.
        pooled: figures of each repeat's clips together.
        folds: figures of each fold, repeat after repeat.
        summary: of all clips, each at the threshold of the fold that tested it.
        point: one threshold for all, chosen on these very scores.
        temperature, final_point: for a model trained on all clips.
        baselines: mean figures of the repeats, by the baseline's name.
        rivals: the same with intervals, and how far the network is ahead.
        notes: sentences that must stand beside the figures.
    """

    rows: list[dict[str, str]]
    pooled: tuple[Metrics, ...]
    folds: tuple[Metrics, ...]
    summary: Summary
    point: OperatingPoint
    temperature: Temperature
    final_point: OperatingPoint
    baselines: dict[str, dict[str, float | None]]
    rivals: tuple[Rival, ...]
    notes: tuple[str, ...]

    @property
    def verdict(self) -> str | None:
        """That the network does not beat the best baseline; None if it does, or there is none."""
        return cost_note(self.rivals)


def cross_validate(data: Path, out: Path, config: TrainConfig, folds: Folds, log: RunLog | None = None) -> OutOfFold:
    """Trains one network a fold and collects the scores of the clips that each has not seen.

    A broken-off cross-validation started again goes on with the folds that are whole. Fold k of repeat r is the
    run folder ``out/folds/<(r - 1) * folds + k>``, its split ``out/splits/<the same>.csv``.

    Args:
        data: class folders of frame folders or videos.
        out: gets predictions.csv, evaluation.json, crossval.yaml, splits and folds.
        config: how to train each fold; repeat r trains with seed + r - 1.
        folds: how many, and how they are drawn.
        log: where to say what happens.

    Raises:
        TillwatchError: before anything is written, if settings or data cannot be used, or ``out`` holds another
            cross-validation's folds.
    """
    log = log or RunLog()
    if config.devices * config.num_nodes > 1 or standing() is not None:
        raise ConfigError("crossval trains its folds on one device; drop --devices, --num-nodes and torchrun.")
    if not config.hold_out or config.split_file is not None:
        raise ConfigError("cross-validation makes its own splits; drop --split-file, --no-hold-out, --recipe original.")
    config = with_hours(config, log)
    job = prepare(data, config, log, split=False, divide_groups=folds.grouping == "random")
    splits = _splits(job.catalog.clips, config.seed, folds)
    with _alone(data, out, config), Interrupts("the same tillwatch crossval goes on", SAME_WITHIN_S):
        whole = _claim(data, out, config, folds, job, splits)
        return _train_folds(data, out, config, folds, job, splits, whole, log)


@contextmanager
def _alone(data: Path, out: Path, config: TrainConfig) -> Iterator[None]:
    """Keeps other cross-validations out of a folder, which is made if it may be.

    Raises:
        RunError: if it holds something else, or another process holds it.
    """
    if _read_record(out) is None and not (out / LOCK).is_file():
        check_run_folder(out, False, reads=paths_read(data, config))
    try:
        out.mkdir(parents=True, exist_ok=True)
        descriptor = open_held(out / LOCK, os.O_RDONLY | os.O_CREAT)
    except OSError as error:
        raise RunError(f"{out} cannot be written ({reason_of(error)}); give another --out.") from None
    with ExitStack() as held:
        held.callback(release, descriptor)
        try:
            take(descriptor, out / LOCK)
        except OSError:
            raise RunError(
                f"{out} is being cross-validated by another process; wait for it, or give another --out."
            ) from None
        yield


def _train_folds(
    data: Path,
    out: Path,
    config: TrainConfig,
    folds: Folds,
    job: Job,
    splits: Sequence[Mapping[str, str]],
    whole: Container[int],
    log: RunLog,
) -> OutOfFold:
    """Trains the folds that are not whole, and collects the scores of all."""
    if folds.grouping == "random":
        log.note(LEAKS)
    for number, sides in enumerate(splits, start=1):
        repeat, fold = divmod(number - 1, folds.folds)
        name = f"fold {fold + 1} of {folds.folds}" + (f", repeat {repeat + 1}" if folds.repeats > 1 else "")
        if number in whole:
            log.say(f"{name}: done before")
            continue
        log.say(f"{name}: {sum(side == 'test' for side in sides.values())} clips to test")
        run = out / "folds" / str(number)
        split_file = out / "splits" / f"{number}.csv"
        settings = replace(config, split_file=split_file, seed=config.seed + repeat, overwrite=False)
        # Its clips are shown in the report of all folds.
        divide = folds.grouping == "random"
        _train_or_go_on(data, run, settings, log, divide_groups=divide, prepared=job, pictures=False)
        write_text(_mark(out, number), "")
    assert job.audit is not None, "it was prepared, not taken up again"
    write_json(out / AUDIT_JSON, job.audit.to_json())
    result = _collect(out, config, folds, job)
    publish_or_say_why(out, log.note, clips=job.catalog.clips)
    if folds.final:
        _train_final(data, out, config, len(splits), log, job, result)
    return result


def figures(metrics: Metrics) -> dict[str, float | None]:
    """Returns the headline figures as evaluation.json has them."""
    return {
        "accuracy": metrics.accuracy,
        "balanced_accuracy": metrics.balanced_accuracy,
        "event_auroc": metrics.event_auroc,
        "event_average_precision": metrics.event_average_precision,
    }


def mean_figures(several: Sequence[Metrics]) -> dict[str, float | None]:
    """Returns the mean of each headline figure; None where one of them is None."""
    columns = zip(*(figures(metrics).values() for metrics in several), strict=True)
    means = [None if None in column else float(np.mean(column)) for column in columns]
    return dict(zip(figures(several[0]), means, strict=True))


def _splits(clips: Sequence[Clip], seed: int, folds: Folds) -> list[dict[str, str]]:
    if folds.grouping == "random":
        clips = [replace(clip, group=clip.name) for clip in clips]
    return [sides for repeat in range(folds.repeats) for sides in fold_splits(clips, folds.folds, seed + repeat)]


def _on_all(config: TrainConfig, epochs: int) -> TrainConfig:
    return replace(
        config,
        hold_out=False,
        plateau_on="train",
        keep="last",
        patience=None,
        epochs=epochs,
        max_false_alarms_per_hour=None,  # no clip is left to choose an operating point on: out-of-fold scores did
        min_recall=None,
    )


def _mark(out: Path, number: int) -> Path:
    """Returns the file that says that a fold is whole."""
    return out / "splits" / f"{number}.done"


def _is_whole(out: Path, number: int) -> bool:
    """Whether a fold was ended, and is still there: a damaged one is done again once it is removed."""
    run = out / "folds" / str(number)
    return _mark(out, number).is_file() and all((run / name).is_file() for name in ("evaluation.json", PREDICTIONS_CSV))


def _claim(
    data: Path, out: Path, config: TrainConfig, folds: Folds, job: Job, splits: Sequence[Mapping[str, str]]
) -> set[int]:
    """Makes the folder, or goes on with it if its settings and clips are the same; returns the whole folds."""
    record = settings_record(resolved(config, job), data, out)
    record |= {"folds": folds.folds, "repeats": folds.repeats, "grouping": folds.grouping}
    clips, files = job.catalog.clips, [out / "splits" / f"{number}.csv" for number in range(1, len(splits) + 1)]
    older = _read_record(out)
    if older is not None and not config.overwrite:
        refuse_other_settings(out, older, record, _FREE, ", or --overwrite")
        for path, sides in zip(files, splits, strict=True):
            refuse_other_clips(out, path, sides, clips, job.sizes, ", or --overwrite")
        return {number for number in range(1, len(splits) + 1) if _is_whole(out, number)}
    try:
        for name in ("folds", "splits", "final"):
            shutil.rmtree(out / name, ignore_errors=True)
        for name in ("predictions.csv", "evaluation.json", AUDIT_JSON, BASELINES_CSV, REPORT_HTML):
            (out / name).unlink(missing_ok=True)
        (out / "splits").mkdir(parents=True)
        (out / "folds").mkdir()
        for path, sides in zip(files, splits, strict=True):
            write_sides(path, sides, clips, job.sizes)
        write_text(out / CROSSVAL_YAML, yaml.safe_dump(record, sort_keys=False, allow_unicode=True))
    except OSError as error:
        raise RunError(f"{out} cannot be written ({error.strerror or one_line(error)}); give another --out.") from None
    return set()


def _read_record(out: Path) -> dict[str, Any] | None:
    try:
        record = yaml.safe_load((out / CROSSVAL_YAML).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return record if isinstance(record, dict) else None


def _collect(out: Path, config: TrainConfig, folds: Folds, job: Job) -> OutOfFold:
    """Puts the folds' test clips together and writes predictions.csv, baselines.csv and evaluation.json."""
    points = [read_fold_point(out / "folds" / str(number)) for number in range(1, folds.folds * folds.repeats + 1)]
    rows = _of_folds(out, folds, PREDICTIONS_CSV, points, job.spec.classes)
    first, probabilities, partly = repeats_of(rows, out / PREDICTIONS_CSV)
    thresholds = own_thresholds_of(rows, first.names)
    assert thresholds is not None, "every row was given its fold's"
    by_name = {clip.name: clip for clip in job.catalog.clips}
    scored = [by_name[name] for name in first.names]
    hours = normal_hours(scored, job.catalog.clips, job.spec.event, config.normal_hours)
    footage = Footage(
        normal_hours=hours,
        hours_told=config.normal_hours is not None,
        clip_hours=normal_hours(scored, job.catalog.clips, job.spec.event, None),
        prevalence=config.prevalence,
    )
    events = job.spec.event_indices
    compared = _of_folds(out, folds, BASELINES_CSV, points, job.spec.classes)
    baselines = contenders_of(compared, first, out / BASELINES_CSV)
    # The first repeat alone chooses: it has every clip, and further ones bring no new ones.
    of_clip = {row["path"]: points[int(row["fold"]) - 1].temperature for row in rows if row["repeat"] == "1"}
    temperatures = np.array([of_clip[name] for name in first.names])
    temperature, final_point = calibrate_final(probabilities[0], temperatures, first.labels, events, hours, config)
    is_event = np.isin(first.labels, list(events))
    point = choose_point(event_scores(probabilities[0], events), is_event, hours, config)
    leaks = folds.grouping == "random"
    found = OutOfFold(
        rows=rows,
        pooled=tuple(_metrics(job, rows, repeat) for repeat in range(1, folds.repeats + 1)),
        folds=tuple(_metrics(job, rows, r, f) for r in range(1, folds.repeats + 1) for f in range(1, folds.folds + 1)),
        summary=summarize(first.labels, probabilities, first.groups, events, thresholds, footage),
        point=leaking(point) if leaks else point,
        temperature=temperature,
        final_point=leaking(final_point) if leaks else final_point,
        baselines=_mean_baselines(compared, folds, job),
        rivals=tuple(
            rivals_of(
                first.labels,
                probabilities,
                {baseline.name: baseline.probabilities for baseline in baselines},
                first.groups,
                events,
            )
        ),
        notes=(*([LEAKS] if leaks else []), own_points_note(points), *partly_note(partly)),
    )
    for name, table in ((PREDICTIONS_CSV, rows), (BASELINES_CSV, compared)):
        columns = [column for column in (table[0] if table else ()) if column != "repeat" or folds.repeats > 1]
        if table:
            write_csv(out / name, columns, [{column: row[column] for column in columns} for row in table])
    write_json(out / "evaluation.json", _record(found, points, folds, job))
    return found


def _of_folds(
    out: Path, folds: Folds, name: str, points: Sequence[FoldPoint], classes: Sequence[str]
) -> list[dict[str, str]]:
    """Reads a table of each fold, its test clips alone; nothing if a fold lacks it.

    Raises:
        RunError: naming a table that is damaged.
    """
    rows: list[dict[str, str]] = []
    for number, point in enumerate(points, start=1):
        path = out / "folds" / str(number) / name
        if name == BASELINES_CSV and not path.is_file():  # not wanted, or test clips that could not be read again
            return []
        repeat, fold = divmod(number - 1, folds.folds)
        own = {"fold": str(fold + 1), "repeat": str(repeat + 1)}
        if name == PREDICTIONS_CSV:
            own["threshold"] = repr(point.threshold)
        try:
            found = [row | own for row in read_csv(path) if row.get("split", "test") == "test"]
            scores = [float(row[f"p_{name}"]) for row in found for name in classes]
            labelled = all(row["path"] and row["label"] in classes for row in found)
            whole = bool(found) and labelled and all(map(math.isfinite, scores))
        except (OSError, ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise RunError(f"{path} is damaged; remove the fold and start again.")
        rows += found
    return rows


def _record(found: OutOfFold, points: Sequence[FoldPoint], folds: Folds, job: Job) -> dict[str, Any]:
    """Returns what evaluation.json holds."""
    record: dict[str, Any] = {
        "split": "out of fold",
        "notes": list(found.notes),
        "grouping": folds.grouping,
        "exposure": Exposure(
            clips=len({row["path"] for row in found.rows}),
            groups_divided=folds.grouping == "random",
            groups_told=job.audit is None or job.audit.claim.kind != "unknown",
        ).to_json(),
        **({} if folds.grouping == "random" or job.audit is None else {"claim": asdict(job.audit.claim)}),
        "clips": len({row["path"] for row in found.rows}),
        "groups": len({row["group"] for row in found.rows}),
        "event": list(job.spec.event),
        **mean_figures(found.pooled),
        "summary": found.summary.to_json(),
        "operating_point": asdict(found.point),
        "final": {
            "temperature": found.temperature.value,
            "temperature_source": found.temperature.source,
            "operating_point": asdict(found.final_point),
        },
        "repeats": [figures(metrics) for metrics in found.pooled],
        "folds": [
            {
                "repeat": number // folds.folds + 1,
                "fold": number % folds.folds + 1,
                **figures(metrics),
                "temperature": point.temperature,
                "threshold": point.threshold,
                "threshold_source": point.source,
            }
            for number, (metrics, point) in enumerate(zip(found.folds, points, strict=True))
        ],
        "confusion_matrix": {
            "classes": list(job.spec.classes),
            "rows_true": np.sum([metrics.confusion for metrics in found.pooled], axis=0).tolist(),
        },
    }
    if found.baselines:
        ahead = {rival.name: {name: asdict(one) for name, one in rival.ahead.items()} for rival in found.rivals}
        record["baselines"] = {
            name: {**means, "network_ahead": ahead.get(name)} for name, means in found.baselines.items()
        }
        record["verdict"] = found.verdict
    return record


def _mean_baselines(rows: Sequence[Mapping[str, str]], folds: Folds, job: Job) -> dict[str, dict[str, float | None]]:
    found = {}
    for name in dict.fromkeys(row["baseline"] for row in rows):
        own = [row for row in rows if row["baseline"] == name]
        found[name] = mean_figures([_metrics(job, own, repeat) for repeat in range(1, folds.repeats + 1)])
    return found


def _metrics(job: Job, rows: Sequence[Mapping[str, str]], repeat: int, fold: int | None = None) -> Metrics:
    classes = job.spec.classes
    chosen = [row for row in rows if row["repeat"] == str(repeat) and fold in (None, int(row["fold"]))]
    labels: NDArray[np.int64] = np.array([classes.index(row["label"]) for row in chosen], dtype=np.int64)
    probabilities = np.array([[float(row[f"p_{name}"]) for name in classes] for row in chosen])
    return compute_metrics(labels, probabilities, classes, job.spec.event_indices)


def _train_final(
    data: Path, out: Path, config: TrainConfig, folds: int, log: RunLog, job: Job, found: OutOfFold
) -> None:
    if (out / "final" / "evaluation.json").is_file() and not (out / "final" / UNFINISHED).exists():
        log.say(f"the model on all clips is in {out / 'final'} already")
        return
    epochs = int(np.median([_best_epoch(out / "folds" / str(number), config) for number in range(1, folds + 1)]))
    log.say(f"final model on all clips: {epochs} epochs, the median best epoch of the folds")
    temperature, point = found.temperature, found.final_point
    log.say(f"temperature {temperature.value:.3g}, {temperature.source}")
    log.say(f"operating point {point.threshold:.4f}: {point.source}")
    settings = replace(_on_all(config, max(1, epochs)), overwrite=False)
    judged = Judged(temperature=temperature.value, point=point, crossval=out)
    _train_or_go_on(data, out / "final", settings, log, prepared=job, judged=judged)


def _train_or_go_on(data: Path, run: Path, config: TrainConfig, log: RunLog, **options: Any) -> None:
    """Trains one of the runs, or goes on with it where it was broken off."""
    try:
        if (run / UNFINISHED).exists() and (run / "config.yaml").exists():
            resume(run, config, data, log, **options)
        else:
            shutil.rmtree(run, ignore_errors=True)
            train(data, run, config, log, **options)
    except Interrupted as stopped:
        message = f"interrupted in {run}, which is saved; the same tillwatch crossval goes on"
        raise Interrupted(message, stopped.signum) from None


def _best_epoch(run: Path, config: TrainConfig) -> int:
    """Returns the epoch whose weights a fold kept."""
    path = run / "metrics.csv"
    if config.keep == "last" or not path.is_file():
        return config.epochs
    rows = read_csv(path)
    full = range(min(config.early_epochs, len(rows) - 1), len(rows))  # losses of another size do not compare
    return min(full, key=lambda index: float(rows[index]["val_loss"])) + 1
