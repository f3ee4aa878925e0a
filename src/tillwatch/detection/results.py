"""The files that a scan leaves, and tables of events: written, and read back."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tillwatch.clip_spec import Roi, event_scores, shortened
from tillwatch.data.catalog import count_and_names
from tillwatch.detection.cameras import TRAINED, WHOLE
from tillwatch.detection.incidents import Incident, Rule, Scored, incidents_of_regions
from tillwatch.detection.scoring import Alarm, IncidentScore, TrueEvent, score_incidents
from tillwatch.errors import ConfigError, DataError, one_line
from tillwatch.files import read_csv, read_csv_header, write_csv, write_json, write_text

SCAN_JSON, SCORES_CSV, INCIDENTS_CSV = "scan.json", "scores.csv", "incidents.csv"

INCIDENT_COLUMNS = (
    "camera",
    "file",
    "region",
    "class",
    "start_s",
    "end_s",
    "start_timecode",
    "end_timecode",
    "start_time",
    "end_time",
    "alert_s",
    "peak",
    "peak_s",
    "mean",
    "windows",
    "threshold",
    "operating_point",
    "model_sha256",
)

_LONGEST_TIME = 30  # characters of a time in a table


@dataclass(frozen=True, kw_only=True)
class WindowScore:
    """What the model says of one window of one region.

    Attributes:
        region: its name.
        number: the window's place in the grid.
        start_s, end_s: in seconds since the recording's first frame.
        frames: how many the frame step leaves in it.
        probabilities: calibrated, of each class in order; none if the window was gated.
    """

    region: str
    number: int
    start_s: float
    end_s: float
    frames: int
    probabilities: tuple[float, ...]

    @property
    def gated(self) -> bool:
        """Whether it was skipped because nothing moves in it; its event score is 0."""
        return not self.probabilities


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One scanned file.

    Attributes:
        file: its name in all tables.
        path: where it lay.
        size, modified_ns: in bytes, and when it was written last, as the scan found it; None where that is not known.
        camera: that it comes from.
        seconds: from its first frame to the end of its last.
        started: when it was recorded: by its name, without a zone, else by the file itself, in UTC; None if neither
            tells.
        regions: that were looked at; None is the whole picture.
        scores: of its windows, in order.
        gaps: windows that hold no frame.
        pauses_s: seconds of it that nobody filmed: between frames that are over a second apart.
        notes: what was noticed, in sentences.
    """

    file: str
    camera: str
    seconds: float
    started: datetime | None
    regions: Mapping[str, Roi | None]
    scores: Sequence[WindowScore]
    gaps: int = 0
    pauses_s: float = 0.0
    notes: Sequence[str] = ()
    path: str = ""
    size: int | None = None
    modified_ns: int | None = None

    @property
    def gated(self) -> int:
        """How many of its windows were skipped because nothing moves in them."""
        return sum(score.gated for score in self.scores)


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A whole scan.

    Attributes:
        model: path, architecture and SHA-256 of what scored.
        classes, event: of the model.
        window_s, stride_s: the grid.
        rule: what makes an incident.
        rule_source: where the threshold comes from, in words.
        recordings: that were scanned.
        left_out: files that could not be, with the reason.
        gate: whether windows in which nothing moves were skipped, "auto" or "off".
    """

    model: Mapping[str, str]
    classes: tuple[str, ...]
    event: tuple[str, ...]
    window_s: float
    stride_s: float
    rule: Rule
    rule_source: str
    recordings: tuple[Recording, ...]
    left_out: Mapping[str, str]
    gate: str = "off"

    @property
    def gated(self) -> int:
        """How many windows were skipped because nothing moves in them."""
        return sum(recording.gated for recording in self.recordings)

    @property
    def windows(self) -> int:
        """How many windows the model scored."""
        return sum(len(recording.scores) for recording in self.recordings) - self.gated

    @property
    def hours(self) -> float:
        """Hours of camera footage, without pauses in it; regions of one picture count once."""
        return sum(one.seconds - one.pauses_s for one in self.recordings) / 3600

    def incidents(self, rule: Rule | None = None) -> list[tuple[Recording, Incident]]:
        """Returns all incidents in the order of files and time; by another rule than the scan's own if one is given."""
        return [
            (recording, incident)
            for recording in self.recordings
            for incident in _incidents_of(recording, self._scored[recording.file], rule or self.rule)
        ]

    @cached_property
    def _scored(self) -> dict[str, dict[str, list[Scored]]]:
        """The windows of each file and region, put together once however many rules are tried."""
        by_file = {one.file: {name: list[Scored]() for name in one.regions} for one in self.recordings}
        for recording in self.recordings:
            for score in recording.scores:
                by_file[recording.file][score.region].append(scored(score, self.classes, self.event))
        return by_file


