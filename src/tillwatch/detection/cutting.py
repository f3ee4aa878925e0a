"""Hours of footage and a list of times to class folders of clips: the events, and normal clips of like length."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from tillwatch.clip_spec import Roi
from tillwatch.data.catalog import CLIPS_CSV
from tillwatch.data.playback import Damage, play, timing_of_packets
from tillwatch.data.recordings import recorded
from tillwatch.data.video import to_image
from tillwatch.detection.cameras import WHOLE, Source, find_sources, flat_name
from tillwatch.detection.encoding import H264File
from tillwatch.detection.results import read_events, with_known_files
from tillwatch.detection.scoring import TrueEvent
from tillwatch.detection.windows import Clock, seconds_exactly, timeline
from tillwatch.errors import ClipError, ConfigError, DataError, RunError, one_line
from tillwatch.files import write_csv

COLUMNS = ("path", "label", "group", "source", "start_s", "end_s")

_LONGEST_LABEL = 100
_TOLD_S = 0.5  # how far beyond its file's end an event may reach before that is said: people round
_WHICH = ("source", "start_s", "end_s")  # columns that tell clips of one name apart


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A clip to cut: of which file, from when to when in seconds, and its class; of all of the picture or a region."""

    file: str
    start_s: float
    end_s: float
    label: str
    region: str = ""
    roi: Roi | None = None

    def row(self, source: Source, path: str) -> dict[str, Any]:
        """Returns the clip's row of clips.csv."""
        known = recorded(source.path.name, None)
        return {
            "path": path,
            "label": self.label,
            "group": source.file if known is None else f"{source.camera} {known.day.isoformat()}",
            "source": str(source.path),
            "start_s": f"{self.start_s:.3f}",
            "end_s": f"{self.end_s:.3f}",
        }

    def path(self, source: Source, rows: Mapping[str, Mapping[str, Any]]) -> str:
        """Returns the clip's path below the folder of all classes.

        Several clips may have one name: a/b.mp4 and a_b.mp4, two events that begin together. They are numbered.

        Args:
            source: the file that it is cut out of.
            rows: of clips.csv so far, by path; where this very clip is among them, its path there is returned.
        """
        region = f"_{self.region}" if self.region else ""
        name = f"{self.label}/{flat_name(source.file)}_{round(self.start_s * 1000):08d}{region}"
        own = self.row(source, name)
        paths = (f"{name}.mp4" if number == 1 else f"{name}_{number}.mp4" for number in itertools.count(1))
        return next(
            path for path in paths if path not in rows or all(rows[path].get(key) == own[key] for key in _WHICH)
        )


@dataclass(frozen=True, kw_only=True)
class CutSettings:
    """What is cut.

    Attributes:
        label: class of events whose row names none; None refuses such rows.
        normal: class of the clips between events.
        normals_per_event: how many of those for each event.
        margin_s: seconds before and after each event that no normal clip may show.
        seed: of where normal clips lie.
    """

    label: str | None = None
    normal: str = "normal"
    normals_per_event: int = 1
    margin_s: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.normals_per_event < 0:
            raise ConfigError(f"--normals-per-event is {self.normals_per_event}; it must be at least 0.")
        if not 0 <= self.margin_s < float("inf"):
            raise ConfigError(f"--margin is {self.margin_s}; it must be a number of seconds, at least 0.")
        if self.seed < 0:
            raise ConfigError(f"--seed is {self.seed}; it must be at least 0.")
        for flag, label in (("--label", self.label), ("--normal", self.normal)):
            if label is not None and not is_class_name(label):
                raise ConfigError(f"{flag} is {label!r}; a class must be able to name a folder, without a comma.")


@dataclass(frozen=True, kw_only=True)
class CutReport:
    """What became of a list of events.

    Attributes:
        clips: written, of each class.
        left_out: files that cannot be read and events that could not be cut, with the reason.
        missing: normal clips for which there was no room.
        notes: on events that reach beyond their file's end, whose clips end with it, or that are named twice.
    """

    clips: Mapping[str, int]
    left_out: Sequence[tuple[str, str]]
    missing: int
    notes: Sequence[str]


