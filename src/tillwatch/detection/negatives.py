"""False alarms of a scan to training clips: a model learns most from normal footage that it takes for the event."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tillwatch.clip_spec import ClipSpec, Roi
from tillwatch.config import NegativesConfig
from tillwatch.data.catalog import CLIPS_CSV
from tillwatch.data.provenance import EXTRACTION_JSON
from tillwatch.detection.cameras import Source
from tillwatch.detection.cutting import COLUMNS, Cut, cut_file, is_class_name, with_paths
from tillwatch.detection.incidents import Incident
from tillwatch.detection.results import Recording, Scan, WindowScore, alarms_of, read_events, scored, with_known_files
from tillwatch.detection.scoring import TrueEvent, match
from tillwatch.errors import ClipError, ConfigError, DataError, RunError, one_line
from tillwatch.files import read_csv, write_csv

#: Seconds around an event within which an incident may show its beginning or end, and is left alone.
NEAR_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Negatives:
    """What is kept, and where.

    Attributes:
        folder: of clips; they are added to those that its clips.csv lists.
        label: their class.
        events: all that happened in the footage.
        most: at most so many are kept.
        trained_roi: the region that the model cuts out of every video itself.
    """

    folder: Path
    label: str
    events: Sequence[TrueEvent]
    most: int
    trained_roi: Roi | None


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What became of the false alarms.

    Attributes:
        clips: how many were added.
        there: how many the folder held before.
        false_alarms: that could be kept, those that were not for want of room too.
        near: false alarms so near to an event that they may show it.
        left_out: what could not be cut, with the reason.
    """

    clips: int
    there: int
    false_alarms: int
    near: int
    left_out: Sequence[tuple[str, str]]

    def lines(self, of: Negatives) -> list[str]:
        """Returns it to read."""
        return [
            f"{self.clips} of {self.false_alarms} false alarms were added to {of.folder} as clips of {of.label}",
            *([f"{self.there} were there already"] if self.there else []),
            *([f"{self.near} more lie within {NEAR_S:g} s of an event and were left alone"] if self.near else []),
        ]


def prepare_negatives(config: NegativesConfig, spec: ClipSpec, files: Sequence[str]) -> Negatives | None:
    """Checks all that can be wrong before the scan begins; None if no false alarms are to be kept.

    Args:
        config: what was asked for.
        spec: of the model.
        files: that are scanned, by their names in the tables.

    Raises:
        ConfigError: if the class of the clips is not clear.
        DataError: if the truth cannot be read, or names a file that is not scanned.
        RunError: if the folder holds something else.
    """
    folder = config.collect_negatives
    if folder is None:
        return None
    normal = [name for name in spec.classes if name not in spec.event]
    label = config.negatives_class or (normal[0] if len(normal) == 1 else None)
    if label is None:
        raise ConfigError(f"the model knows the classes {', '.join(normal)} besides the event; give --negatives-class.")
    if label in spec.event or not is_class_name(label):
        raise ConfigError(f"--negatives-class is {label!r}; it must be a class that is no event and can name a folder.")
    if folder.exists() and not folder.is_dir():
        raise RunError(f"--collect-negatives {folder} is a file; give a folder.")
    if (folder / EXTRACTION_JSON).is_file():
        raise RunError(f"--collect-negatives {folder} holds extracted frames; give the folder of the videos.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CLIPS_CSV).is_file():
        raise RunError(f"--collect-negatives {folder} is not empty and holds no {CLIPS_CSV}; give another folder.")
    events = [] if config.truth is None else with_known_files(read_events(config.truth), files, str(config.truth))
    return Negatives(folder=folder, label=label, events=events, most=config.max_negatives, trained_roi=spec.roi)


def worst_false_alarms(scan: Scan, events: Sequence[TrueEvent]) -> tuple[list[tuple[Recording, Incident]], int]:
    """Returns a scan's false alarms, the highest peak first, and how many more lie too near to an event to be sure.

    An event in another region may reach into the picture, so here an incident in any region is near it.
    """
    found = scan.incidents()
    alarms = alarms_of(found)
    right = match(alarms, events).right
    near = match(alarms, [replace(event, region="") for event in events], NEAR_S).right
    clear = [one for one, is_near in zip(found, near, strict=True) if not is_near]
    unsure = sum(is_near and not is_right for is_near, is_right in zip(near, right, strict=True))
    return sorted(clear, key=lambda one: -one[1].peak), unsure


def keep_negatives(
    wanted: Negatives, scan: Scan, on_file: Callable[[int, int], None] = lambda done, total: None
) -> Kept:
    """Cuts the window at the peak of each of the worst false alarms, and adds them to a folder of clips.

    A region that was scanned is cut out of the picture, unless it is the one that the model itself cuts out.

    Args:
        wanted: what is kept, and where.
        scan: that found them.
        on_file: called with (files done, files in all).

    Raises:
        DataError: if the folder's clips.csv cannot be read.
        RunError: if the folder cannot be written.
    """
    false, near = worst_false_alarms(scan, wanted.events)
    by_file: dict[str, list[Cut]] = defaultdict(list)
    for recording, incident in false[: wanted.most]:
        by_file[recording.file].append(_cut_at_peak(scan, recording, incident, wanted))
    rows = _rows_there(wanted.folder / CLIPS_CSV)
    known = {str(row["path"]): row for row in rows}
    before, left_out = len(known), []
    there = 0
    try:
        wanted.folder.mkdir(parents=True, exist_ok=True)
        for done, recording in enumerate((one for one in scan.recordings if one.file in by_file), start=1):
            source = _source(recording)
            named = with_paths(source, by_file[recording.file], known)
            cuts = {path: one for path, one in named.items() if path not in known}
            there += len(named) - len(cuts)
            try:
                written, failed = cut_file(source, cuts, wanted.folder) if cuts else ([], [])
            except ClipError as error:
                written, failed = [], [(recording.file, one_line(error).removeprefix(f"{source.path}: ").rstrip("."))]
            known |= {path: cuts[path].row(source, path) for path in written}
            left_out += failed
            on_file(done, len(by_file))
        if len(known) > before:
            columns = list(dict.fromkeys((*(name for row in known.values() for name in row), *COLUMNS)))
            write_csv(wanted.folder / CLIPS_CSV, columns, [known[path] for path in sorted(known)])
    except OSError as error:
        raise RunError(f"{wanted.folder} cannot be written ({error.strerror or one_line(error)}).") from None
    return Kept(clips=len(known) - before, there=there, false_alarms=len(false), near=near, left_out=left_out)


def _cut_at_peak(scan: Scan, recording: Recording, incident: Incident, wanted: Negatives) -> Cut:
    window = _window_at_peak(scan, recording, incident)
    roi = recording.regions[window.region]
    named = roi is not None and roi != wanted.trained_roi
    return Cut(
        file=recording.file,
        start_s=window.start_s,
        end_s=window.end_s,
        label=wanted.label,
        region=window.region if named else "",
        roi=roi if named else None,
    )


def _window_at_peak(scan: Scan, recording: Recording, incident: Incident) -> WindowScore:
    """Returns the window whose middle is the peak; of several regions that which scored highest."""
    at_peak = [
        score
        for score in recording.scores
        if score.region in incident.regions and (score.start_s + score.end_s) / 2 == incident.peak_s
    ]
    return max(at_peak, key=lambda score: scored(score, scan.classes, scan.event).score)


def _source(recording: Recording) -> Source:
    return Source(path=Path(recording.path), file=recording.file, camera=recording.camera, regions=recording.regions)


def _rows_there(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        return [dict(row) for row in read_csv(path)]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({one_line(error)}).") from None
