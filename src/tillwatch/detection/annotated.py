"""An incident as a video to be shown: with region, score and label, and blurred if asked."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import av
import cv2
import numpy as np

from tillwatch.clip_spec import Roi
from tillwatch.data.playback import Damage, Timing, play, timing_of_packets
from tillwatch.data.video import open_container, video_stream
from tillwatch.detection.blurring import Blur, Movement, Picture, blurred, outside
from tillwatch.detection.encoding import Colours, H264File, colours_shown
from tillwatch.detection.incidents import Incident
from tillwatch.detection.panel import draw_region, with_panel
from tillwatch.detection.results import Recording, Scan, scored, shown_clock, timecode
from tillwatch.detection.windows import Clock

_CALM, _ALARM, _QUIET = (116, 177, 242), (242, 153, 90), (160, 173, 189)
_OBLONG = 4.0  # no camera's pixels are wider or higher than so many to one


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """An incident to be shown.

    Attributes:
        recording, incident: of the scan.
        begin_s, end_s: what is shown, in seconds of the recording; None for all of the video that is played.
        shift_s: when that video begins, in seconds of the recording.
        path: of the new file, an .mp4.
    """

    recording: Recording
    incident: Incident
    path: Path
    begin_s: float | None = None
    end_s: float | None = None
    shift_s: float = 0.0

    def shows(self, now_s: float) -> bool:
        """Whether a moment of the recording is shown."""
        return (self.begin_s is None or self.begin_s <= now_s) and (self.end_s is None or now_s < self.end_s)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What became of one annotation: ``frames`` and when the first is shown, in seconds of the recording."""

    frames: int
    start_s: float


def regions_of(recording: Recording, incident: Incident) -> list[Roi]:
    """Returns where an incident was seen; none if that was the whole picture."""
    boxes = [recording.regions[name] for name in incident.regions]
    return [] if None in boxes else [box for box in boxes if box is not None]


def annotate(path: Path, annotations: Sequence[Annotation], scan: Scan, blur: Blur) -> list[Shown]:
    """Plays a video once (twice, to look for what moves) and writes each annotation that it shows.

    The copies are H.264 in yuv420p with the frames' own times. Colours are taken as a player takes the original's, and
    matrix and range are told. The picture itself is whole: what is said of it stands in a panel below.

    Args:
        path: the recording, or the one incident's clip.
        annotations: of it.
        scan: with the scores.
        blur: what is made unrecognisable.

    Returns:
        For each annotation what was written; no file is, if there was no frame.

    Raises:
        ClipError: if the video cannot be opened or holds none.
        OSError: if a file cannot be written.
    """
    timing = timing_of_packets(path)
    stretch = _stretch(path)
    videos = [_Video(one, scan, blur, timing, stretch) for one in annotations]
    if blur == "people":
        for video, frame, _, _ in _played(path, timing, videos):
            video.learn(frame)
    with contextlib.ExitStack() as unfinished:
        for video in videos:
            unfinished.callback(video.discard)
        for video, frame, tick, now_s in _played(path, timing, videos):
            video.add(frame, tick, now_s)
        return [video.finish() for video in videos]


def _played(path: Path, timing: Timing, videos: Sequence[_Video]) -> Iterator[tuple[_Video, av.VideoFrame, int, float]]:
    """Yields each frame for each video that shows it, with its time in ticks and in seconds of the recording."""
    clock = Clock(timing.time_base, timing.interval)
    last = max((one.annotation.end_s or math.inf for one in videos), default=0.0)
    for frame in play(path, Damage()):
        tick = clock.shown(frame.pts)
        played_s = float(tick * timing.time_base)
        if played_s >= last:
            return
        for video in videos:
            now_s = video.annotation.shift_s + played_s
            if video.annotation.shows(now_s):
                yield video, frame, tick, now_s


