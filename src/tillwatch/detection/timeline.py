"""timeline.html: the scores of a scan over time and its incidents, in one file to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tillwatch.detection.incidents import Incident
from tillwatch.detection.results import Recording, Scan, scored, shown_clock, timecode
from tillwatch.files import write_text

TIMELINE_HTML = "timeline.html"

_WIDTH, _HEIGHT, _BASE = 1000, 64, 60  # of a strip, in the units of its view box; scores stand on the base
_SHORT_S = 240  # below it, whole seconds would stand in wrong places
_MOST_POINTS = 500  # of a strip: more cannot be seen


@dataclass(frozen=True)
class _Strip:
    name: str
    drawing: Markup
    highest: float


@dataclass(frozen=True)
class _Section:
    file: str
    camera: str
    length: str
    started: str
    notes: Sequence[str]
    strips: Sequence[_Strip]
    times: Sequence[str]


def write_timeline(folder: Path, scan: Scan, found: Sequence[tuple[Recording, Incident]]) -> Path:
    """Writes the page and returns its path.

    Args:
        folder: of the scan.
        scan: with its scores.
        found: its incidents.
    """
    by_file: dict[str, list[Incident]] = {recording.file: [] for recording in scan.recordings}
    for recording, incident in found:
        by_file[recording.file].append(incident)
    environment = Environment(
        loader=PackageLoader("tillwatch.detection"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("timeline.html.j2").render(
        scan=scan,
        gaps=sum(recording.gaps for recording in scan.recordings),
        found=found,
        sections=[_section(scan, recording, by_file[recording.file]) for recording in scan.recordings],
        timecode=timecode,
        shown_clock=shown_clock,
    )
    path = folder / TIMELINE_HTML
    write_text(path, page)
    return path


def _section(scan: Scan, recording: Recording, incidents: Sequence[Incident]) -> _Section:
    by_region: Mapping[str, list[tuple[float, float]]] = {name: [] for name in recording.regions}
    for score in recording.scores:
        window = scored(score, scan.classes, scan.event)
        by_region[score.region].append(((window.start_s + window.end_s) / 2, window.score))
    strips = []
    for name, points in by_region.items():
        of_region = [incident for incident in incidents if name in incident.regions]
        drawing = _draw(points, of_region, recording.seconds, scan.rule.threshold)
        strips.append(_Strip(name, drawing, max((value for _, value in points), default=0.0)))
    return _Section(
        file=recording.file,
        camera=recording.camera,
        length=timecode(recording.seconds),
        started=shown_clock(recording, 0),
        notes=recording.notes,
        strips=strips,
        times=_times_below(recording.seconds),
    )


def _times_below(seconds: float) -> list[str]:
    """Returns the times at the quarters of a strip, as exactly as they can be told apart there."""
    digits, shown = (1, 10) if seconds < _SHORT_S else (0, 8)
    return [timecode(round(seconds * quarter / 4, digits))[:shown] for quarter in range(5)]


def _draw(
    points: Sequence[tuple[float, float]], incidents: Sequence[Incident], seconds: float, threshold: float
) -> Markup:
    """Draws one region's scores over time as SVG: incidents as bands, the threshold as a line."""

    def across(time_s: float) -> float:
        return _WIDTH * min(1.0, time_s / seconds) if seconds else 0.0

    def up(score: float) -> float:
        return _BASE - (_BASE - 4) * score

    bands = "".join(
        f'<rect class="incident" x="{across(one.start_s):.1f}" y="0" height="{_HEIGHT}" '
        f'width="{max(2.0, across(one.end_s) - across(one.start_s)):.1f}"><title>{timecode(one.start_s)} to '
        f"{timecode(one.end_s)}, peak {one.peak:.3f}</title></rect>"
        for one in incidents
    )
    line = " ".join(f"{across(time_s):.1f},{up(score):.1f}" for time_s, score in _highest(points))
    level = f"{up(threshold):.1f}"
    return Markup(
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img" aria-label="scores over time">'
        f'{bands}<line class="level" x1="0" x2="{_WIDTH}" y1="{level}" y2="{level}"/>'
        f'<polyline class="score" points="{line}"/></svg>'
    )


def _highest(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Thins points out; of each lot the highest stays, so that no peak is lost."""
    size = -(-len(points) // _MOST_POINTS) or 1
    lots = (points[begin : begin + size] for begin in range(0, len(points), size))
    return [max(lot, key=lambda point: point[1]) for lot in lots]