def write_scan(folder: Path, scan: Scan) -> list[tuple[Recording, Incident]]:
    """Writes scores.csv, incidents.csv, incidents.jsonl and scan.json, and returns the incidents."""
    found = scan.incidents()
    rows = [_incident_row(scan, recording, incident) for recording, incident in found]
    write_csv(folder / SCORES_CSV, _score_columns(scan.classes), _score_rows(scan))
    write_csv(folder / INCIDENTS_CSV, INCIDENT_COLUMNS, rows)
    write_text(folder / "incidents.jsonl", "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
    write_json(folder / SCAN_JSON, _record(scan))
    return found


def read_scan(folder: Path) -> Scan | None:
    """Reads back what :func:`write_scan` wrote; None if the folder holds no scan.

    Raises:
        DataError: if its files are damaged or do not fit each other.
    """
    path = folder / SCAN_JSON
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        classes = tuple(record["classes"])
        scores: dict[str, list[WindowScore]] = defaultdict(list)
        for row in read_csv(folder / SCORES_CSV):
            scores[row["file"]].append(
                WindowScore(
                    region=row["region"],
                    number=int(row["window"]),
                    start_s=float(row["start_s"]),
                    end_s=float(row["end_s"]),
                    frames=int(row["frames"]),
                    probabilities=() if row["gated"] == "1" else tuple(float(row[f"p_{name}"]) for name in classes),
                )
            )
        return Scan(
            model=record["model"],
            classes=classes,
            event=tuple(record["event"]),
            window_s=float(record["window_s"]),
            stride_s=float(record["stride_s"]),
            rule=Rule(**record["rule"]),
            rule_source=record["rule_source"],
            recordings=tuple(_recording(entry, scores) for entry in record["files"]),
            left_out={entry["file"]: entry["reason"] for entry in record["left_out"]},
            gate=str(record["gate"]),
        )
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise DataError(f"{folder} holds a damaged scan ({one_line(error)}); scan again.") from None


def read_alarms(path: Path) -> list[Alarm]:
    """Reads a table of incidents, ours or any with the columns file, start_s and end_s.

    Raises:
        DataError: naming the row that cannot be read.
    """
    alarms = []
    for row in _rows(path, "file", "start_s", "end_s"):
        start_s, end_s = _span(path, row, "start_s", "end_s")
        regions = _named(row.get("region", "").split("+"))
        alarms.append(
            Alarm(
                file=row["file"],
                start_s=start_s,
                end_s=end_s,
                regions=regions,
                alert_s=_maybe(path, row, "alert_s"),
                peak=_maybe(path, row, "peak"),
            )
        )
    return alarms


def alarms_of(incidents: Iterable[tuple[Recording, Incident]]) -> list[Alarm]:
    """Returns incidents as :func:`read_alarms` would read them."""
    return [
        Alarm(
            file=recording.file,
            start_s=incident.start_s,
            end_s=incident.end_s,
            regions=_named(incident.regions),
            alert_s=incident.alert_s,
            peak=incident.peak,
        )
        for recording, incident in incidents
    ]


def _named(regions: Iterable[str]) -> tuple[str, ...]:
    """Returns the regions that somebody named: the whole picture is none."""
    names = tuple(name for name in regions if name)
    return () if {WHOLE, TRAINED} & set(names) else names


def read_events(path: Path) -> list[TrueEvent]:
    """Reads a table of events: file,start,end and, if there are such columns, region and label.

    Times are seconds of the file, or h:mm:ss, or mm:ss.

    Raises:
        DataError: naming the row that cannot be read.
    """
    events = []
    for row in _rows(path, "file", "start", "end"):
        start_s, end_s = _span(path, row, "start", "end")
        region, label = row.get("region", ""), row.get("label", "")
        events.append(TrueEvent(file=row["file"], start_s=start_s, end_s=end_s, region=region, label=label))
    return events


def with_known_files(events: Sequence[TrueEvent], files: Iterable[str], what: str) -> list[TrueEvent]:
    """Returns events with the names of files as a scan or a folder has them: whole, or their last part, or its stem.

    Raises:
        DataError: naming the file that is not there, or that several bear the name of.
    """
    files = list(files)
    known = set(files)
    short: dict[str, list[str]] = defaultdict(list)
    for file in files:
        name = file.rsplit("/", 1)[-1]
        for key in {name, name.rsplit(".", 1)[0]}:
            short[key].append(file)
    named = []
    for event in events:
        candidates = [event.file] if event.file in known else short.get(event.file, [])
        if len(candidates) != 1:
            how = "which is not there" if not candidates else f"and there are {', '.join(candidates)}"
            raise DataError(f"{what} names the file {event.file!r}, {how}.")
        named.append(replace(event, file=candidates[0]))
    return named


def score_tables(
    incidents: Path, truth: Path, *, hours: float | None = None, tolerance_s: float = 0.0
) -> tuple[IncidentScore, list[str]]:
    """Measures a table of incidents against a table of events; returns the figures, and sentences to read beside them.

    If the incidents lie in the folder of a scan, that tells the hours and the files, and the curve is that of the
    scan's rule at other thresholds, from its scores. Otherwise the curve is of the incidents' peaks.

    Args:
        incidents: as :func:`read_alarms` reads it.
        truth: as :func:`read_events` reads it.
        hours: of camera footage; where a scan tells them too, these hold.
        tolerance_s: as :func:`tillwatch.detection.scoring.match`.

    Raises:
        DataError: if a table cannot be read, or an event lies in a file that the scan has not seen.
    """
    alarms, events = read_alarms(incidents), read_events(truth)
    scan = read_scan(incidents.parent)
    if scan is None:
        notes = []
        unseen = sorted({event.file for event in events} - {alarm.file for alarm in alarms})
        if unseen:
            notes.append(
                f"no incident lies in {count_and_names(unseen)}: nothing here tells whether a scan has seen such files."
            )
        return score_incidents(alarms, events, hours=hours, tolerance_s=tolerance_s), notes
    events, notes = events_of_scan(scan, events, str(truth))
    thresholds = [scored(score, scan.classes, scan.event).score for one in scan.recordings for score in one.scores]
    figures = score_incidents(
        alarms,
        events,
        hours=scan.hours if hours is None else hours,
        tolerance_s=tolerance_s,
        at_threshold=lambda threshold: alarms_of(scan.incidents(scan.rule.at(threshold))),
        thresholds=[value for value in thresholds if value > 0],
    )
    return figures, notes


def events_of_scan(scan: Scan, events: Sequence[TrueEvent], what: str) -> tuple[list[TrueEvent], list[str]]:
    """Returns the events in files that a scan has seen, by their names in it, and sentences on what it missed.

    Raises:
        DataError: if an event lies in a file that the scan knows nothing of.
    """
    scanned = [recording.file for recording in scan.recordings]
    events = with_known_files(events, [*scanned, *scan.left_out], what)
    lost = [event for event in events if event.file in scan.left_out]
    named = count_and_names(sorted({event.file for event in lost}))
    notes = [f"{len(lost)} events lie in files that the scan left out, {named}: they do not count."] if lost else []
    looked_at = {recording.file: _named(recording.regions) for recording in scan.recordings}
    unseen = [
        event for event in events if event.region and event.region not in (looked_at.get(event.file) or [event.region])
    ]
    if unseen:
        names = count_and_names(sorted({event.region for event in unseen}))
        regions = ", ".join(sorted({name for event in unseen for name in looked_at[event.file]}))
        notes.append(
            f"{len(unseen)} events lie in regions that were not scanned, {names}, but {regions}: they count as missed."
        )
    return [event for event in events if event.file not in scan.left_out], notes


def timecode(seconds: float) -> str:
    """Returns hours, minutes, seconds and milliseconds: 01:02:03.400; before the beginning, with a minus."""
    milliseconds = abs(round(round(seconds, 3) * 1000))  # as the tables round
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{'-' if round(seconds, 3) < 0 else ''}{hours:02d}:{minutes:02d}:{milliseconds / 1000:06.3f}"


def wall_clock(recording: Recording, seconds: float) -> str | None:
    """Returns the date and time of a place in a recording, ISO 8601; None if nothing tells when it begins."""
    if recording.started is None:
        return None
    return (recording.started + timedelta(seconds=round(seconds, 3))).isoformat(timespec="milliseconds")


def shown_clock(recording: Recording, seconds: float) -> str:
    """Returns the date and time of a place in a recording to the second, as people read it; empty if nothing tells."""
    told = (wall_clock(recording, seconds) or "").replace("T", " ")
    return f"{told[:19]} UTC" if told.endswith("+00:00") else told[:19]


def scored(score: WindowScore, classes: Sequence[str], event: Sequence[str]) -> Scored:
    """Returns a window's event score and the most probable of the event's classes; 0 if it was gated."""
    if score.gated:
        return Scored(start_s=score.start_s, end_s=score.end_s, score=0.0, label=event[0])
    of_event = {name: score.probabilities[classes.index(name)] for name in event}
    return Scored(
        start_s=score.start_s,
        end_s=score.end_s,
        score=float(event_scores(np.array(score.probabilities), [classes.index(name) for name in event])),
        label=max(of_event, key=lambda name: of_event[name]),
    )


def _incidents_of(recording: Recording, by_region: Mapping[str, Sequence[Scored]], rule: Rule) -> list[Incident]:
    whole = Roi(x=0, y=0, width=1, height=1)
    boxes = {name: roi or whole for name, roi in recording.regions.items()}
    found = incidents_of_regions(by_region, boxes, rule)
    # The last window may reach past the end of the recording; an incident does not.
    end = recording.seconds
    return [replace(incident, end_s=min(incident.end_s, end), alert_s=min(incident.alert_s, end)) for incident in found]


def _incident_row(scan: Scan, recording: Recording, incident: Incident) -> dict[str, Any]:
    return {
        "camera": recording.camera,
        "file": recording.file,
        "region": "+".join(incident.regions),
        "class": incident.label,
        "start_s": round(incident.start_s, 3),
        "end_s": round(incident.end_s, 3),
        "start_timecode": timecode(incident.start_s),
        "end_timecode": timecode(incident.end_s),
        "start_time": wall_clock(recording, incident.start_s),
        "end_time": wall_clock(recording, incident.end_s),
        "alert_s": round(incident.alert_s, 3),
        "peak": round(incident.peak, 6),
        "peak_s": round(incident.peak_s, 3),
        "mean": round(incident.mean, 6),
        "windows": incident.windows,
        "threshold": scan.rule.threshold,
        "operating_point": scan.rule_source,
        "model_sha256": scan.model["sha256"],
    }


def _score_columns(classes: Sequence[str]) -> list[str]:
    columns = ["camera", "file", "region", "window", "start_s", "end_s", "frames", "gated", "event_score"]
    return [*columns, *(f"p_{name}" for name in classes)]


def _score_rows(scan: Scan) -> Iterable[dict[str, Any]]:
    for recording in scan.recordings:
        for score in recording.scores:
            row = {
                "camera": recording.camera,
                "file": recording.file,
                "region": score.region,
                "window": score.number,
                "start_s": f"{score.start_s:.6f}",
                "end_s": f"{score.end_s:.6f}",
                "frames": score.frames,
                "gated": int(score.gated),
                "event_score": f"{scored(score, scan.classes, scan.event).score:.8f}",
            }
            # Of a gated window there is no probability to write: the fields stay empty.
            yield row | {f"p_{name}": f"{p:.8f}" for name, p in zip(scan.classes, score.probabilities, strict=False)}


def _record(scan: Scan) -> dict[str, Any]:
    return {
        "model": dict(scan.model),
        "classes": list(scan.classes),
        "event": list(scan.event),
        "window_s": scan.window_s,
        "stride_s": scan.stride_s,
        "rule": asdict(scan.rule),
        "rule_source": scan.rule_source,
        "hours": scan.hours,
        "gate": scan.gate,
        "windows": scan.windows,
        "gated": scan.gated,
        "files": [
            {
                "file": recording.file,
                "path": recording.path,
                "bytes": recording.size,
                "modified_ns": recording.modified_ns,
                "camera": recording.camera,
                "seconds": recording.seconds,
                "started": None if recording.started is None else recording.started.isoformat(),
                "regions": {name: None if roi is None else asdict(roi) for name, roi in recording.regions.items()},
                "windows": len(recording.scores),
                "gated": recording.gated,
                "gaps": recording.gaps,
                "pauses_s": recording.pauses_s,
                "notes": list(recording.notes),
            }
            for recording in scan.recordings
        ],
        "left_out": [{"file": file, "reason": reason} for file, reason in scan.left_out.items()],
    }


def _recording(entry: Mapping[str, Any], scores: Mapping[str, Sequence[WindowScore]]) -> Recording:
    of_file = scores.get(entry["file"], ())
    if len(of_file) != entry["windows"]:
        raise ValueError(f"{SCORES_CSV} has {len(of_file)} windows of {entry['file']}, not {entry['windows']}")
    return Recording(
        file=entry["file"],
        path=entry["path"],
        size=entry.get("bytes"),
        modified_ns=entry.get("modified_ns"),
        camera=entry["camera"],
        seconds=float(entry["seconds"]),
        started=None if entry["started"] is None else datetime.fromisoformat(entry["started"]),
        regions={name: None if roi is None else Roi(**roi) for name, roi in entry["regions"].items()},
        scores=of_file,
        gaps=int(entry["gaps"]),
        pauses_s=float(entry.get("pauses_s", 0.0)),
        notes=tuple(entry["notes"]),
    )


def _rows(path: Path, *columns: str) -> list[dict[str, str]]:
    try:
        rows, head = read_csv(path), read_csv_header(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or one_line(error)}).") from None
    missing = [name for name in columns if name not in head]
    if missing:
        raise DataError(f"{path}: its first line must name the columns {', '.join(columns)}; it lacks {missing[0]}.")
    return rows