class _Video:
    """One annotation while it is made."""

    def __init__(self, annotation: Annotation, scan: Scan, blur: Blur, timing: Timing, stretch: float) -> None:
        self.annotation = annotation
        self._blur, self._timing, self._stretch = blur, timing, stretch
        self._movement = Movement()
        self._scores = _Scores(annotation, scan)
        self._regions = regions_of(annotation.recording, annotation.incident)
        self._threshold = scan.rule.threshold
        self._file: H264File | None = None
        self._start_s = 0.0

    def learn(self, frame: av.VideoFrame) -> None:
        """Looks at a frame, so that later what moves is known."""
        self._movement.learn(_picture(frame, colours_shown(frame), self._stretch))

    def add(self, frame: av.VideoFrame, tick: int, now_s: float) -> None:
        """Writes a frame with all that is said of it."""
        colours = colours_shown(frame)
        if self._file is None:
            written = replace(colours, full_range=False)  # what all players know
            timing = self._timing
            self._file = H264File(self.annotation.path, time_base=timing.time_base, fps=timing.fps, colours=written)
            self._start_s = now_s
        picture = self._hidden(_picture(frame, colours, self._stretch), now_s)
        canvas = self._drawn(picture, now_s)
        self._file.add(av.VideoFrame.from_ndarray(canvas, format="rgb24"), tick)

    def finish(self) -> Shown:
        """Puts the file in its place."""
        if self._file is None:
            return Shown(frames=0, start_s=0.0)
        self._file.finish()
        return Shown(frames=self._file.frames, start_s=round(self._start_s, 3))

    def discard(self) -> None:
        """Removes what is unfinished."""
        if self._file is not None:
            self._file.discard()

    def _hidden(self, picture: Picture, now_s: float) -> Picture:
        if self._blur == "outside-roi":
            return blurred(picture, outside(self._regions, *picture.shape[:2]))
        return picture if self._blur == "none" else blurred(picture, self._movement.where(picture, now_s))

    def _drawn(self, picture: Picture, now_s: float) -> Picture:
        incident = self.annotation.incident
        alarm = incident.start_s <= now_s < incident.end_s
        picture = picture.copy()
        for name in incident.regions:
            box = self.annotation.recording.regions[name]
            if box is not None:
                draw_region(picture, box, name, _ALARM if alarm else _QUIET)
        recording = self.annotation.recording
        clock = shown_clock(recording, now_s)
        return with_panel(
            picture,
            label=incident.label,
            score=self._scores.at(now_s),
            threshold=self._threshold,
            times=[*([clock] if clock else []), timecode(now_s)],
            colour=_ALARM if alarm else _CALM,
        )


class _Scores:
    """The scores of the windows that an incident's regions have."""

    def __init__(self, annotation: Annotation, scan: Scan) -> None:
        windows = [
            scored(score, scan.classes, scan.event)
            for score in annotation.recording.scores
            if score.region in annotation.incident.regions
        ]
        self._starts, self._ends = (np.array([getattr(w, name) for w in windows]) for name in ("start_s", "end_s"))
        self._scores = np.array([window.score for window in windows])

    def at(self, now_s: float) -> float | None:
        """Returns the highest score of the windows that hold a moment; None if none does."""
        inside = (self._starts <= now_s) & (now_s < self._ends)
        return float(self._scores[inside].max()) if inside.any() else None


def _picture(frame: av.VideoFrame, colours: Colours, stretch: float) -> Picture:
    """Converts a frame to RGB as a player would show it: upright, and with square pixels."""
    told = frame.reformat(
        format="rgb24",
        src_colorspace=colours.conversion,
        src_color_range=colours.range,
    )
    rgb: Picture = told.to_ndarray().astype(np.uint8, copy=False)
    height, width = rgb.shape[:2]
    if stretch != 1:
        rgb = cv2.resize(rgb, (max(1, round(width * stretch)), height)).astype(np.uint8)
    return np.ascontiguousarray(np.rot90(rgb, round((frame.rotation or 0) / 90)))


def _stretch(path: Path) -> float:
    """Returns how many times wider than high a video's pixels are; 1 where that is not told or makes no sense."""
    with open_container(path) as container:
        told = video_stream(container, path).sample_aspect_ratio
    return float(told) if told and 1 / _OBLONG <= told <= _OBLONG else 1.0
