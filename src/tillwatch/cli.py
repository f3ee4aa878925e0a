"""The command line: one thin function a command. Nothing here imports torch until a command needs it."""

from __future__ import annotations

import gc
import io
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import cyclopts
from cyclopts import App, Parameter
from cyclopts.argument import update_argument_collection

from tillwatch import __version__
from tillwatch.config import (
    RECIPES,
    MaybeWhole,
    Names,
    NegativesConfig,
    ScanConfig,
    TrainConfig,
    Whole,
    default_workers,
    flag,
    read_yaml,
)
from tillwatch.errors import ConfigError, Interrupted, RunError, TillwatchError, did_you_mean, one_line
from tillwatch.files import readable, to_nobody
from tillwatch.signals import ignore_signals, sigterm_exits

if TYPE_CHECKING:
    from tillwatch.data.store import ClipStore, Entry
    from tillwatch.detection.incidents import Incident
    from tillwatch.detection.negatives import Negatives
    from tillwatch.detection.results import Recording, Scan
    from tillwatch.detection.scanner import Plan
    from tillwatch.evaluation.evaluate import Evaluation
    from tillwatch.models.saved import Classifier, Prediction
    from tillwatch.training.runlog import RunLog

app = App(
    name="tillwatch",
    version=__version__,
    help="Train a video classifier on your own labelled CCTV clips, and see honestly how good it is.",
    help_format="plaintext",
    default_parameter=Parameter(negative_iterable=()),
    suppress_keyboard_interrupt=False,  # it would exit without a word; main says how to go on
)

_LONGEST_LINE = 3000  # characters of an error
_TO_END_S = 10.0  # after a signal; the next one ends what hangs

Engine = Annotated[
    Literal["auto", "torch", "openvino", "onnx"] | None,
    Parameter(help="What scores: auto takes the fastest that is held; torch, or the nearest to it, unless given."),
]
Precision = Annotated[Literal["fp32", "int8"] | None, Parameter(help="Of the engine; fp32 where it is held.")]
Workers = Annotated[int | None, Parameter(help="Processes; one per core but one, at most 4, unless given.")]


@app.command
def extract(
    src: Path,
    dst: Path,
    *,
    every: Whole = 1,
    fps: float | None = None,
    short_side: Whole = 256,
    quality: Whole = 92,
    roi: str | None = None,
    workers: Annotated[int | None, Parameter(help="Videos at a time; one per core unless given.")] = None,
) -> None:
    """Extract the frames of videos in class folders: SRC/<class>/<video> to DST/<class>/<video>/*.jpg.

    What is done already is skipped, so an interrupted extraction goes on where it was.

    Args:
        src: folder with one folder of videos for each class.
        dst: where the frames go; made if missing.
        every: keep every k-th frame.
        fps: keep frames at about this rate instead.
        short_side: shrink frames to this short side in pixels.
        quality: of the JPEGs, 1 to 95.
        roi: x,y,width,height of the part to keep, in fractions of the frame.
    """
    from tillwatch.clip_spec import FrameStep, Roi
    from tillwatch.data.extraction import extract as run_extraction
    from tillwatch.data.provenance import Extraction
    from tillwatch.evaluation.numbers import counted
    from tillwatch.training.runlog import RunLog

    settings = Extraction(
        step=FrameStep(every=every, fps=fps),
        short_side=short_side,
        quality=quality,
        roi=None if roi is None else Roi.parse(roi),
    )
    if workers is not None:
        _at_least_one("--workers", workers)
    log = RunLog()
    with log.progress("extracting") as on_clip:
        report = run_extraction(src, dst, settings, workers=workers or os.cpu_count() or 1, on_clip=on_clip)
    for note in report.notes:
        log.note(note)
    for skip in report.skipped:
        log.note(f"{skip.name} left out: {skip.reason}.")
    log.say(
        f"{counted(len(report.written), 'clip')} written to {dst}, {len(report.done_before)} there already, "
        f"{len(report.skipped)} left out"
    )


@app.command
def train(
    data: Path | None = None,
    *,
    out: Path | None = None,
    resume: Path | None = None,
    config: Annotated[Path | None, Parameter(help="YAML file of settings; flags override it.")] = None,
    settings: Annotated[TrainConfig, Parameter(name="*")] = TrainConfig(),  # noqa: B008
) -> None:
    """Train a classifier on class folders of clips, and measure it on clips held out.

    Args:
        data: folder with one folder of clips (frame folders or videos) for each class.
        out: the run folder to write.
        resume: the run folder of a training that was broken off, which goes on; no other argument is needed.
    """
    if data is None or (out is None and resume is None):
        raise ConfigError("give the data folder and --out RUN for a new run, or --resume RUN to go on with one.")
    if resume is not None and (out is not None or config is not None or settings.overwrite):
        raise ConfigError("--resume goes on with a run as it was begun; drop --out, --config and --overwrite.")
    run = out or resume
    assert run is not None
    if (code := _run_by_others(run, settings)) is not None:
        sys.exit(code)
    from tillwatch.training.devices import joined
    from tillwatch.training.loop import follow
    from tillwatch.training.loop import resume as resume_training
    from tillwatch.training.loop import train as run_training
    from tillwatch.training.runlog import RunLog

    log = RunLog()
    with joined(settings) as devices:
        if devices.rank:
            follow(devices)
            return
        if out is None:
            evaluation = resume_training(run, settings, data, log, devices=devices)
        else:
            evaluation = run_training(data, out, settings, log, devices=devices)
    if evaluation is None:
        log.say(f"nothing is left to do: the run in {run} is finished.")
        return
    _print_evaluation(evaluation)
    log.say(f"model, figures and predictions are in {run}")