def _span(path: Path, row: Mapping[str, str], start: str, end: str) -> tuple[float, float]:
    start_s, end_s = (_seconds(path, row, name) for name in (start, end))
    if not start_s < end_s:
        raise DataError(f"{path}: {row['file']} from {row[start]} to {row[end]} lasts no time; an end must be later.")
    return start_s, end_s


def _seconds(path: Path, row: Mapping[str, str], name: str) -> float:
    """Reads 754.2, 12:34.2 or 0:12:34.2."""
    match = re.fullmatch(r"(?:(?:(\d+):)?([0-5]?\d):)?(\d+(?:\.\d*)?)", row[name])
    seconds = float(match[3]) if match else math.nan
    if match is None or (match[2] and seconds >= 60) or len(match[0]) > _LONGEST_TIME:
        told = shortened(repr(row[name]))
        raise DataError(f"{path}: {name} of {row['file']!r} is {told}; it must be seconds or h:mm:ss.")
    return 3600 * int(match[1] or 0) + 60 * int(match[2] or 0) + seconds


def _maybe(path: Path, row: Mapping[str, str], name: str) -> float | None:
    if not row.get(name):
        return None
    try:
        value = float(row[name])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{path}: {name} of {row['file']!r} is {row[name]!r}; it must be a number.")
    return value
