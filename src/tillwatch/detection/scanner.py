"""Footage to windows to scores: decoding and the network at the same time, resumable, the same whatever happens."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from tillwatch.clip_spec import ClipSpec
from tillwatch.config import ScanConfig
from tillwatch.data.playback import header_seconds
from tillwatch.data.recordings import recorded
from tillwatch.detection.cameras import WHOLE, Regions, Source, find_sources, parse_regions, read_cameras
from tillwatch.detection.gate import is_still
from tillwatch.detection.incidents import Incident, Rule
from tillwatch.detection.journal import JOURNAL, Journal
from tillwatch.detection.results import INCIDENTS_CSV, SCAN_JSON, SCORES_CSV, Recording, Scan, WindowScore, write_scan
from tillwatch.detection.sampling import Sampler, WindowFrames
from tillwatch.detection.timeline import TIMELINE_HTML, write_timeline
from tillwatch.detection.windows import Grid, seconds_exactly
from tillwatch.errors import ConfigError, DataError, ModelError, RunError, one_line
from tillwatch.models.saved import Classifier, load_model

#: Windows in one forward pass. Part of what a scan is: scores differ in their last digits with the batch.
BATCH_SIZE = 8

_DECIMALS = 8  # of probabilities, in every file
_GATED_AT_ONCE = 64  # windows gated in a row that are noted together
_AHEAD = 2 * BATCH_SIZE  # windows that wait for the network: some 30 MB
_FAR_OUTSIDE = 2.0  # times shorter or longer than any training clip

Item = TypeVar("Item")


@dataclass(frozen=True)
class _Ended:
    """A file was read to its end."""

    file: int
    seconds: float
    gaps: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _LeftOut:
    """A file cannot be scanned."""

    file: int
    reason: str


@dataclass(frozen=True)
class _Gated:
    """A window in which nothing moves; its frames are let go."""

    file: int
    score: WindowScore


_Read = tuple[int, WindowFrames] | _Gated | _Ended | _LeftOut


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
        model: the path that it was read from.
        sources: what to scan, in order.
        grid: where windows lie.
        rule: what makes an incident.
        rule_source: where its threshold comes from, in words.
        gate: "auto" skips windows in which nothing moves, "off" scores all.
        notes: sentences a user should read.
    """

    classifier: Classifier
    model: str
    sources: Sequence[Source]
    grid: Grid
    rule: Rule
    rule_source: str
    gate: Literal["auto", "off"] = "off"
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
    regions = parse_regions(config.roi)
    cameras = [] if config.cameras is None else read_cameras(config.cameras)
    if run.is_file():
        raise RunError(f"{run} is a file; give the run folder.")
    classifier = load_model(run, device=config.device, engine=config.engine, precision=config.precision, fastest=True)
    spec, point = classifier.spec, classifier.operating_point
    grid = choose_grid(spec, config.window, config.stride)
    rule = Rule(
        threshold=point.threshold if threshold is None else threshold,
        release=config.release,
        smoothing=config.smoothing,
        min_seconds=config.min_seconds,
        merge_gap=float(grid.length) if config.merge_gap is None else config.merge_gap,
    )
    default: Regions = {WHOLE: None} if spec.roi is None else {"trained": spec.roi}
    notes = [*classifier.notes, *([] if (note := length_note(spec, grid.length)) is None else [note])]
    return Plan(
        classifier=classifier,
        model=str(run),
        sources=find_sources(videos, regions or default, cameras),
        grid=grid,
        rule=rule,
        rule_source=f"{point.source} ({point.unit}s)" if threshold is None else "given as --threshold",
        gate=config.gate,
        notes=notes,
    )