def cut(
    footage: Path,
    events: Path,
    dst: Path,
    settings: CutSettings,
    on_file: Callable[[int, int], None] = lambda done, total: None,
) -> CutReport:
    """Cuts clips out of footage into ``dst/<class>/``, and writes ``dst/clips.csv`` with their groups.

    A clip holds the frames with ``start <= t < end`` and keeps their times; it is encoded anew, for a file can be
    divided without that at key frames only. A group is a camera's day where the file's name tells it, else a file.

    Args:
        footage: a video, or a folder that is searched for videos.
        events: a table file,start,end,label, as :func:`tillwatch.detection.results.read_events` reads it.
        dst: made if missing; must be empty.
        settings: what is cut.
        on_file: called with (files done, files in all).

    Raises:
        DataError: if the table is wrong, or nothing could be cut.
        RunError: if ``dst`` is not empty or cannot be written. Whatever ends it early, ``dst`` is left as it was.
    """
    sources = {source.file: source for source in find_sources([footage], {WHOLE: None})}
    wanted = _labelled(with_known_files(read_events(events), sources, str(events)), events, settings)
    if dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
        raise RunError(f"{dst} is not empty; give another DST.")
    lengths, left_out = _lengths(sources)
    wanted, notes = _within(wanted, lengths)
    plan, missing = plan_cuts(wanted, lengths, settings)
    planned: dict[str, dict[str, Any]] = {}
    by_file: dict[str, list[Cut]] = defaultdict(list)
    for one in plan:
        by_file[one.file].append(one)
    named: dict[str, dict[str, Cut]] = {}
    for file, cuts in by_file.items():
        named[file] = with_paths(sources[file], cuts, planned)
        planned |= {path: one.row(sources[file], path) for path, one in named[file].items()}
    written: set[str] = set()
    try:
        with _left_as_it_was(dst, planned):
            for done, (file, with_path) in enumerate(named.items(), start=1):
                paths, failed = cut_file(sources[file], with_path, dst)
                written |= set(paths)
                left_out += failed
                on_file(done, len(named))
            if not written:
                raise DataError(f"no clip could be cut: {'; '.join(f'{name}: {why}' for name, why in left_out[:3])}.")
            write_csv(dst / CLIPS_CSV, COLUMNS, [planned[path] for path in sorted(written)])
    except OSError as error:
        raise RunError(f"{dst} cannot be written ({error.strerror or one_line(error)}).") from None
    clips = Counter(row["label"] for path, row in planned.items() if path in written)
    return CutReport(clips=clips, left_out=left_out, missing=missing, notes=notes)


def with_paths(source: Source, cuts: Sequence[Cut], rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Cut]:
    """Returns what to cut out of a file by its path, as :meth:`Cut.path` gives it, no two of them the same.

    Args:
        source: the file.
        cuts: out of it.
        rows: of clips.csv so far, by path; what is among them keeps the path that it has there.
    """
    taken, found = dict(rows), dict[str, Cut]()
    for one in cuts:
        path = one.path(source, taken)
        taken[path], found[path] = one.row(source, path), one
    return found


@contextlib.contextmanager
def _left_as_it_was(dst: Path, paths: Collection[str]) -> Iterator[None]:
    """Removes clips and the folders made for them where the block raises, and nothing else."""
    there = dst.exists()
    try:
        yield
    except BaseException:
        for path in (*paths, CLIPS_CSV):
            (dst / path).unlink(missing_ok=True)
        for folder in (*{(dst / path).parent for path in paths}, *([] if there else [dst])):
            with contextlib.suppress(OSError):  # it was not made, or holds what is not ours
                folder.rmdir()
        raise


def plan_cuts(
    events: Sequence[TrueEvent], lengths: Mapping[str, float], settings: CutSettings
) -> tuple[list[Cut], int]:
    """Says what to cut: each event, and for each as many normal clips of its length as asked for.

    A normal clip lies in the event's own file if there is room, else in any; it keeps the margin from all events and
    overlaps no other. Where it lies is random, by the seed alone.

    Args:
        events: labelled; those of files without a length are passed over.
        lengths: seconds of each file that can be read.
        settings: what is cut.

    Returns:
        The cuts, and for how many normal clips there was no room.
    """
    rng = random.Random(settings.seed)
    events = [event for event in events if event.file in lengths]
    free = {file: _free(events, file, seconds, settings.margin_s) for file, seconds in lengths.items()}
    cuts = [Cut(file=e.file, start_s=e.start_s, end_s=e.end_s, label=e.label) for e in events]
    missing = 0
    for event in events:
        for _ in range(settings.normals_per_event):
            taken = _take(free, event.file, event.end_s - event.start_s, rng)
            if taken is None:
                missing += 1
            else:
                file, start_s, end_s = taken
                cuts.append(Cut(file=file, start_s=start_s, end_s=end_s, label=settings.normal))
    return cuts, missing


def _labelled(events: Sequence[TrueEvent], table: Path, settings: CutSettings) -> list[TrueEvent]:
    if not events:
        raise DataError(f"{table} holds no event.")
    labelled = []
    for event in events:
        label = event.label or settings.label
        if label is None:
            raise DataError(f"{table}: the event in {event.file} at {event.start_s:g} s has no label; give --label.")
        if not is_class_name(label) or label == settings.normal:
            raise DataError(f"{table}: {label!r} cannot be the class of an event; name another.")
        labelled.append(TrueEvent(file=event.file, start_s=event.start_s, end_s=event.end_s, label=label))
    return labelled


def _within(events: Sequence[TrueEvent], lengths: Mapping[str, float]) -> tuple[list[TrueEvent], list[str]]:
    """Ends events with their files, takes each once, and says of which that had to be done."""
    within: dict[TrueEvent, None] = {}
    notes = []
    for event in events:
        end_s = lengths.get(event.file, event.end_s)
        what = f"{event.file}: the {event.label} from {event.start_s:g} to {event.end_s:g} s"
        if event.start_s < end_s < event.end_s - _TOLD_S:
            notes.append(f"{what} ends with the file, which lasts {end_s:.1f} s")
        whole = replace(event, end_s=end_s) if event.start_s < end_s < event.end_s else event
        if whole in within:
            notes.append(f"{what} is in the table more than once and was cut once")
        within[whole] = None
    return list(within), notes