@app.command
def crossval(
    data: Path,
    *,
    out: Path,
    folds: Whole = 5,
    repeats: Whole = 1,
    grouping: Literal["group", "random"] = "group",
    final: Annotated[bool, Parameter(negative=())] = False,
    config: Annotated[Path | None, Parameter(help="YAML file of settings; flags override it.")] = None,
    settings: Annotated[TrainConfig, Parameter(name="*")] = TrainConfig(),  # noqa: B008
) -> None:
    """Train once for each fold, so that every clip is scored by a model that has not seen it or its group.

    Started again, a broken-off cross-validation goes on with the folds that are whole.

    Args:
        data: folder with one folder of clips (frame folders or videos) for each class.
        out: where the folds and the figures go.
        folds: parts of the clips, each the test once.
        repeats: times the whole is done, with other folds and seeds.
        grouping: group keeps groups whole; random divides them, which leaks, to show the difference.
        final: also train a model on all clips, into OUT/final.
    """
    from tillwatch.training.cross_validation import Folds, cross_validate, mean_figures
    from tillwatch.training.runlog import RunLog

    log = RunLog()
    plan = Folds(folds=folds, repeats=repeats, grouping=grouping, final=final)
    result = cross_validate(data, out, settings, plan, log)
    print(f"\n{'':>12}  accuracy  balanced  event AUROC")
    lines = [(f"fold {number % folds + 1}", [metrics]) for number, metrics in enumerate(result.folds)]
    lines += [(f"repeat {number}", [metrics]) for number, metrics in enumerate(result.pooled, 1) if repeats > 1]
    lines.append(("mean" if repeats > 1 else "all clips", list(result.pooled)))
    table = [(name, mean_figures(several)) for name, several in lines]
    for name, row in (*table, *result.baselines.items()):
        values = list(row.values())[:3]
        print(f"{name:>12}" + "".join(f"  {'-' if v is None else format(v, '.3f'):>8}" for v in values))
    for line in result.summary.lines(None):
        print(line)
    for rival in result.rivals:
        print(f"ahead of {rival.name} by {rival.ahead['balanced_accuracy']} in balanced accuracy")
    for note in (*result.notes, *([result.verdict] if result.verdict else [])):
        log.note(note)
    log.say(f"every clip's score and the figures are in {out}")


@app.command
def tune(
    data: Path,
    *,
    out: Path,
    trials: Whole = 20,
    search: tuple[str, ...] = (),
    config: Annotated[Path | None, Parameter(help="YAML file of settings; flags override it.")] = None,
    settings: Annotated[TrainConfig, Parameter(name="*")] = TrainConfig(),  # noqa: B008
) -> None:
    """Search for settings with a low validation loss; the test clips take no part.

    Started again, it goes on where it was; started several times at once, the processes share the trials.

    Args:
        data: folder with one folder of clips (frame folders or videos) for each class.
        out: where the search is kept.
        trials: trainings in all; the first has the settings as given.
        search: NAME=LOW..HIGH or NAME=A,B,C, may be given often; lr=1e-5..1e-2, dropout=0..0.7 and batch_size=2,4,8
            unless given. NAME may be lr, dropout, batch_size, lr_patience, early_share, early_frames or early_pixels.
    """
    from tillwatch.training.runlog import RunLog
    from tillwatch.training.tune import tune as run_search

    log = RunLog()
    found = run_search(data, out, settings, trials, search, log)
    log.say(f"{found.trials} trials are done, {found.pruned} of them broken off early ({out / 'trials.csv'})")
    if found.params is None:
        raise RunError(f"no trial in {out} was finished; search other values, a lower lr first.")
    log.say(f"best is trial {found.best}, validation loss {found.val_loss:.4f} in epoch {found.epoch}:")
    for name, value in found.params.items():
        log.say(f"  {flag(name)} {value:g}")
    log.say(f"train with it: {found.command}")


@app.command
def audit(
    data: Path,
    *,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
    html: Path | None = None,
    classes: Names | None = None,
    event: Names | None = None,
    num_frames: Whole = 16,
    every: MaybeWhole = None,
    fps: float | None = None,
    short: Literal["repeat", "skip", "error"] = "repeat",
    groups: Literal["auto", "file", "pattern", "none"] = "auto",
    group_pattern: str | None = None,
    workers: Annotated[int | None, Parameter(help="Clips at a time; one per core unless given.")] = None,
) -> None:
    """Look for what spoils a data set: damage, copies, shared scenes, and cues that give the class away.

    Args:
        data: folder with one folder of clips (frame folders or videos) for each class.
        as_json: print JSON, as train writes it to RUN/audit.json.
        html: also write a page to this file.
        classes: class folders to use; all of them unless given.
        event: the classes worth an alarm.
        num_frames: that a clip should have, at least.
        every: take every k-th frame of the source.
        fps: take frames at about this rate instead.
        short: clips with fewer frames than that, as train treats them.
        groups: auto takes those given, else infers them; file, pattern and none insist.
        group_pattern: regular expression on a clip's name; what it matches is the clip's group.
    """
    from tillwatch.data.store import ClipStore, store_folder
    from tillwatch.files import write_text
    from tillwatch.training.auditing import audit_folder
    from tillwatch.training.runlog import RunLog

    _at_least_one("--num-frames", num_frames)
    if workers is not None:
        _at_least_one("--workers", workers)
    _check_page("--html", html)
    config = TrainConfig(
        classes=classes, event=event, every=every, fps=fps, short=short, groups=groups, group_pattern=group_pattern
    )
    log = RunLog()
    with log.progress("looking at clips") as on_clip:
        store = ClipStore(store_folder(None, data))
        audited = audit_folder(data, config, num_frames=num_frames, workers=workers or 0, store=store, on_clip=on_clip)
    report = audited.report
    if html is not None:
        write_text(html, report.page(f"Audit of {data}"))
    if as_json:
        print(json.dumps(report.to_json(), indent=2, ensure_ascii=False, allow_nan=False))
        return
    for note in (*audited.catalog.notes, *audited.notes):
        log.note(note)
    for line in report.lines():
        log.say(line)
    log.say(f"looked at {report.clips} clips in {audited.seconds:.1f} s" + (f"; a page is in {html}" if html else ""))


