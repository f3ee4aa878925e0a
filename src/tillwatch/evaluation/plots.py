"""The report's plots as inline SVG: small, crisp at any size, coloured by the page's own CSS, the same every time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from tillwatch.evaluation.calibration import Calibration
from tillwatch.evaluation.curves import Curve
from tillwatch.evaluation.summary import Figure

_MOST_POINTS = 300  # of a line; more cannot be seen


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Where a plot's axes lie, in the units of its view box, and what they span."""

    width: float = 420
    height: float = 320
    left: float = 58
    right: float = 12
    top: float = 12
    bottom: float = 44
    x: tuple[float, float] = (0.0, 1.0)
    y: tuple[float, float] = (0.0, 1.0)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Returns the place of a value."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        inner = self.width - self.left - self.right, self.height - self.top - self.bottom
        return self.left + across * inner[0], self.height - self.bottom - up * inner[1]


def curve_plot(
    curve: Curve, x_name: str, y_name: str, title: str, point: tuple[float, float] | None, chance: str
) -> Markup:
    """Draws a curve with its band and the operating point.

    Args:
        curve: the curve.
        x_name, y_name: of the axes.
        title: what is seen, for those who cannot.
        point: the operating point, None if it has no place here.
        chance: "diagonal" for what guessing gives on ROC, or a number for a level line.
    """
    frame = Frame()
    parts = [_axes(frame, x_name, y_name)]
    if curve.band:
        edge = [(place.x, place.interval.low) for place in curve.band]
        edge += [(place.x, place.interval.high) for place in reversed(curve.band)]
        parts.append(f'<polygon class="band" points="{_points(frame, edge)}"/>')
    guess = [(0.0, 0.0), (1.0, 1.0)] if chance == "diagonal" else [(0.0, float(chance)), (1.0, float(chance))]
    parts.append(f'<polyline class="chance" points="{_points(frame, guess)}"/>')
    line = list(zip(*_thin(curve.x, curve.y), strict=True))
    parts.append(f'<polyline class="line a" points="{_points(frame, line)}"/>')
    if point is not None:
        x, y = frame.at(*point)
        parts.append(f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
    return _svg(frame, title, parts)


def reliability_plot(calibration: Calibration, title: str) -> Markup:
    """Draws how often clips of like event probability are events; a dot's area tells how many clips it is of."""
    frame = Frame()
    parts = [_axes(frame, "event probability", "share that are events")]
    parts.append(f'<polyline class="chance" points="{_points(frame, [(0.0, 0.0), (1.0, 1.0)])}"/>')
    most = max((one.clips for one in calibration.bins), default=1) or 1
    for one in calibration.bins:
        if one.mean_probability is None or one.share_of_events is None:
            continue
        x, y = frame.at(one.mean_probability, one.share_of_events)
        foot = frame.at(one.mean_probability, one.mean_probability)[1]
        parts.append(f'<line class="gap" x1="{x:.1f}" y1="{foot:.1f}" x2="{x:.1f}" y2="{y:.1f}"/>')
        radius = 3 + 8 * (one.clips / most) ** 0.5
        parts.append(
            f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"><title>{one.clips} clips scored '
            f"{one.mean_probability:.2f} on average; {one.share_of_events:.2f} of them are events</title></circle>"
        )
    return _svg(frame, title, parts)


def score_plot(
    is_event: NDArray[np.bool_], scores: NDArray[np.float64], names: tuple[str, str], title: str, threshold: float
) -> Markup:
    """Draws how many clips have which score: events upwards, others downwards, over the explorer's slider.

    The dashed line stays at the operating point; the explorer moves the other one.
    """
    frame = Frame(height=190, width=720, left=8, right=8, bottom=22, y=(-1.0, 1.0))
    bins = 40
    places = np.minimum((scores * bins).astype(int), bins - 1)
    up, down = (np.bincount(places[of], minlength=bins) for of in (is_event, ~is_event))
    most = max(int(up.max()), int(down.max()), 1)
    parts = []
    for counts, sign, kind in ((up, 1, "a"), (down, -1, "b")):
        for place in np.flatnonzero(counts):
            left, y = frame.at(place / bins, max(0.0, sign * counts[place] / most * 0.9))
            right, end = frame.at((place + 1) / bins, min(0.0, sign * counts[place] / most * 0.9))
            parts.append(
                f'<rect class="bar {kind}" x="{left + 1:.1f}" y="{y:.1f}" width="{right - left - 2:.1f}" '
                f'height="{end - y:.1f}" rx="2"/>'
            )
    left, middle = frame.at(0, 0)
    right, _ = frame.at(1, 0)
    parts.append(f'<line class="axis" x1="{left}" y1="{middle:.1f}" x2="{right}" y2="{middle:.1f}"/>')
    # In the corners that a model worth its name leaves empty.
    for name, x, y, anchor, kind in (
        (names[0], left, 24, "start", "a"),
        (names[1], right, frame.height - frame.bottom - 8, "end", "b"),
    ):
        parts.append(
            f'<text class="name {kind}" x="{x:.1f}" y="{y}" text-anchor="{anchor}">{escape(_short(name, 40))}</text>'
        )
    for value in (0, 0.25, 0.5, 0.75, 1):
        x, _ = frame.at(value, 0)
        anchor = "start" if value == 0 else "end" if value == 1 else "middle"
        parts.append(f'<text class="tick" x="{x:.1f}" y="{frame.height - 6}" text-anchor="{anchor}">{value:g}</text>')
    x = frame.at(min(1.0, threshold), 0)[0]
    ends = f'x1="{x:.1f}" x2="{x:.1f}" y1="{frame.top}" y2="{frame.height - frame.bottom}"'
    parts.append(f'<line class="set" {ends}/>')
    parts.append(f'<line id="cut" class="cut" {ends} data-left="{left:g}" data-right="{right:g}"/>')
    return _svg(frame, title, parts)


def forest_plot(rows: Sequence[tuple[str, Figure]], title: str) -> Markup:
    """Draws figures of one kind under each other, each with its interval."""
    step, left = 34, 118
    low = min(
        [0.5, *(f.value for _, f in rows if f.value is not None), *(f.interval.low for _, f in rows if f.interval)]
    )
    start = max(0.0, np.floor(low * 10 - 1e-9) / 10)
    ticks = np.linspace(start, 1, 1 + max(2, round((1 - start) * 10)))
    frame = Frame(width=420, height=step * len(rows) + 40, left=left, right=16, top=8, bottom=30, x=(float(start), 1.0))
    parts = []
    for value in ticks:
        x, _ = frame.at(float(value), 0)
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.top}" y2="{frame.height - frame.bottom}"/>'
        )
        parts.append(f'<text class="tick" x="{x:.1f}" y="{frame.height - 10}" text-anchor="middle">{value:.2g}</text>')
    for place, (name, figure) in enumerate(rows):
        y, kind = frame.top + step * (place + 0.5), "a" if place == 0 else "b"
        parts.append(f'<text class="row" x="{left - 10}" y="{y + 4}" text-anchor="end">{escape(_short(name))}</text>')
        if figure.value is None:
            parts.append(f'<text class="tick" x="{left + 4}" y="{y + 4}">not defined</text>')
            continue
        if figure.interval is not None:
            (x1, _), (x2, _) = frame.at(figure.interval.low, 0), frame.at(figure.interval.high, 0)
            parts.append(f'<line class="whisker {kind}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y}" y2="{y}"/>')
        x, _ = frame.at(figure.value, 0)
        parts.append(f'<circle class="mark {kind}" cx="{x:.1f}" cy="{y}" r="5.5"/>')
    return _svg(frame, title, parts)