def is_class_name(label: str) -> bool:
    """Whether a label can name a folder of clips."""
    hidden = label.startswith(".") or label != label.strip()
    return 0 < len(label) <= _LONGEST_LABEL and not hidden and not set(label) & set(',/\\\0"\n')


def _lengths(sources: Mapping[str, Source]) -> tuple[dict[str, float], list[tuple[str, str]]]:
    lengths, left_out = {}, []
    for file, source in sources.items():
        try:
            timing = timing_of_packets(source.path)
        except ClipError as error:
            left_out.append((file, one_line(error).removeprefix(f"{source.path}: ").rstrip(".")))
            continue
        ticks = timeline(timing.timestamps, timing.time_base, timing.interval)
        if len(ticks):
            lengths[file] = float(int(ticks[-1]) * timing.time_base + timing.interval)
        else:
            left_out.append((file, "holds no frame"))
    return lengths, left_out


def _free(events: Sequence[TrueEvent], file: str, seconds: float, margin_s: float) -> list[tuple[float, float]]:
    """Returns the stretches of a file that lie apart from its events."""
    free, begin = [], 0.0
    for event in sorted((e for e in events if e.file == file), key=lambda e: e.start_s):
        if event.start_s - margin_s > begin:
            free.append((begin, min(seconds, event.start_s - margin_s)))
        begin = max(begin, event.end_s + margin_s)
    return [*free, (begin, seconds)] if begin < seconds else free


def _take(
    free: dict[str, list[tuple[float, float]]], file: str, length: float, rng: random.Random
) -> tuple[str, float, float] | None:
    """Takes a stretch of a length out of those that are free, in one file if there is room, else in any."""
    for files in ([file], list(free)):
        room = [(name, place) for name in files for place in free[name] if place[1] - place[0] >= length]
        if not room:
            continue
        weights = [end - begin - length + 1e-3 for _, (begin, end) in room]
        name, (begin, end) = rng.choices(room, weights)[0]
        start = min(round(begin + rng.random() * (end - begin - length), 3), end - length)
        free[name].remove((begin, end))
        free[name] += [part for part in ((begin, start), (start + length, end)) if part[0] < part[1]]
        return name, start, start + length
    return None


def cut_file(source: Source, cuts: Mapping[str, Cut], dst: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """Cuts all clips of one file while it is played once.

    Args:
        source: the file.
        cuts: what to cut out of it, by the path that it gets below ``dst``.
        dst: where clips go.

    Returns:
        The paths of those that were written, and what could not be cut with the reason.

    Raises:
        ClipError: if the file cannot be opened or holds no video.
        OSError: if a clip cannot be written.
    """
    timing = timing_of_packets(source.path)
    clock = Clock(timing.time_base, timing.interval)
    coming = [
        _Clip(one, path, H264File(dst / path, time_base=timing.time_base, fps=timing.fps))
        for path, one in sorted(cuts.items(), key=lambda item: item[1].start_s)
    ]
    damage, written, failed = Damage(), [], []
    with contextlib.ExitStack() as unfinished:
        for clip in coming:
            unfinished.callback(clip.file.discard)
        left = list(coming)
        for frame in play(source.path, damage):
            tick = clock.shown(frame.pts)
            now = tick * timing.time_base
            for clip in [clip for clip in left if clip.end <= now]:
                clip.file.finish()
                left.remove(clip)
            if not left:
                break
            inside = [clip for clip in left if clip.start <= now]
            if inside:
                pictures = {clip.cut.roi: _upright(frame, clip.cut.roi) for clip in inside}
                for clip in inside:
                    clip.file.add(pictures[clip.cut.roi], tick)
        for clip in left:
            clip.file.finish()
    for clip in coming:
        if clip.file.frames:
            written.append(clip.path)
        else:
            failed.append((source.file, f"no frame between {clip.cut.start_s:g} and {clip.cut.end_s:g} s"))
    failed += [(source.file, note) for note in damage.notes()]
    return written, failed


@dataclass
class _Clip:
    """A clip that is being written, and its path among the others."""

    cut: Cut
    path: str
    file: H264File
    start: Fraction = field(init=False)
    end: Fraction = field(init=False)

    def __post_init__(self) -> None:
        self.start, self.end = seconds_exactly(self.cut.start_s), seconds_exactly(self.cut.end_s)


def _upright(frame: av.VideoFrame, roi: Roi | None) -> av.VideoFrame:
    """Turns a frame as its file says it must be, for the clip will not say it again, and cuts out a region."""
    if roi is None and not frame.rotation:
        return frame
    return av.VideoFrame.from_ndarray(np.asarray(to_image(frame, roi)), format="rgb24")