def choose_grid(spec: ClipSpec, window: float | None = None, stride: float | None = None) -> Grid:
    """Returns where windows lie: as long as the training clips in the median, every half of it, unless told.

    Args:
        spec: of the model.
        window, stride: seconds, None for the default.

    Raises:
        ConfigError: if the model does not tell how long its clips were, or a number makes no sense.
    """
    if window is None and spec.clip_seconds is None:
        raise ConfigError("the model does not tell how long its training clips were; say it with --window SECONDS.")
    length = seconds_exactly(spec.clip_seconds.median if window is None and spec.clip_seconds else window or 0.0)
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
    of windows in the order of files, times and regions, across files, and so are the same however often it is killed.
    A finished scan is not read again: another rule alone costs seconds.

    Args:
        plan: what is scanned with what.
        out: folder of the scan; made if missing.
        overwrite: replace another scan in ``out``.
        listener: is told how it goes.

    Raises:
        RunError: if ``out`` holds something else, or cannot be written.
        DataError: if no file can be scanned; the reasons stand in it.
        ModelError: if the scores are not finite.
    """
    listener = listener or Listener()
    _claim(out, overwrite)
    journal = Journal(out, _head(plan), len(plan.sources))
    for source, progress in zip(plan.sources, journal.files, strict=True):
        if progress.left_out is not None:  # said before, and to be said again
            listener.left_out(source.file, progress.left_out)
    try:
        _score_windows(plan, journal, listener)
    finally:
        journal.close()
    done = _scan_of(plan, journal)
    if not done.recordings:
        raise DataError(f"none of {len(plan.sources)} files could be scanned: {_reasons(done)}.")
    try:
        found = write_scan(out, done)
        write_timeline(out, done, found)
    except OSError as error:
        raise RunError(f"{out} cannot be written ({error.strerror or one_line(error)}).") from None
    return done, found


def _score_windows(plan: Plan, journal: Journal, listener: Listener) -> None:
    sources = plan.sources
    before = list(accumulate((header_seconds(source.path) for source in sources), initial=0.0))
    total = before[-1]
    batch: list[tuple[int, WindowFrames]] = []
    seen: list[_Gated | None] = []  # the windows of the batch, None for each, with those gated among them
    waiting: list[_Ended | _LeftOut] = []  # a file has ended only once all its windows are scored

    def work_off() -> None:
        # A line of the journal ends where no window waits for the network: started again, the batches are the same.
        if seen:
            scores = iter(_scores(plan.classifier, batch) if batch else [])
            rows = [next(scores) if one is None else (one.file, one.score) for one in seen]
            journal.scored(rows)
            file, last = rows[-1]
            listener.progress(min(total, before[file] + last.end_s), total)
            batch.clear()
            seen.clear()
        for end in waiting:
            _note_end(end, sources, journal, listener)
        waiting.clear()

    with closing(_read_ahead(_read_all(plan, journal), _AHEAD)) as reading:
        for read in reading:
            if isinstance(read, tuple):
                batch.append(read)
                seen.append(None)
                full = len(batch) == BATCH_SIZE
            elif isinstance(read, _Gated):
                seen.append(read)
                full = not batch and len(seen) >= _GATED_AT_ONCE
            else:
                waiting.append(read)
                full = not batch
            if full:
                work_off()
    work_off()


def _read_all(plan: Plan, journal: Journal) -> Iterator[_Read]:
    done = [(progress.finished, len(progress.scores)) for progress in journal.files]  # as it is before anything is read
    for number, (source, (finished, scored)) in enumerate(zip(plan.sources, done, strict=True)):
        if finished:
            continue
        reading = plan.classifier.spec.reading
        sampler = Sampler(path=source.path, regions=source.regions, grid=plan.grid, reading=reading)
        try:
            for shown in sampler.read(scored):
                # Of one frame nothing can be told.
                if plan.gate == "auto" and shown.window.available > 1 and is_still(shown.frames):
                    yield _Gated(number, _window_score(shown, ()))
                else:
                    yield number, shown
        except DataError as error:
            yield _LeftOut(number, one_line(error).removeprefix(f"{source.path}: ").rstrip("."))
        else:
            yield _Ended(number, sampler.seconds, sampler.gaps, tuple(sampler.notes))


def _scores(classifier: Classifier, batch: Sequence[tuple[int, WindowFrames]]) -> list[tuple[int, WindowScore]]:
    frames = torch.from_numpy(np.stack([shown.frames for _, shown in batch]))
    place = classifier.transform.place()
    probabilities = classifier.probabilities(classifier.transform.batch(frames, [place] * len(batch)))
    if not np.isfinite(probabilities).all():
        raise ModelError("the scores are not finite; the weights are broken.")
    return [
        (file, _window_score(shown, tuple(round(p, _DECIMALS) for p in row.tolist())))
        for (file, shown), row in zip(batch, probabilities, strict=True)
    ]


def _window_score(shown: WindowFrames, probabilities: tuple[float, ...]) -> WindowScore:
    return WindowScore(
        region=shown.region,
        number=shown.window.number,
        start_s=round(float(shown.window.start), 6),
        end_s=round(float(shown.window.end), 6),
        frames=shown.window.available,
        probabilities=probabilities,
    )


def _note_end(end: _Ended | _LeftOut, sources: Sequence[Source], journal: Journal, listener: Listener) -> None:
    file = sources[end.file].file
    if isinstance(end, _LeftOut):
        journal.left_out(end.file, end.reason)
        listener.left_out(file, end.reason)
    else:
        journal.ended(end.file, end.seconds, end.gaps, end.notes)
        scores = journal.files[end.file].scores
        gated = sum(score.gated for score in scores)
        skipped = [f"{gated} of them skipped because nothing moves in them"] if gated else []
        listener.ended(file, end.seconds, len(scores), [*skipped, *end.notes])


def _read_ahead(items: Iterator[Item], most: int) -> Generator[Item, None, None]:
    """Runs an iterator in a thread of its own, at most so many items ahead; what it raises is raised here."""
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(most)
    stopped = threading.Event()

    def put(kind: bool, what: Any) -> bool:
        while not stopped.is_set():
            try:
                ready.put((kind, what), timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def run() -> None:
        try:
            for item in items:
                if not put(True, item):
                    return
            put(False, None)
        except BaseException as error:  # handed to the reader, whatever it is
            put(False, error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while True:
            is_item, what = ready.get()
            if is_item:
                yield what
            elif what is None:
                return
            else:
                raise what
    finally:
        stopped.set()
        thread.join()


def _claim(out: Path, overwrite: bool) -> None:
    """Makes the folder of a scan, or sees that it is one; replaces what an older scan left, if told."""
    ours = (JOURNAL, SCAN_JSON, SCORES_CSV, INCIDENTS_CSV, "incidents.jsonl", TIMELINE_HTML)
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file; give another --out.")
    held = sorted(entry.name for entry in out.iterdir()) if out.is_dir() else []
    if held and JOURNAL not in held:
        raise RunError(f"{out} is not empty and holds no scan; give another --out.")
    try:
        if overwrite and held:
            for name in ours:
                (out / name).unlink(missing_ok=True)
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{out} cannot be written ({error.strerror}).") from None


def _head(plan: Plan) -> dict[str, Any]:
    """Returns what a scan's scores depend on: with another head, they would be others."""
    classifier, grid = plan.classifier, plan.grid
    files = []
    for source in plan.sources:
        status = source.path.stat()
        regions = {name: None if roi is None else str(roi) for name, roi in source.regions.items()}
        files.append([source.file, source.camera, regions, status.st_size, status.st_mtime_ns])
    return {
        "model": [classifier.sha256, classifier.temperature, classifier.spec.to_json()],
        "window or stride": [str(grid.length), str(grid.stride)],
        "batch size": BATCH_SIZE,
        "gate": plan.gate,
        "device": classifier.device.type,
        "engine": [classifier.held.name, dict(classifier.held.files)],
        "set of files or regions": files,
    }


def _scan_of(plan: Plan, journal: Journal) -> Scan:
    recordings, left_out = [], {}
    for source, progress in zip(plan.sources, journal.files, strict=True):
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
                notes=progress.ended["notes"],
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
    known = recorded(source.path.name, None)
    return None if known is None else known.start


def _reasons(scan: Scan) -> str:
    return "; ".join(f"{file}: {reason}" for file, reason in list(scan.left_out.items())[:3])
