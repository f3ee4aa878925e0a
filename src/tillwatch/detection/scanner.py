"""A scan: planned, carried out in one process or several, resumable, the same whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fractions import Fraction
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from tillwatch.clip_spec import ClipSpec
from tillwatch.config import ScanConfig
from tillwatch.data.catalog import count_and_names
from tillwatch.data.playback import header_created, header_seconds
from tillwatch.data.recordings import recorded
from tillwatch.data.video import READING
from tillwatch.detection.batches import (
    BATCH_SIZE,
    SHARE_SIZE,
    Ended,
    LeftOut,
    Scored,
    Way,
    Work,
    score_shares,
    shares_of,
)
from tillwatch.detection.cameras import (
    TRAINED,
    WHOLE,
    Regions,
    Source,
    find_sources,
    idle_cameras,
    parse_regions,
    read_cameras,
)
from tillwatch.detection.incidents import Incident, Rule
from tillwatch.detection.journal import JOURNAL, Journal
from tillwatch.detection.results import INCIDENTS_CSV, SCAN_JSON, SCORES_CSV, Recording, Scan, write_scan
from tillwatch.detection.timeline import TIMELINE_HTML, write_timeline
from tillwatch.detection.windows import Grid, seconds_exactly
from tillwatch.detection.workers import score_in_processes
from tillwatch.errors import ConfigError, DataError, RunError, one_line
from tillwatch.models.saved import Classifier, load_model

_FILES, _STATES = "set of files or regions", "state of its files"  # in the journal's head
_FAR_OUTSIDE = 2.0  # times shorter or longer than any training clip
_NEVER_SET = 1980  # a clock that shows such a year, or one before


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Who is told how a scan goes.

    Attributes:
        progress: called with (seconds scanned, seconds in all) of footage.
        ended: called with (file, its seconds, its windows, notes) when one is done.
        left_out: called with (file, reason).
    """

    progress: Callable[[float, float], None] = lambda done, total: None
    ended: Callable[[str, float, int, Sequence[str]], None] = lambda file, seconds, windows, notes: None
    left_out: Callable[[str, str], None] = lambda file, reason: None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is scanned with what: all that can be wrong is found before any of it begins.

    Attributes:
        classifier: the model.
        load: reads it again, in another process.
        model: the path that it was read from.
        sources: what to scan, in order.
        grid: where windows lie.
        rule: what makes an incident.
        rule_source: where its threshold comes from, in words.
        gate: "auto" skips windows in which nothing moves, "off" scores all.
        workers: processes that files are divided over.
        notes: sentences a user should read.
    """

    classifier: Classifier
    load: Callable[[], Classifier]
    model: str
    sources: Sequence[Source]
    grid: Grid
    rule: Rule
    rule_source: str
    gate: Literal["auto", "off"] = "off"
    workers: int = 1
    notes: Sequence[str] = ()


def plan_scan(run: Path, videos: Sequence[Path], config: ScanConfig, threshold: float | None = None) -> Plan:
    """Reads the model and finds the videos.

    Args:
        run: folder of the model.
        videos: files, and folders of them.
        config: how to scan.
        threshold: of incidents; None takes the model's operating point.

    Raises:
        ConfigError, DataError, ModelError, RunError: if a setting, a file or the model is wrong.
    """
    if not videos:
        raise ConfigError("give at least one video or folder of videos.")
    if threshold is not None and not 0 < threshold <= 1:  # a model's own may be beyond: all windows, or none
        raise ConfigError(f"--threshold is {threshold:g}; it must be over 0 and at most 1.")
    regions = parse_regions(config.roi)
    cameras = [] if config.cameras is None else read_cameras(config.cameras)
    if run.is_file():
        raise RunError(f"{run} is a file; give the run folder.")
    load = partial(
        load_model, run, device=config.device, engine=config.engine, precision=config.precision, fastest=True
    )
    classifier = load()
    spec, point = classifier.spec, classifier.operating_point
    grid = choose_grid(spec, config.window, config.stride)
    rule = Rule(
        threshold=point.threshold if threshold is None else threshold,
        release=config.release,
        smoothing=config.smoothing,
        min_seconds=config.min_seconds,
        merge_gap=float(grid.length) if config.merge_gap is None else config.merge_gap,
    )
    default: Regions = {WHOLE: None} if spec.roi is None else {TRAINED: spec.roi}
    sources = find_sources(videos, regions or default, cameras)
    notes = [*classifier.notes, *([] if (note := length_note(spec, grid.length)) is None else [note])]
    if idle := idle_cameras(cameras, sources):
        notes.append(f"--cameras {config.cameras}: {count_and_names(idle)} of its cameras take none of the files.")
    plan = Plan(
        classifier=classifier,
        load=load,
        model=str(run),
        sources=sources,
        grid=grid,
        rule=rule,
        rule_source=f"{point.source} ({point.unit}s)" if threshold is None else "given as --threshold",
        gate=config.gate,
        workers=config.workers,
        notes=notes,
    )
    if threshold is None and point.holds_for is not None and (others := _others(point.holds_for, settings_of(plan))):
        other = (
            f"the threshold {point.threshold:.4g} was chosen with {', '.join(others)}, and may mean little otherwise."
        )
        return replace(plan, notes=[*notes, other])
    return plan


def settings_of(plan: Plan) -> dict[str, float | str]:
    """Returns what a threshold of incidents depends on, beside the model: by flag, as ``OperatingPoint.holds_for``."""
    rule = plan.rule
    return {
        "--window": float(plan.grid.length),
        "--stride": float(plan.grid.stride),
        "--release": rule.release,
        "--smoothing": rule.smoothing,
        "--min-seconds": rule.min_seconds,
        "--merge-gap": rule.merge_gap,
        "--gate": plan.gate,
        "engine": plan.classifier.held.name,
    }


def _others(then: Mapping[str, float | str], now: Mapping[str, float | str]) -> list[str]:
    """Returns those of then that are others now, in words."""

    def told(value: float | str) -> str:
        return value if isinstance(value, str) else f"{value:.4g}"

    return [
        f"{name} {told(value)} (now {told(now[name])})"
        for name, value in then.items()
        if name in now and told(value) != told(now[name])
    ]


def choose_grid(spec: ClipSpec, window: float | None = None, stride: float | None = None) -> Grid:
    """Returns where windows lie: as long as the training clips in the median, every half of it, unless told.

    The median to the millisecond, so that tables hold the very times at which windows begin and end.

    Args:
        spec: of the model.
        window, stride: seconds, None for the default.

    Raises:
        ConfigError: if the model does not tell how long its clips were, or a number makes no sense.
    """
    for flag, seconds in (("--window", window), ("--stride", stride)):
        if seconds is not None and not isfinite(seconds):
            raise ConfigError(f"{flag} is {seconds}; it must be a number of seconds.")
    if window is None and spec.clip_seconds is None:
        raise ConfigError("the model does not tell how long its training clips were; say it with --window SECONDS.")
    if window is None and spec.clip_seconds is not None:
        window = max(0.001, round(spec.clip_seconds.median, 3))
    length = seconds_exactly(window or 0.0)
    return Grid(length=length, stride=length / 2 if stride is None else seconds_exactly(stride))


def length_note(spec: ClipSpec, length: Fraction) -> str | None:
    """Returns a sentence if windows are far shorter or longer than any training clip; None otherwise."""
    clips = spec.clip_seconds
    if clips is None or clips.min / _FAR_OUTSIDE <= length <= clips.max * _FAR_OUTSIDE:
        return None
    return (
        f"windows last {float(length):.3g} s, training clips lasted {clips.min:.3g} to {clips.max:.3g}: "
        "the model has seen nothing like it, so the scores mean little."
    )


def scan(
    plan: Plan, out: Path, *, overwrite: bool = False, listener: Listener | None = None
) -> tuple[Scan, list[tuple[Recording, Incident]]]:
    """Scores every window of recordings and writes what was found.

    What is done stands in ``out/journal.jsonl``; started again, a scan that was killed goes on behind it. Batches are
    of windows in the order of files, times and regions, across the files of a share, and so are the same however often
    it is killed and whichever process takes the share.
    A finished scan is not read again: another rule alone costs seconds.

    Args:
        plan: what is scanned with what.
        out: folder of the scan; made if missing.
        overwrite: replace another scan in ``out``.
        listener: is told how it goes.

    Raises:
        RunError: if ``out`` holds something else, another process scans into it, or it cannot be written.
        DataError: if no file can be scanned; the reasons stand in it.
        ModelError: if the scores are not finite, or the model has changed meanwhile.
    """
    listener = listener or Listener()
    _claim(out)
    head = _head(plan)
    with closing(Journal(out, head, len(plan.sources), anew=overwrite)) as journal:
        if overwrite:
            _remove_results(out)
        for source, progress in zip(plan.sources, journal.files, strict=True):
            if progress.finished and progress.left_out is not None:  # said before, and to be said again
                listener.left_out(source.file, progress.left_out)
        _score_windows(plan, journal, listener)
        done = _scan_of(plan, journal, head)
        if not done.recordings:
            (out / JOURNAL).unlink(missing_ok=True)  # nothing to go on with
            with suppress(OSError):  # it holds something else
                out.rmdir()
            raise DataError(f"none of {len(plan.sources)} files could be scanned: {_reasons(done)}.")
        try:
            found = write_scan(out, done)
            write_timeline(out, done, found)
        except OSError as error:
            raise RunError(f"{out} cannot be written ({error.strerror or one_line(error)}).") from None
    return done, found


def _score_windows(plan: Plan, journal: Journal, listener: Listener) -> None:
    seconds = [header_seconds(source.path) for source in plan.sources]
    left = [
        None if progress.finished else Work(file=file, source=source, done=len(progress.scores))
        for file, (source, progress) in enumerate(zip(plan.sources, journal.files, strict=True))
    ]
    divided = [
        [work for file in share if (work := left[file]) is not None]
        for share in shares_of(plan.sources, seconds, plan.grid)
    ]
    shares = [share for share in divided if share]
    way = Way(grid=plan.grid, gate=plan.gate)
    if plan.workers > 1 and len(shares) > 1:
        events = score_in_processes(plan.load, plan.classifier.sha256, shares, way, plan.workers)
    else:
        events = score_shares(plan.classifier, shares, way)
    reached = [0.0 if work is not None else length for work, length in zip(left, seconds, strict=True)]
    with closing(events):
        for event in events:
            match event:
                case Scored(rows=rows):
                    journal.scored(rows)
                    for file, score in rows:
                        reached[file] = min(score.end_s, seconds[file])
                    listener.progress(sum(reached), sum(seconds))
                case LeftOut(file=file, reason=reason):
                    journal.left_out(file, reason)
                    reached[file] = seconds[file]
                    listener.left_out(plan.sources[file].file, reason)
                case Ended(file=file):
                    journal.ended(file, event.seconds, event.gaps, event.pauses_s, event.notes)
                    reached[file] = seconds[file]
                    scores = journal.files[file].scores
                    gated = sum(score.gated for score in scores)
                    skipped = [f"{gated} of them skipped because nothing moves in them"] if gated else []
                    listener.ended(plan.sources[file].file, event.seconds, len(scores), [*skipped, *event.notes])


def _claim(out: Path) -> None:
    """Makes the folder of a scan, or sees that it is one."""
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file; give another --out.")
    held = sorted(entry.name for entry in out.iterdir()) if out.is_dir() else []
    if held and JOURNAL not in held:
        raise RunError(f"{out} is not empty and holds no scan; give another --out.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{out} cannot be written ({error.strerror}).") from None


def _remove_results(out: Path) -> None:
    """Removes what an older scan found."""
    try:
        for name in (SCAN_JSON, SCORES_CSV, INCIDENTS_CSV, "incidents.jsonl", TIMELINE_HTML):
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"{out} cannot be written ({error.strerror}).") from None


def _head(plan: Plan) -> dict[str, Any]:
    """Returns what a scan's scores depend on: with another head, they would be others."""
    classifier, grid = plan.classifier, plan.grid
    files, states = [], []
    for source in plan.sources:
        status = source.path.stat()
        regions = {name: None if roi is None else str(roi) for name, roi in source.regions.items()}
        files.append([source.file, source.camera, regions])
        states.append([status.st_size, status.st_mtime_ns])
    return {
        "model": [classifier.sha256, classifier.temperature, classifier.spec.to_json()],
        "window or stride": [str(grid.length), str(grid.stride)],
        "batch size": [BATCH_SIZE, SHARE_SIZE],
        "gate": plan.gate,
        "device": classifier.device.type,
        "engine": [classifier.held.name, dict(classifier.held.files)],
        "way of reading frames": READING,
        _FILES: files,
        _STATES: states,
    }