@app.command
def labels(run: Path, *, top: Whole = 20) -> None:
    """Rank the clips of a cross-validation by how little their label fits: the first are likely mislabelled.

    Args:
        run: what tillwatch crossval wrote.
        top: how many to print and show in labels.html.
    """
    from tillwatch.evaluation.wrong_labels import rank_labels

    _at_least_one("--top", top)
    suspects = rank_labels(run, top)
    for rank, suspect in enumerate(suspects[:top], start=1):
        doubt = "likely wrong" if suspect.issue else "unsure"
        print(f"{rank:>3}. {suspect.path}: looks like {suspect.likely} (label {suspect.quality:.3f}, {doubt})")
    print(f"all clips are in {run / 'labels.csv'}, pictures of these in {run / 'labels.html'}")


@app.command
def evaluate(
    run: Path,
    data: Path | None = None,
    *,
    split: Literal["test", "validation", "train", "all"] | None = None,
    batch_size: Whole = 4,
    workers: Workers = None,
    engine: Engine = None,
    precision: Precision = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Measure a run's model on its own clips or on others.

    Args:
        run: the run folder.
        data: class folders of other clips; the run's own unless given.
        split: which of the run's clips; those held out for the test unless given.
        batch_size: clips at a time.
        device: auto takes a GPU where there is one.
    """
    from tillwatch.evaluation.evaluate import evaluate_run
    from tillwatch.evaluation.publish import publish_or_say_why
    from tillwatch.models.saved import load_model
    from tillwatch.training.runlog import RunLog

    _at_least_one("--batch-size", batch_size)
    if run.is_file():
        raise RunError(f"{run} is a file; give the run folder.")
    classifier = load_model(run, device=device, engine=engine, precision=precision)
    _say_what_scores(classifier)
    with RunLog().progress("evaluating") as on_batch:
        evaluation = evaluate_run(
            run, classifier, data, split, batch_size=batch_size, workers=_workers(workers), on_batch=on_batch
        )
    _print_evaluation(evaluation)
    publish_or_say_why(evaluation.folder, _warn, classifier=classifier, clips=evaluation.scores.clips)
    print(f"figures, predictions and report.html are in {evaluation.folder}")


@app.command
def report(
    source: Path,
    *,
    out: Annotated[Path | None, Parameter(help="Where the page goes; into RUN, or beside the table, if none.")] = None,
    event: Names | None = None,
    threshold: float | None = None,
    normal_hours: float | None = None,
) -> None:
    """Write report.html of a run, of a cross-validation, or of any program's predictions.csv.

    Args:
        source: a run folder, or a table path,label,[group],[split],p_<class>,...
        event: the classes worth an alarm: a,b.
        threshold: event probability from which on a clip is an alarm, instead of the operating point.
        normal_hours: of footage that all normal clips of the run or table stand for.
    """
    from tillwatch.evaluation.evaluated import Told

    told = Told(event=event, threshold=threshold, normal_hours=normal_hours)
    _check_page("--out", out)
    if source.is_dir():
        from tillwatch.evaluation.publish import publish

        page = publish(source, out=out, told=told, note=_warn)
    else:
        from tillwatch.evaluation.report import report_table

        page = report_table(source, out, told)
    print(f"the report is in {page}")


@app.command
def compare(
    a: Path,
    b: Path,
    *,
    event: Names | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Compare two models on the same clips: figures of both, and their differences with intervals by group.

    Args:
        a: a run folder, what tillwatch crossval wrote, or any program's predictions.csv.
        b: another, of the same clips.
        event: the classes worth an alarm, where a table does not settle it: a,b.
        as_json: print JSON.
    """
    from tillwatch.evaluation.comparison import compare as compare_evaluated

    found = compare_evaluated(a, b, event)
    if as_json:
        print(json.dumps(found.to_json(), indent=2, ensure_ascii=False, allow_nan=False))
        return
    for line in found.lines():
        print(line)


@app.command
def runs(
    folder: Path,
    *,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
    html: Path | None = None,
) -> None:
    """Compare the runs in a folder: figures on held-out clips, best epochs, and the settings that differ.

    Runs that are not finished or cannot be read are named.

    Args:
        folder: it and all folders below are searched for runs.
        as_json: print JSON.
        html: also write a page with a table and a plot to this file.
    """
    from tillwatch.evaluation.runs import compare_runs
    from tillwatch.files import write_text

    _check_page("--html", html)
    found = compare_runs(folder)
    if html is not None:
        write_text(html, found.page())
    if as_json:
        print(json.dumps(found.to_json(), indent=2, ensure_ascii=False, allow_nan=False, default=str))
        return
    if found.compared:
        _print_table(found.rows())
    for run in found.others:
        print(f"{run.name}: {run.trouble}")
    for note in found.notes:
        print(f"note: {note}")
    if html is not None:
        print(f"table and plot are in {html}")


@app.command
def export(
    run: Path,
    *,
    to: Literal["onnx", "openvino"],
    int8: Annotated[bool, Parameter(negative=())] = False,
    out: Path | None = None,
    force: Annotated[bool, Parameter(negative=())] = False,
    workers: Workers = None,
) -> None:
    """Export a run's model to another engine, hold it against torch on the validation clips, and say how it differs.

    An export that differs by more than it may is refused: nothing is written.

    Args:
        run: the run folder.
        to: the engine.
        int8: weights and activations of eight bits, calibrated on the run's training clips.
        out: model folder that the export goes into; the run folder unless given.
        force: write it all the same; scan's auto never takes it.
    """
    from tillwatch.evaluation.exporting import export_run
    from tillwatch.training.runlog import RunLog

    log = RunLog()
    with log.progress("comparing with torch") as on_clip:
        done = export_run(run, to, int8=int8, out=out, force=force, workers=_workers(workers), on_clip=on_clip)
    for note in done.notes:
        log.note(note)
    for line in done.differences.lines():
        print(line)
    if not done.differences.passed:
        _warn(f"{done.held.name} differs from torch by more than it may; it was written because of --force.")
    print(f"{done.held.name}, {done.megabytes:.1f} MB, is in {done.folder}; its model.json says how it differs")


@app.command(usage="Usage: tillwatch predict [OPTIONS] MODEL PATH...")
def predict(
    model: Path,
    /,
    *paths: Path,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
    arch: str | None = None,
    classes: Names | None = None,
    event: Names | None = None,
    num_frames: MaybeWhole = None,
    every: Whole = 1,
    resize: MaybeWhole = None,
    crop: MaybeWhole = None,
    normalize: bool = True,
    engine: Engine = None,
    precision: Precision = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Score clips: videos, frame folders, or folders of them.

    Args:
        model: a run folder, a folder with model.json and model.pth or model.skops, or a bare .pth.
        paths: what to score.
        as_json: print JSON.
        arch: of a bare .pth.
        classes: of a bare .pth, in the order of its outputs.
        event: of a bare .pth, the classes worth an alarm.
        num_frames: of a bare .pth, as the next four, where training differed from the network's own.
        every: of a bare .pth: training took every k-th frame.
        resize: of a bare .pth.
        crop: of a bare .pth.
        normalize: of a bare .pth.
        device: auto takes a GPU where there is one.
    """
    from tillwatch.data.catalog import expand_paths
    from tillwatch.errors import ClipError
    from tillwatch.models.saved import Told, load_model

    if not paths:
        raise ConfigError("give at least one video or frame folder to predict.")
    told = Told(
        arch=arch,
        classes=classes,
        event=event,
        num_frames=num_frames,
        every=every,
        resize=resize,
        crop=crop,
        normalize=normalize,
    )
    classifier = load_model(model, told=told, device=device, engine=engine, precision=precision)
    _say_what_scores(classifier)
    for assumption in classifier.assumptions:
        _warn(assumption)
    records: list[dict[str, Any]] = []
    failed: list[str] = []
    for path in expand_paths(paths):
        try:
            prediction = classifier.predict(path)
        except ClipError as error:
            failed.append(one_line(error))
            records.append({"path": str(path), "error": one_line(error)})
            continue
        records.append(_prediction_record(path, prediction))
        if not as_json:
            _print_prediction(path, prediction)
    if len(failed) == len(records) == 1:
        raise ClipError(failed[0])
    if as_json:
        print(json.dumps(records, indent=2, ensure_ascii=False))
    for reason in failed:
        _warn(f"left out: {reason}")
    if len(failed) == len(records):
        raise ClipError(f"none of {len(records)} clips could be scored.")


@app.command
def cut(
    footage: Path,
    events: Path,
    dst: Path,
    *,
    label: str | None = None,
    normal: str = "normal",
    normals_per_event: Whole = 1,
    margin: float = 5.0,
    seed: Whole = 0,
) -> None:
    """Cut clips to train on out of hours of footage: the events, and normal clips of like length between them.

    Exit code 0: all was cut; 3: some was left out, each named; 2: nothing could be.

    Args:
        footage: a video, or a folder that is searched for videos.
        events: table file,start,end,label of the events; times in seconds or h:mm:ss of the file.
        dst: where the class folders and clips.csv go; made if missing, must be empty.
        label: class of events whose row names none.
        normal: class of the clips between events.
        normals_per_event: how many of them for each event.
        margin: seconds before and after each event that no normal clip may show.
        seed: of where normal clips lie.
    """
    from tillwatch.detection.cutting import CutSettings
    from tillwatch.detection.cutting import cut as run_cut
    from tillwatch.training.runlog import RunLog

    settings = CutSettings(label=label, normal=normal, normals_per_event=normals_per_event, margin_s=margin, seed=seed)
    with sigterm_exits(), RunLog().progress("cutting files") as on_file:
        report = run_cut(footage, events, dst, settings, on_file)
    for file, reason in report.left_out:
        _warn(f"{file} left out: {reason}.")
    for note in report.notes:
        _warn(f"{note}.")
    if report.missing:
        _warn(f"there was no room for {report.missing} normal clips: fewer --normals-per-event, or more footage.")
    counted = ", ".join(f"{count} of {name}" for name, count in report.clips.items())
    print(f"clips cut: {counted}; they and clips.csv are in {dst}")
    if report.left_out:
        sys.exit(3)


@app.command(usage="Usage: tillwatch scan [OPTIONS] RUN VIDEO... --out DIR")
def scan(
    run: Path,
    /,
    *videos: Path,
    out: Path,
    threshold: float | None = None,
    settings: Annotated[ScanConfig, Parameter(name="*")] = ScanConfig(),  # noqa: B008
    negatives: Annotated[NegativesConfig, Parameter(name="*")] = NegativesConfig(),  # noqa: B008
) -> None:
    """Find the event in hours of footage: scores of every window, and incidents.

    Started again, a scan that was broken off goes on where it was. Exit code 0: all files were scanned; 3: some were
    left out, each named; 2: none could be, or something in the command is wrong.

    Args:
        run: a run folder, or a folder with model.json and model.pth or model.skops.
        videos: files, and folders that are searched for videos.
        out: folder for scores.csv, incidents.csv, incidents.jsonl, scan.json and timeline.html.
        threshold: event score that starts an incident; the model's operating point unless given.
    """
    from tillwatch.detection.negatives import prepare_negatives
    from tillwatch.detection.results import timecode
    from tillwatch.detection.scanner import plan_scan
    from tillwatch.evaluation.numbers import counted, readable_hours
    from tillwatch.training.runlog import RunLog

    log = RunLog()
    plan = plan_scan(run, videos, settings, threshold)
    keep = prepare_negatives(negatives, plan.classifier.spec, [source.file for source in plan.sources])
    for note in plan.notes:
        log.note(note)
    log.say(f"scoring with {plan.classifier.held.name}")
    if threshold is None and plan.classifier.operating_point.unit == "clip":
        log.note(
            f"the threshold {plan.rule.threshold:.4g} was chosen on clips, and is none for incidents: how many false "
            "alarms an hour it gives in footage is not known. Choose one with tillwatch calibrate, or look at "
            "timeline.html and set --threshold."
        )
    done, found = _run_scan(plan, out, settings, log)
    for recording, incident in found:
        print(
            f"{recording.camera} {recording.file} {'+'.join(incident.regions)}: {incident.label} "
            f"{timecode(incident.start_s)} to {timecode(incident.end_s)}, peak {incident.peak:.3f}"
        )
    skipped = f", {done.gated} skipped because nothing moves in them" if done.gate == "auto" else ""
    print(
        f"{counted(len(found), 'incident')} in {readable_hours(done.hours)} of "
        f"{counted(len(done.recordings), 'file')}, {counted(done.windows, 'window')} scored{skipped}; "
        f"{counted(len(done.left_out), 'file')} left out; all is in {out}"
    )
    uncut = [] if keep is None else _keep_negatives(keep, done, log)
    if done.left_out or uncut:
        sys.exit(3)


@app.command(usage="Usage: tillwatch calibrate [OPTIONS] RUN VIDEO... --truth TRUTH.csv --out DIR")
def calibrate(
    run: Path,
    /,
    *videos: Path,
    truth: Path,
    out: Path,
    max_false_alarms_per_hour: float | None = None,
    min_recall: float | None = None,
    settings: Annotated[ScanConfig, Parameter(name="*")] = ScanConfig(),  # noqa: B008
) -> None:
    """Choose the model's threshold on incidents and hours of footage, and write it into RUN/model.json.

    The footage must be none that the model was trained on. With neither budget nor recall, the best F1 of incidents.

    Args:
        run: a run folder, or a folder with model.json and model.pth or model.skops.
        videos: files, and folders that are searched for videos.
        truth: table file,start,end,[region],[label] of all events in them; times in seconds or h:mm:ss of the file.
        out: folder of the scan that is made of them, as tillwatch scan makes it.
        max_false_alarms_per_hour: the most events found within this budget.
        min_recall: the fewest false alarms at this recall or more.
    """
    from tillwatch.detection.calibration import Goal, choose_point
    from tillwatch.detection.results import events_of_scan, read_events, with_known_files
    from tillwatch.detection.scanner import plan_scan, settings_of
    from tillwatch.models.saved import OperatingPoint, write_operating_point
    from tillwatch.training.runlog import RunLog

    goal = Goal(max_false_alarms_per_hour=max_false_alarms_per_hour, min_recall=min_recall)
    log = RunLog()
    plan = plan_scan(run, videos, settings)
    events = with_known_files(read_events(truth), [source.file for source in plan.sources], str(truth))
    done, _ = _run_scan(plan, out, settings, log)
    events, notes = events_of_scan(done, events, str(truth))
    choice = choose_point(done, events, goal)
    write_operating_point(
        run,
        OperatingPoint(threshold=choice.threshold, unit="incident", source=choice.source, holds_for=settings_of(plan)),
    )
    for note in notes:
        log.note(note)
    print(f"threshold {choice.threshold:.4g}: {choice.source}; written to {run / 'model.json'}")
    if done.left_out:
        sys.exit(3)


@app.command
def evidence(
    scan: Path,
    *,
    out: Path,
    around: float = 5.0,
    annotate: Annotated[bool, Parameter(negative=())] = False,
    blur: Literal["none", "outside-roi", "people"] = "none",
) -> None:
    """Collect a clip of each incident, cut from the original without encoding it anew, filmstrips, and hashes of all.

    Exit code 0: all is there; 3: some clips or videos could not be made, each named; 2: something is wrong.

    Args:
        scan: folder that tillwatch scan wrote.
        out: where clips and manifest.json go; made if missing, must be empty.
        around: seconds before and after each incident that its clip shows too.
        annotate: make a video of each incident, too, that shows region, score and label; encoded anew (H.264).
        blur: what is made unrecognisable in that video: all outside the regions, or what moves, as people do (no
            guarantee). Clip and filmstrip stay as recorded.
    """
    from tillwatch.detection.blurring import CAVEATS
    from tillwatch.detection.evidence import collect
    from tillwatch.evaluation.numbers import counted
    from tillwatch.training.runlog import RunLog

    with RunLog().progress("cutting clips") as on_incident:
        collected = collect(scan, out, around_s=around, annotated=annotate, blur=blur, on_incident=on_incident)
    for note in collected.notes:
        _warn(f"{note}.")
    for what, reason in collected.left_out:
        _warn(f"no {what}: {reason}")
    videos = f"{counted(collected.annotated, 'annotated video')}, " if annotate else ""
    print(
        f"{counted(collected.clips, 'clip')}, {counted(collected.filmstrips, 'filmstrip')}, {videos}"
        f"the scan's tables and manifest.json are in {out}"
    )
    if blur != "none":
        print(f"the annotated videos alone are blurred: {CAVEATS[blur]}")
    if collected.left_out:
        sys.exit(3)


@app.command
def verify(folder: Path) -> None:
    """Check that nothing in a folder of evidence has changed since it was collected, nor the originals that are there.

    Exit code 0: all is as it was; 2: something is not, each named.

    Args:
        folder: that tillwatch evidence wrote.
    """
    from tillwatch.detection.evidence import verify as find_changes

    verified = find_changes(folder)
    for change in verified.changes:
        print(change)
    for original in verified.not_there:
        print(f"not held against the original {original}, which is not there")
    if verified.changes:
        raise RunError(f"{folder} is not what was collected: {len(verified.changes)} of its files differ.")
    print(f"{folder} is as it was collected")


@app.command
def prune_evidence(
    *folders: Path,
    retention_days: Whole,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Delete evidence that was collected so many days ago or more: what its manifest names, and nothing else.

    Each file deleted is listed. Exit code 0: all that was old enough is gone; 3: something stays, each named.

    Args:
        folders: that tillwatch evidence wrote, or folders of such folders.
        retention_days: how many days evidence is kept, from the day it was collected.
        dry_run: list what would be deleted, and delete nothing.
    """
    from tillwatch.detection.retention import prune
    from tillwatch.evaluation.numbers import counted

    pruned = prune(folders, retention_days, now=datetime.now(UTC), dry_run=dry_run)
    for path in pruned.deleted:
        print(path)
    for path, reason in pruned.staying:
        _warn(f"{path} stays: {reason}.")
    would = "would be deleted" if dry_run else "deleted"
    old = f"{counted(len(pruned.deleted), 'file')} of {counted(pruned.old, 'folder')}"
    print(f"{old} {would}; {counted(pruned.kept, 'folder')} kept")
    if pruned.staying:
        sys.exit(3)


@app.command
def score(
    incidents: Path,
    truth: Path,
    *,
    hours: float | None = None,
    tolerance: float = 0.0,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Measure incidents against what really happened: recall, false alarms per camera-hour, delay, a curve.

    Args:
        incidents: incidents.csv of a scan, or any table file,start_s,end_s,[region],[alert_s],[peak].
        truth: table file,start,end,[region],[label] of the events; times in seconds or h:mm:ss of the file.
        hours: of camera footage looked at, where no scan.json beside the incidents tells.
        tolerance: seconds that an event is taken to begin earlier and to end later.
        as_json: print JSON.
    """
    from tillwatch.detection.results import INCIDENTS_CSV, score_tables

    if hours is not None and not 0 < hours < float("inf"):
        raise ConfigError(f"--hours is {hours}; it must be a positive number.")
    if not 0 <= tolerance < float("inf"):
        raise ConfigError(f"--tolerance is {tolerance}; it must be a number of seconds, at least 0.")
    table = incidents / INCIDENTS_CSV if incidents.is_dir() else incidents
    found, notes = score_tables(table, truth, hours=hours, tolerance_s=tolerance)
    if as_json:
        print(json.dumps({**found.to_json(), "notes": notes}, indent=2, ensure_ascii=False, allow_nan=False))
        return
    for line in found.lines():
        print(line)
    for note in notes:
        print(f"note: {note}")


cache = App(name="cache", help="Look at, check and shrink the store of decoded clips.")
app.command(cache)

CacheFolder = Annotated[
    Path | None, Parameter(help="Where the clips are; the user's cache folder, or $TILLWATCH_CACHE, unless given.")
]


@cache.command(name="list")
def cache_list(*, cache_folder: CacheFolder = None) -> None:
    """Print what is kept: a line for each data folder and way of reading, the last used first."""
    store = _open_store(cache_folder)
    lots: dict[tuple[str, str], list[Entry]] = {}
    for entry in store.entries():
        root = str(Path(entry.source).parent.parent) if entry.source else "damaged entries"
        lots.setdefault((root, entry.what), []).append(entry)
    for (root, what), entries in sorted(lots.items(), key=lambda lot: -max(entry.used for entry in lot[1])):
        used = datetime.fromtimestamp(max(entry.used for entry in entries)).strftime("%Y-%m-%d %H:%M")
        print(f"{root}: {what}, {_clips_and_size(entries)}, last used {used}")
    everything = [entry for entries in lots.values() for entry in entries]
    print(f"{store.folder}: {_clips_and_size(everything)}")


@cache.command(name="verify")
def cache_verify(*, cache_folder: CacheFolder = None) -> None:
    """Read every kept clip whole, and remove the damaged ones: they are decoded anew when they are wanted."""
    from tillwatch.evaluation.numbers import counted

    store = _open_store(cache_folder)
    count, damaged = store.verify()
    for entry in damaged:
        _warn(f"{entry.path} removed: {entry.damage} (of {entry.source or 'an unknown clip'})")
    print(f"{store.folder}: {counted(count, 'clip')} read, {len(damaged)} of them damaged and removed")


@cache.command(name="prune")
def cache_prune(*, max_size: str, cache_folder: CacheFolder = None) -> None:
    """Remove kept clips, those not wanted for longest first, until the rest fit.

    Args:
        max_size: what may stay, such as 5GB, 500MB or 0.
    """
    store = _open_store(cache_folder)
    removed = store.prune(_bytes("--max-size", max_size))
    print(f"{store.folder}: removed {_clips_and_size(removed)}, kept {_clips_and_size(list(store.entries()))}")


@app.command
def doctor(*, arch: str = "r2plus1d_18", num_frames: Whole = 16, crop: Whole = 112) -> None:
    """Name the devices, decoders and engines that work here, and how fast each engine scores a window.

    Args:
        arch: the network that speeds are measured with.
        num_frames: of a window.
        crop: pixels each way.
    """
    from tillwatch.doctor import examine
    from tillwatch.models.architectures import check_input_size

    _at_least_one("--num-frames", num_frames)
    _at_least_one("--crop", crop)
    check_input_size(arch, num_frames, (crop, crop))
    for finding in examine(arch, num_frames, crop):
        print(f"{finding.kind:<8} {finding.name:<14} {'yes' if finding.works else 'no':<4} {finding.says}", flush=True)


@app.command
def demo(
    *,
    out: Path = Path("tillwatch-demo"),
    seed: Whole = 0,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Render till-camera videos, train on some cameras, test on others: the whole main job in minutes.

    Args:
        out: where videos, frames and the run go.
        seed: of the rendered videos and of training.
        overwrite: replace an older demo.
    """
    from tillwatch.demo import run_demo

    if seed < 0:
        raise ConfigError(f"--seed is {seed}; it must be at least 0.")
    run_demo(out, seed, overwrite)


def main(tokens: Iterable[str] | None = None) -> NoReturn:
    """Runs the command line; errors raised on purpose become one line on standard error and exit code 2."""
    global _is_whole_command
    _is_whole_command = tokens is None
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name must not end what tells it
    try:
        code = 0
        words = list(sys.argv[1:] if tokens is None else tokens)
        if told := [readable(word) for word in words if readable(word) != word]:
            raise ConfigError(f"{told[0]} is not Unicode (UTF-8); rename it, or give it by another name.")
        app(
            words,
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
    except TillwatchError as error:
        _fail(one_line(error))
    except cyclopts.CycloptsError as error:
        error.verbose = False
        _fail(one_line(error))
    except BrokenPipeError:  # the reader of our output has left, as `| head` does
        to_nobody(sys.stdout)
        sys.exit(141)
    except MemoryError as error:
        _fail(f"out of memory ({one_line(error)}); try fewer --num-frames or a smaller --batch-size.")
    except UnicodeEncodeError as error:  # a name found somewhere below
        _fail(f"a name is not Unicode (UTF-8): {readable(str(error.object)[-100:])}; rename it.")
    except OSError as error:  # a disk that fills up, a folder taken away: the last net
        _fail(f"the file system refused: {one_line(error)}.")
    except Interrupted as stopped:
        _end_in_peace()
        _tell(f"tillwatch: {one_line(stopped)}")
        code = 128 + stopped.signum
    except KeyboardInterrupt:
        _end_in_peace()
        _tell("tillwatch: interrupted")
        code = 130
    if code:
        # Frees the step that was left, out here where no error holds it: the interpreter's end would be too late.
        gc.collect()
    sys.exit(code)


def _end_in_peace() -> None:
    """Lets no further signal break into what is left to do after one: it would end in a traceback."""
    if _is_whole_command:
        ignore_signals(_TO_END_S)


def _run_by_others(run: Path, settings: TrainConfig) -> int | None:
    """Runs this command once for each device, where several are wanted and it has not been; returns the exit code."""
    from tillwatch.training.launch import launch, standing

    if settings.devices * settings.num_nodes == 1 or standing() is not None or not _is_whole_command:
        return None
    return launch(settings.devices, settings.num_nodes, run)


def _run_scan(
    plan: Plan, out: Path, settings: ScanConfig, log: RunLog
) -> tuple[Scan, list[tuple[Recording, Incident]]]:
    from tillwatch.detection.scanner import Listener
    from tillwatch.detection.scanner import scan as run_scan
    from tillwatch.evaluation.numbers import counted

    with log.progress(f"scanning {counted(len(plan.sources), 'file')} (seconds)") as on_progress:
        listener = Listener(
            progress=lambda done, total: on_progress(int(done), int(total)),
            ended=lambda file, seconds, windows, notes: log.say(
                f"{file}: {seconds:.1f} s, {counted(windows, 'window')}" + "".join(f"; {note}" for note in notes)
            ),
            left_out=lambda file, reason: _warn(f"{file} left out: {reason}."),
        )
        return run_scan(plan, out, overwrite=settings.overwrite, listener=listener)


def _keep_negatives(keep: Negatives, done: Scan, log: RunLog) -> Sequence[tuple[str, str]]:
    from tillwatch.detection.negatives import keep_negatives

    with log.progress("cutting false alarms") as on_file:
        kept = keep_negatives(keep, done, on_file)
    for file, reason in kept.left_out:
        _warn(f"{file} left out: {reason}.")
    print("; ".join(kept.lines(keep)))
    return kept.left_out


def _apply_config_file(app: App, commands: tuple[str, ...], arguments: Any) -> None:
    """Gives arguments that no flag set the values of ``--config``, then those of the recipe."""
    if not {"train", "crossval", "tune"} & set(commands):
        return
    known = {field: flag(field) for field in ("data", "out", *TrainConfig.__dataclass_fields__)}
    path, resumed = _given(arguments, "--config"), _given(arguments, "--resume")
    if resumed is not None and path is None:
        path = str(Path(resumed) / "config.yaml")
        if not Path(path).is_file():
            raise RunError(f"--resume {resumed} holds no run to go on with: there is no {path}.")
    if path is not None:
        values = dict(read_yaml(Path(path)))
        if resumed is not None:
            values.pop("out", None)  # as it was seen from another folder, perhaps
        for key in values:
            if key.replace("-", "_") not in known:
                raise ConfigError(f"--config {path} has the unknown key {key!r}.{did_you_mean(key, known)}")
            if "-" in key and key.replace("-", "_") in values:
                raise ConfigError(f"--config {path} has both {key!r} and {key.replace('-', '_')!r}; keep one.")
        _fill(app, arguments, {key.replace("_", "-"): value for key, value in values.items()}, path)
    recipe = _given(arguments, "--recipe")
    if recipe in RECIPES:
        values = {flag(key).removeprefix("--"): value for key, value in RECIPES[recipe].items()}
        if _given(arguments, "--fps") is not None:
            values.pop("every", None)  # the two exclude each other, and only one was asked for
        _fill(app, arguments, values, f"recipe {recipe}")


def _given(arguments: Any, name: str) -> str | None:
    for argument in arguments:
        if name in argument.names and argument.tokens:
            return str(argument.tokens[-1].value)
    return None


def _fill(app: App, arguments: Any, values: dict[str, Any], source: str) -> None:
    plain = {key: value for key, value in values.items() if value is not None}
    update_argument_collection(plain, source, arguments, app.app_stack.stack[-1], root_keys=(), allow_unknown=False)


app.config = (_apply_config_file,)

#: Whether this process was started to run the command line, so that more like it can be.
_is_whole_command = False


def _say_what_scores(classifier: Classifier) -> None:
    """Says what a user may not expect of the engine that scores, and of the threshold."""
    for note in classifier.notes:
        _warn(note)
    if classifier.held.precision != "fp32":
        _warn(f"these scores are those of {classifier.held.name}, not of the network in fp32.")
    if classifier.operating_point.unit == "incident":
        threshold = f"the threshold {classifier.operating_point.threshold:.4g}"
        _warn(f"{threshold} was chosen on incidents in footage, and is none for clips.")


def _print_evaluation(evaluation: Evaluation) -> None:
    for note in evaluation.notes:
        print(f"note: {note}")
    metrics = evaluation.metrics
    print(f"\n{len(evaluation.scores.clips)} clips, split {evaluation.split}:\n\n{metrics.report_text}")
    for line in evaluation.summary.lines(evaluation.threshold):
        print(line)
    for skip in evaluation.scores.skipped:
        print(f"note: {skip.name} left out: {skip.reason}.")


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in rows[0]:
        table.add_column(Text(name), overflow="fold")
    for row in rows[1:]:
        table.add_row(*map(Text, row))  # names may hold what rich would take for markup
    terminal = sys.stdout.isatty()
    Console(width=None if terminal else 240, highlight=False).print(table)


def _prediction_record(path: Path, prediction: Prediction) -> dict[str, Any]:
    return {
        "path": str(path),
        "predicted": prediction.predicted,
        "probabilities": prediction.probabilities,
        "event_probability": prediction.event_probability,
        "is_event": prediction.is_event,
        "warnings": list(prediction.warnings),
    }


def _print_prediction(path: Path, prediction: Prediction) -> None:
    scores = ", ".join(f"{name} {p:.4f}" for name, p in prediction.probabilities.items())
    print(f"{path}: {prediction.predicted} ({scores}){'  EVENT' if prediction.is_event else ''}")
    for warning in prediction.warnings:
        _warn(f"{path}: {warning}")


def _open_store(folder: Path | None) -> ClipStore:
    from tillwatch.data.store import ENVIRONMENT_VARIABLE, ClipStore, default_store_folder

    if folder is not None and not folder.is_dir():
        raise ConfigError(f"--cache-folder {folder} is not a folder.")
    folder = folder or default_store_folder()
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    if not existing.is_dir():
        raise ConfigError(f"{existing} is not a folder; name another with ${ENVIRONMENT_VARIABLE} or --cache-folder.")
    return ClipStore(folder)


def _clips_and_size(entries: Sequence[Entry]) -> str:
    from tillwatch.evaluation.numbers import counted

    return f"{counted(len(entries), 'clip')}, {sum(entry.bytes for entry in entries) / 1e9:.3f} GB"


def _bytes(name: str, text: str) -> int:
    """Reads 5GB, 500 MB, 100kB or a bare number of bytes; units are powers of ten, as in what is printed."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)\s*([kmgt]?)b?", text.strip(), re.IGNORECASE)
    if match is None:
        raise ConfigError(f"{name} is {text!r}; it must be a size such as 5GB, 500MB or 0.")
    return int(float(match[1]) * 1000 ** " kmgt".index(match[2].lower() or " "))


def _workers(workers: int | None) -> int:
    if workers is not None and workers < 0:
        raise ConfigError(f"--workers is {workers}; it must be at least 0.")
    return default_workers() if workers is None else workers


def _check_page(flag: str, page: Path | None) -> None:
    """Refuses to put a page where there can be none, or where a user has something else."""
    from tillwatch.files import is_page

    if page is None:
        return
    if page.is_dir() or not page.parent.is_dir():
        raise ConfigError(f"{flag} {page} must be a file in a folder that exists.")
    if page.is_file() and not is_page(page):
        raise ConfigError(f"{flag} {page} is a file that is no page, and would be lost; give another.")


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"{name} is {value}; it must be at least 1.")


def _warn(line: str) -> None:
    print(f"tillwatch: warning: {line}", file=sys.stderr)


def _fail(line: str) -> NoReturn:
    if len(line) > _LONGEST_LINE:  # a setting of a thousand words, quoted
        line = f"{line[: _LONGEST_LINE // 2]} ... {line[-_LONGEST_LINE // 2 :]}"
    _tell(f"tillwatch: error: {line}")
    sys.exit(2)


def _tell(line: str) -> None:
    """Prints a last line on standard error, if anybody is there to read it."""
    with suppress(OSError):
        print(line, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # or the interpreter would fail of it at its end, with a code of its own
            to_nobody(stream)