def learning_plot(
    lines: Mapping[str, Sequence[float | None]], y_name: str, title: str, top: float | None = None
) -> Markup:
    """Draws what was measured epoch by epoch, the first line solid, the second dashed."""
    known = [value for line in lines.values() for value in line if value is not None and np.isfinite(value)]
    epochs = max((len(line) for line in lines.values()), default=1)
    most = top or _round_up(max(known, default=1.0))
    frame = Frame(height=240, x=(1.0, float(max(2, epochs))), y=(0.0, most))
    ticks = sorted({round(1 + (epochs - 1) * part / 5) for part in range(6)})
    parts = [_axes(frame, "epoch", y_name, x_ticks=[float(tick) for tick in ticks])]
    for (name, line), kind in zip(lines.items(), ("a", "b"), strict=False):
        points = [(float(epoch), v) for epoch, v in enumerate(line, 1) if v is not None and np.isfinite(v)]
        if len(points) == 1:
            x, y = frame.at(*points[0])
            parts.append(f'<circle class="mark {kind}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
        parts.append(
            f'<polyline class="line {kind}" points="{_points(frame, points)}"><title>{escape(name)}</title></polyline>'
        )
    return _svg(frame, title, parts)


def _round_up(value: float) -> float:
    """Returns the least number with round quarters that is no less: 1, 2, 4, 8 or 10 times a power of ten."""
    power = 10.0 ** np.floor(np.log10(max(value, 1e-9)))
    return float(next(part * power for part in (1, 2, 4, 8, 10) if part * power >= value))


def _svg(frame: Frame, title: str, parts: Sequence[str]) -> Markup:
    kind = ' class="wide"' if frame.width > 600 else ""
    head = f'<svg viewBox="0 0 {frame.width:g} {frame.height:g}" role="img" aria-label="{escape(title)}"{kind}>'
    return Markup(f"{head}{''.join(parts)}</svg>")


def _axes(frame: Frame, x_name: str, y_name: str, x_ticks: Sequence[float] | None = None) -> str:
    parts = []
    (left, bottom), (right, top) = frame.at(frame.x[0], frame.y[0]), frame.at(frame.x[1], frame.y[1])
    for value in np.linspace(*frame.y, 5):
        y = frame.at(0, float(value))[1]
        parts.append(f'<line class="grid" x1="{left:.1f}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{value:.2g}</text>')
    for value in np.linspace(*frame.x, 5) if x_ticks is None else x_ticks:
        x = frame.at(float(value), 0)[0]
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{value:.3g}</text>')
    parts.append(f'<line class="axis" x1="{left:.1f}" x2="{right:.1f}" y1="{bottom:.1f}" y2="{bottom:.1f}"/>')
    across = (left + right) / 2
    parts.append(
        f'<text class="label" x="{across:.1f}" y="{bottom + 36:.1f}" text-anchor="middle">{escape(x_name)}</text>'
    )
    middle = (top + bottom) / 2
    parts.append(
        f'<text class="label" x="12" y="{middle:.1f}" text-anchor="middle" '
        f'transform="rotate(-90 12 {middle:.1f})">{escape(y_name)}</text>'
    )
    return "".join(parts)


def _points(frame: Frame, values: Sequence[tuple[float, float]]) -> str:
    places: Callable[[tuple[float, float]], str] = lambda value: "{:.1f},{:.1f}".format(*frame.at(*value))  # noqa: E731
    return " ".join(map(places, values))


def _thin(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[list[float], list[float]]:
    kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), _MOST_POINTS)).round().astype(int))
    return x[kept].tolist(), y[kept].tolist()


def _short(name: str, most: int = 16) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