def _scan_of(plan: Plan, journal: Journal, head: Mapping[str, Any]) -> Scan:
    recordings, left_out = [], {}
    for source, progress, (size, modified_ns) in zip(plan.sources, journal.files, head[_STATES], strict=True):
        if progress.ended is None:
            left_out[source.file] = str(progress.left_out)
            continue
        recordings.append(
            Recording(
                file=source.file,
                path=str(source.path),
                camera=source.camera,
                seconds=progress.ended["seconds"],
                started=_started(source),
                regions=source.regions,
                scores=progress.scores,
                gaps=progress.ended["gaps"],
                pauses_s=progress.ended["pauses_s"],
                notes=progress.ended["notes"],
                size=size,
                modified_ns=modified_ns,
            )
        )
    spec = plan.classifier.spec
    return Scan(
        model={
            "path": plan.model,
            "arch": spec.arch,
            "sha256": plan.classifier.sha256,
            "engine": plan.classifier.held.name,
        },
        classes=spec.classes,
        event=spec.event,
        window_s=float(plan.grid.length),
        stride_s=float(plan.grid.stride),
        rule=plan.rule,
        rule_source=plan.rule_source,
        recordings=tuple(recordings),
        left_out=left_out,
        gate=plan.gate,
    )


def _started(source: Source) -> datetime | None:
    """Returns when a file begins: by its name, in the camera's time; else as the file itself says, in UTC."""
    by_name = recorded(source.path.name, None)
    if by_name is not None:
        return by_name.start
    by_file = recorded("", None, header_created(source.path))
    if by_file is None or by_file.start is None or by_file.day.year <= _NEVER_SET:
        return None
    return by_file.start.replace(tzinfo=UTC)


def _reasons(scan: Scan) -> str:
    return "; ".join(f"{file}: {reason}" for file, reason in list(scan.left_out.items())[:3])
